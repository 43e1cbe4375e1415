package cmd_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstepd/lockstep/ctl/docs"
	"github.com/lockstepd/lockstep/rpc/api"
)

var update = flag.Bool("update", false, "write the reference of the control socket's commands anew")

// TestReferenceIsUpToDate: what is written of the socket's commands is what a
// daemon says of them.
func TestReferenceIsUpToDate(t *testing.T) {
	t.Parallel()
	n := layOut(t, one(), nil).Node("alpha")
	launch(t, n)
	var commands []api.Command
	if err := n.Call(within(t, patience), "help", nil, &commands); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"commands.md": docs.Reference(commands), "lockstepd-commands.7": docs.ReferenceMan(commands),
	} {
		path := filepath.Join("..", "ctl", "docs", name)
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s is not up to date; run: make docs\n%s", name, diff)
		}
	}
}
