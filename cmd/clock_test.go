package cmd_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// leaping is the first program of a machine of its own (User Mode Linux, on this
// machine's files, which it can't write to), whose clock is set as no other may
// be: by days and by decades, forth and back, while a
// client of one of three nodes writes. It is given the command line of a node's
// daemon, in which $n is its name, and lockstepctl.
const leaping = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin NO_COLOR=1
mount -t proc proc /proc
mount -t tmpfs -o size=96m tmpfs /run
mkdir /run/tmp
export TMPDIR=/run/tmp
ip link set lo up
nodes="alpha beta gamma"
for n in $nodes; do
	%s >/run/$n.log 2>&1 &
done
ctl() { n=$1; shift; %s -t /run/$n.ctl "$@"; }
for n in $nodes; do
	until ctl $n status >/dev/null 2>&1; do sleep 0.1; done
	ctl $n device wait r0 -q || echo "@failed: $n is not in sync"
done
for n in $nodes; do
	ctl $n status | sed "s/^/@before $n /"
	wc -l </run/$n.log >/run/$n.start # what it says before all are connected is about starting
done
mkfifo /run/orders
qemu-io -f raw "nbd+unix:///r0?socket=/run/alpha.run/r0.nbd" </run/orders >/run/client 2>&1 &
client=$!
exec 3>/run/orders
at=0
some() { # writes for a while, and flushes
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
		echo "write -P $((at %% 250 + 1)) ${at}k 4k" >&3
		[ $((i %% 5)) != 0 ] || echo flush >&3
		at=$((at + 4))
		sleep 0.1
	done
}
some
now=$(date +%%s)
for to in $((now + 86400)) $((now - 86400)) $((now + 315360000)) 86400 $((now + 3)) $((now - 3)); do
	date -s @$to >/dev/null || echo "@failed: the clock cannot be set"
	some
done
echo quit >&3
exec 3>&-
wait $client
echo "@client wrote $(grep -c 'wrote 4096/4096' /run/client) of $((at / 4)), $(grep -ci error /run/client) errors"
for n in $nodes; do
	ctl $n device wait r0 -q || echo "@failed: $n is not in sync"
	ctl $n status | sed "s/^/@after $n /"
	tail -n +$(($(cat /run/$n.start) + 1)) /run/$n.log |
		grep -E 'is down|has missed|is gone|is back|quorum lost|refused|ERR' | sed "s/^/@log $n /"
	cmp /run/alpha.state/r0.img /run/$n.state/r0.img || echo "@failed: the disks of alpha and $n differ"
done
echo @end
echo o > /proc/sysrq-trigger
sleep 60
`

// TestScenario58TheClockJumps sets the clock of a machine with three nodes on it,
// under load: nobody is given up, no answer is late or missing, and quorum stays.
func TestScenario58TheClockJumps(t *testing.T) {
	uml := kernel(t, "clock that may be set")
	t.Parallel()
	cfg := quick()
	cfg.Devices[0].Size = "4MiB"
	cfg.TickTime = 20 * time.Second // far less than any leap, and far more than an emulated machine stands still
	c := layOut(t, cfg, nil)
	node := strings.Join(c.Node("alpha").Args()[:2], " ") + " --node=$n --state-dir=/run/$n.state --rundir=/run/$n.run --unixctl=/run/$n.ctl"
	said, m := boot(t, uml, "256M", fmt.Sprintf(leaping, node, c.Ctl()))
	wrote := regexp.MustCompile(`@client wrote (\d+) of (\d+), 0 errors`).FindStringSubmatch(said)
	if wrote == nil || wrote[1] != wrote[2] || !strings.Contains(said, "@end") {
		t.Errorf("not all writes were answered:\n%s", m.LogTail(60))
	}
	for _, bad := range regexp.MustCompile(`(?m)^@(failed|log).*$`).FindAllString(said, -1) {
		t.Errorf("after the clock was set: %s", bad)
	}
}
