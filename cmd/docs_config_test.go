package cmd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/rpc/stream/certtest"
)

// TestConfigurationsInTheDocsAreValid: the README's by itself, those of the
// recipes as additions to it.
func TestConfigurationsInTheDocsAreValid(t *testing.T) {
	t.Parallel()
	bin := real.build(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("a cookie for one run only"), 0o600); err != nil {
		t.Fatal(err)
	}
	certtest.New(t, dir).Issue(t, "node")
	blocks := func(file string) []string {
		text, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, rest := range strings.Split(string(text), "```toml\n")[1:] {
			block, _, _ := strings.Cut(rest, "```")
			all = append(all, block)
		}
		if len(all) == 0 {
			t.Fatalf("%s has no configuration", file)
		}
		return all
	}
	whole := blocks("README.md")
	base := whole[0] + "\n[cluster.tls]\nca = \"ca.pem\"\ncert = \"node.pem\"\nkey = \"node.key\"\n"
	for _, addition := range blocks("ctl/docs/recipes.md") {
		whole = append(whole, base+addition)
	}
	for i, text := range whole {
		file := filepath.Join(dir, fmt.Sprintf("%d.toml", i))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(within(t, patience), filepath.Join(bin, "lockstepd"), "--check", "-c", file, "-n", "alpha").CombinedOutput(); err != nil {
			t.Errorf("%s\n%v: %s", text, err, out)
		}
	}
}
