package cmd_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// starved is the first program of a machine of its own (User Mode Linux, on
// this machine's files, which it can't write to). It runs a monitored lockstepd
// and lets something else take all memory there is: the kernel kills the daemon
// for that, since the score says that it is the one to be killed. It halts the
// machine when another daemon answers.
const starved = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LOCKSTEP_RUNDIR=/run/lockstep NO_COLOR=1
mount -t proc proc /proc
mount -t tmpfs -o size=32m tmpfs /run
ip link set lo up
%s --state-dir=/run/state --rundir=/run/lockstep --pidfile --monitor &
monitor=$!
serves() { %s -t lockstepd status; }
until serves; do sleep 0.1; done
pid=$(cat /run/lockstep/lockstepd.pid)
echo 1000 > /proc/$pid/oom_score_adj
tail /dev/zero &
while [ -d /proc/$pid ]; do sleep 0.1; done
until serves; do sleep 0.1; done
echo "@killed $pid, now $(cat /run/lockstep/lockstepd.pid)"
echo "@title $(tr '\0' ' ' < /proc/$monitor/cmdline)"
echo o > /proc/sysrq-trigger
sleep 60
`

// TestKilledForLackOfMemory has a kernel without memory kill the daemon: its
// monitor says what that was, and starts it again.
func TestKilledForLackOfMemory(t *testing.T) {
	uml := kernel(t, "kernel whose memory may be used up")
	t.Parallel()
	n := layOut(t, one(), nil).Nodes[0]
	said, m := boot(t, uml, "160M", fmt.Sprintf(starved, strings.Join(n.Args()[:3], " "), filepath.Join(real.build(t), "lockstepctl")))
	killed := regexp.MustCompile(`@killed (\d+), now (\d+)`).FindStringSubmatch(said)
	if killed == nil || killed[1] == killed[2] {
		t.Fatalf("no other daemon serves:\n%s", m.LogTail(60))
	}
	for _, want := range []string{
		"Out of memory: Killed process %s (lockstepd)",
		"|ERR|1 crash: pid %s died, killed (Killed), out of memory, restarting",
		"(1 crash: pid %s died, killed (Killed), out of memory)",
	} {
		if want = fmt.Sprintf(want, killed[1]); !strings.Contains(said, want) {
			t.Errorf("the console does not show %q:\n%s", want, said)
		}
	}
}
