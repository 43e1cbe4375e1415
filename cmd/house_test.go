package cmd_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/lockstepd/lockstep"

// pkg is the part of `go list -json` that the house rules look at.
type pkg struct {
	ImportPath string
	Doc        string
	Name       string
	Imports    []string
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Name,Imports", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// below reports whether path is dir or lies below it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// TestArrows asserts who may import whom.
func TestArrows(t *testing.T) {
	pure := []string{"server/replication", "server/wire", "server/block", "rpc/reconnect", "daemon/monitor"}
	impure := []string{"net", "os", "syscall", "golang.org/x/sys"}
	for _, p := range listPackages(t) {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, imp := range p.Imports {
			for _, dir := range pure {
				if !below(from, dir) {
					continue
				}
				for _, bad := range impure {
					if below(imp, bad) && imp != "net/netip" {
						t.Errorf("%s is pure and must not import %s", from, imp)
					}
				}
			}
			to, ours := strings.CutPrefix(imp, module+"/")
			if ours && !mayImport(from, to) {
				t.Errorf("%s must not import %s", from, to)
			}
		}
	}
}

func mayImport(from, to string) bool {
	switch {
	case below(from, "cmd"):
		return below(to, "daemon") || below(to, "server") || below(to, "ctl") || below(to, "cmd")
	case below(from, "ctl"):
		return below(to, "ctl") || below(to, "rpc")
	case below(from, "rpc"):
		return below(to, "rpc")
	case below(from, "daemon"):
		return below(to, "daemon")
	case below(from, "server/block"):
		return false
	case below(from, "server/wire"), below(from, "server/replication"):
		return below(to, "server/block") || below(to, "server/wire")
	case below(from, "server/control"):
		return below(to, "server") || below(to, "rpc")
	case below(from, "server/messenger"), below(from, "server/cluster"):
		// Peer links use the streams and the reconnect machine of the control plane, nothing else of it.
		return below(to, "server") || below(to, "rpc/stream") || below(to, "rpc/reconnect")
	case below(from, "server"):
		return below(to, "server")
	}
	return false
}

// TestEveryPackageHasADoc asserts that a reader of any folder is told why it exists.
func TestEveryPackageHasADoc(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package doc", p.ImportPath)
		}
	}
}

// TestTopLevel asserts the fixed top level of the tree, and a go.mod without replace.
func TestTopLevel(t *testing.T) {
	allowed := map[string]bool{
		"cmd": true, "ctl": true, "rpc": true, "daemon": true, "server": true,
		"go.mod": true, "go.sum": true, "Makefile": true, "README.md": true, "LICENSE": true, "bin": true,
	}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !allowed[e.Name()] && !strings.HasPrefix(e.Name(), ".") {
			t.Errorf("top level: %s is not one of the fixed entries", e.Name())
		}
	}
	mod, err := os.ReadFile(filepath.Join("..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		if strings.HasPrefix(strings.TrimSpace(line), "replace") {
			t.Errorf("go.mod has a replace: %s", line)
		}
	}
}
