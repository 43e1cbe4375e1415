package cmd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
)

// TestConfigurationsThatDiffer: a node does not have the device at first, and
// the others know that it is not the network. Then the nodes' files are edited
// one after the other. What stands goes on; the difference is named on every node; a
// connection that is lost meanwhile is not agreed on until the files are alike.
func TestConfigurationsThatDiffer(t *testing.T) {
	t.Parallel()
	c := layOut(t, quick(), nil)
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, n := range c.Nodes {
		files[n.Name] = filepath.Join(c.Dir, n.Name+".toml")
		if err := os.WriteFile(files[n.Name], raw, 0o600); err != nil {
			t.Fatal(err)
		}
		n.UseConfig(files[n.Name])
	}
	without, _, _ := strings.Cut(string(raw), "[[device]]")
	if err := os.WriteFile(files["gamma"], []byte(without), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	alpha, beta, gamma := c.Node("alpha"), c.Node("beta"), c.Node("gamma")
	says := func(n *cluster.Node, want string, args ...string) {
		t.Helper()
		var out string
		if !poll(within(t, patience), func() bool {
			out, _ = n.Lockstepctl(t.Context(), args...)
			return strings.Contains(out, want)
		}) {
			t.Fatalf("%s: %q: not %q in\n%s", n.Name, args, want, out)
		}
	}
	reload := func(n *cluster.Node, text string) {
		t.Helper()
		if err := os.WriteFile(files[n.Name], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := n.Lockstepctl(within(t, patience), "config", "reload"); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
	}
	says(alpha, "not replicated with gamma, which is up", "status")
	says(alpha, "gamma is up, and has not said how the device is there", "device", "why", "r0")
	reload(gamma, string(raw))
	inSync(t, c, "r0")

	conn := open(t, alpha)
	defer conn.Close()
	write := func() {
		t.Helper()
		if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(n *cluster.Node) {
		t.Helper()
		reload(n, strings.Replace(string(raw), `quorum = "majority"`, `quorum = 2`, 1))
	}
	edit(alpha)
	write()
	says(alpha, "configured otherwise than beta, gamma", "status")
	says(beta, "configured otherwise than alpha", "status")
	says(beta, "its configuration of r0 differs in what nodes must agree on", "node", "why", "alpha")
	says(alpha, "configured otherwise, in what nodes must agree on, than beta, gamma", "device", "why", "r0")
	inSync(t, c, "r0")

	edit(beta)
	write()
	says(gamma, "configured otherwise than alpha, beta", "status")
	for _, verb := range []string{"disconnect", "connect"} {
		if out, err := alpha.Lockstepctl(within(t, patience), "node", verb, "gamma"); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
	}
	says(alpha, "not replicated with gamma: the two nodes' configurations of this device differ", "status")
	write()

	edit(gamma)
	converged(t, c)
	for _, n := range c.Nodes {
		says(n, "healthy", "status")
	}
}
