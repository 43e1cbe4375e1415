package cmd_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/rpc/stream/certtest"
)

// remotely runs lockstepctl over the network with the certificate of name, and
// returns its output and exit status.
func remotely(t *testing.T, a *certtest.Authority, target, name string, args ...string) (string, int) {
	t.Helper()
	args = append([]string{"-t", target, "--certificate", a.Cert(name), "--private-key", a.Key(name), "--ca-cert", a.CA()}, args...)
	out, err := exec.CommandContext(within(t, patience), filepath.Join(real.dir, "lockstepctl"), args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

// TestRemoteAdministration: over the network it is the name in the certificate
// that says who may do what, and both change while the daemon runs.
func TestRemoteAdministration(t *testing.T) {
	t.Parallel()
	n := layOutConfigured(t, "")
	ip := n.c.IP(0)
	ca := certtest.New(t, n.c.Dir)
	ca.Issue(t, "node", net.ParseIP(ip))
	for _, name := range []string{"alice", "watcher", "mallory"} {
		ca.Issue(t, name)
	}
	foreign := certtest.New(t, t.TempDir())
	foreign.Issue(t, "alice")
	n.add(t, fmt.Sprintf(`
[cluster.tls]
ca = "ca.pem"
cert = "node.pem"
key = "node.key"

[control]
admin_names = ["alice"]
read_names = ["watcher"]
listen = ["pssl:7800:%s"]
`, ip))
	launch(t, n.Node)
	target := "ssl:" + ip + ":7800"
	const promote = "device promote r0"
	type row struct {
		as     *certtest.Authority
		name   string
		line   string
		status int
		says   string
	}
	check := func(rows ...row) {
		t.Helper()
		for _, r := range rows {
			if out, status := remotely(t, r.as, target, r.name, strings.Fields(r.line)...); status != r.status || !strings.Contains(out, r.says) {
				t.Errorf("%s of %s: %s: status %d, want %d and %q:\n%s", r.name, r.as.Dir, r.line, status, r.status, r.says, out)
			}
		}
	}
	check(
		row{ca, "alice", "status", 0, "r0"},
		row{ca, "alice", promote, 0, ""},
		row{ca, "watcher", "status", 0, "primary"},
		row{ca, "watcher", "device demote r0", 1, `"device/demote" needs the admin role; certificate "watcher" has the read role`},
		row{ca, "mallory", "status", 1, `"status" needs the read role; certificate "mallory" has no role`},
		row{foreign, "alice", "status", 3, "see whether --ca-cert is the one that signed"},
	)
	// The foreign certificate is refused also where its owner trusts the daemon.
	for from, to := range map[string]string{foreign.Cert("alice"): ca.Cert("forged"), foreign.Key("alice"): ca.Key("forged")} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	check(row{ca, "forged", "status", 3, ""})
	if out, status := n.ctl(t, "-t", target, "status"); status != 3 || !strings.Contains(out, "give --certificate, --private-key and --ca-cert") {
		t.Errorf("without a certificate: status %d:\n%s", status, out)
	}
	if out := n.must(t, nil, "service", "list"); !strings.Contains(out, "control/"+ip+":7800") {
		t.Error(out)
	}

	revision := 1
	edit := func(old, new string) {
		t.Helper()
		n.edit(t, old, new)
		revision++
		n.untilKey(t, "runtime.config.revision", fmt.Sprint(revision))
	}
	edit(`admin_names = ["alice"]`, `admin_names = ["mallory"]`)
	check(
		row{ca, "alice", "status", 1, `certificate "alice" has no role`},
		row{ca, "mallory", "device demote r0", 0, ""},
	)
	edit("pssl:7800", "pssl:7801")
	check(row{ca, "mallory", "status", 3, "connection refused"})
	target = "ssl:" + ip + ":7801"
	check(row{ca, "mallory", "status", 0, "secondary"})

	// It is there again after a restart, and gone when the file says so.
	if err := n.Restart(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	check(row{ca, "watcher", "status", 0, "r0"})
	edit("listen = [\"pssl:7801:"+ip+"\"]\n", "")
	check(row{ca, "watcher", "status", 3, "connection refused"})

	// Without certificates there is no listening, and it is said why.
	n.edit(t, "read_names", "listen = [\"pssl:7801:"+ip+"\"]\nread_names")
	n.edit(t, "[cluster.tls]\nca = \"ca.pem\"\ncert = \"node.pem\"\nkey = \"node.key\"\n", "")
	if out, status := n.ctl(t, "config", "check"); status != 1 || !strings.Contains(out, "without certificates; with [cluster] tls only") {
		t.Errorf("status %d:\n%s", status, out)
	}
}
