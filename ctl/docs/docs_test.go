package docs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/ctl"
	"github.com/lockstepd/lockstep/rpc/api"
)

// TestUpToDate fails when the program says something else than its manual.
func TestUpToDate(t *testing.T) {
	for name, want := range Files() {
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s is not up to date; run: make docs\n%s", name, diff)
		}
	}
}

// TestEveryCommandIsDocumented: what, arguments, an example.
func TestEveryCommandIsDocumented(t *testing.T) {
	for _, c := range leaves(ctl.Tree()) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Example == "" {
			t.Errorf("%s: short %q, example %q", c.CommandPath(), c.Short, c.Example)
		}
		_, args, _ := strings.Cut(c.Use, " ")
		words := strings.Fields(strings.NewReplacer("[", "", "]", "", "...", "").Replace(args))
		var named []string
		for _, it := range ctl.Arguments(c) {
			named = append(named, it.Name)
		}
		if strings.Join(words, " ") != strings.Join(named, " ") {
			t.Errorf("%s takes %q, its help explains %q", c.CommandPath(), words, named)
		}
	}
}

// TestEveryExampleIsACommandLine: the examples and recipes run, as far as that
// can be told without a daemon.
func TestEveryExampleIsACommandLine(t *testing.T) {
	var lines []string
	for _, c := range append(leaves(ctl.Tree()), ctl.Tree()) {
		lines = append(lines, strings.Split(c.Example, "\n")...)
	}
	recipes, err := os.ReadFile("recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	lines = append(lines, strings.Split(string(recipes), "\n")...)
	call := regexp.MustCompile(`\blockstepctl [^|;)&>]*`)
	found := 0
	for _, line := range lines {
		for _, cmd := range call.FindAllString(line, -1) {
			found++
			if code, says := try(cmd); code == 2 {
				t.Errorf("%q is no command line: %s", cmd, says)
			}
		}
	}
	if found < 80 {
		t.Errorf("only %d command lines were found", found)
	}
}

// try runs a command line in a world without a daemon.
func try(line string) (code int, says string) {
	var errs strings.Builder
	args := strings.Fields(strings.NewReplacer(`"$device"`, "r0", "'", "").Replace(line))
	code = ctl.Main(args[1:], ctl.Env{
		In: strings.NewReader(""), Out: io.Discard, Err: &errs, Getenv: func(string) string { return "" },
		Dial: func(context.Context, ctl.Target, ctl.Notify) (ctl.Client, error) {
			return nil, errors.New("there is none in this test")
		},
		Inspect: func(context.Context, string) (json.RawMessage, error) {
			return nil, errors.New("there is no file in this test")
		},
		Open:       func(string) (io.ReadCloser, error) { return nil, errors.New("there is no file in this test") },
		Interrupts: context.WithCancel, InTerm: true,
		OutTerm: screen{}, Keyboard: func() (ctl.Keyboard, error) { return nil, errors.New("none") },
	})
	return code, errs.String()
}

// screen is a terminal.
type screen struct{}

func (screen) Size() (width, height int) { return 80, 24 }

// TestManualPagesAreWellFormed asks groff's opinion where it is there.
func TestManualPagesAreWellFormed(t *testing.T) {
	wellFormed(t, Man(ctl.Tree()), "device wait")
	reference, err := os.ReadFile("lockstepd-commands.7")
	if err != nil {
		t.Fatal(err)
	}
	wellFormed(t, string(reference), "control socket")
}

func wellFormed(t *testing.T, page, holds string) {
	t.Helper()
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, ".") && !regexp.MustCompile(`^\.(TH|SH|SS|TP|B|BR|PP|nf|fi)( |$)`).MatchString(strings.TrimSpace(line)) {
			t.Errorf("odd request: %s", line)
		}
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		return // the requests were checked above
	}
	cmd := exec.Command(groff, "-man", "-ww", "-Tutf8")
	cmd.Stdin = strings.NewReader(page)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if out, err := cmd.Output(); err != nil || complaints.Len() > 0 || !strings.Contains(string(out), holds) {
		t.Errorf("groff: %v\n%s", err, complaints.String())
	}
}

func TestReference(t *testing.T) {
	got := Reference([]api.Command{
		{Name: "device/wait", Usage: "DEVICE [STATE]", Doc: "Wait until a device is in a state.", Access: "read", DeadlineMS: 1500,
			Params: []api.Param{{Name: "device", Type: "string", Positional: true, Required: true}, {Name: "x", Type: "a|b"}}},
		{Name: "device/resolve", Usage: "DEVICE a|b", Doc: "Choose.", Access: "admin"},
		{Name: "version", Doc: "Show the version.", Access: "read"},
	})
	for _, want := range []string{
		"| `device/wait DEVICE [STATE]` | device string, [x a\\|b?] | read | 1.5 s | Wait until a device is in a state. |\n",
		"| `device/resolve DEVICE a\\|b` |  | admin | - | Choose. |\n",
		"| `version` |  | read | - | Show the version. |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %s in\n%s", want, got)
		}
	}
}

// TestLeavesAreThere guards against a tree that lost a branch.
func TestLeavesAreThere(t *testing.T) {
	have := make(map[string]*cobra.Command)
	for _, c := range leaves(ctl.Tree()) {
		have[strings.TrimPrefix(c.CommandPath(), "lockstepctl ")] = c
	}
	for want := range strings.SplitSeq(strings.TrimSpace(`
status,top,events,call,list-commands,completion,version,restart,exit,help,coverage,memory,metrics,
node list,node show,node connect,node disconnect,node reconnect,node why,tick get,tick set,
device list,device show,device create,device promote,device demote,device attach,device detach,device verify,device resync,
device invalidate,device resize,device wait,device why,device resolve,device handshake,
config show,config check,config reload,config diff,config save,config rollback,
service list,service show,service start,service stop,service restart,
cmap get,cmap set,cmap delete,cmap dump,cmap track,log list,log set,log reopen`), ",") {
		if want = strings.TrimSpace(want); have[want] == nil {
			t.Errorf("there is no command %q", want)
		}
	}
}
