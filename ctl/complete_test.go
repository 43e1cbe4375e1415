package ctl

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/rpc"
)

func live() *daemon {
	return &daemon{answers: map[string]any{
		"node/list":    `[{"name":"beta"},{"name":"gamma"}]`,
		"device/list":  `[{"name":"r0"},{"name":"r1"},{"name":"home"}]`,
		"service/list": `[{"name":"metrics"},{"name":"messenger"}]`,
		"cmap/dump":    `[{"key":"user.site"},{"key":"nodes.beta.state"}]`,
		"help":         `[{"name":"device/list"},{"name":"vlog/set"}]`,
	}}
}

// TestCompletion asks as the shells' scripts do.
func TestCompletion(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"node show |", "beta gamma"},
		{"node show b|", "beta"},
		{"node show beta |", ""},
		{"node reconnect |", "beta gamma"},
		{"device show r|", "r0 r1"},
		{"status |", "r0 r1 home"},
		{"device wait |", "r0 r1 home"},
		{"device wait r0 |", "uptodate connected synced primary"},
		{"device wait r0 up|", "uptodate"},
		{"device wait r0 synced |", ""},
		{"device handshake r0 |", "beta gamma"},
		{"device handshake r0 beta |", ""},
		{"service restart m|", "metrics messenger"},
		{"cmap get user|", "user.site"},
		{"cmap set user.site |", "i8 u8 i16 u16 i32 u32 i64 u64 flt dbl str bin"},
		{"cmap set user.site str |", ""},
		{"call v|", "vlog/set"},
		{"completion |", "bash zsh fish"},
		{"tick |", "get set"},
		{"conf|", "config"},
		{"status --w|", "--watch"},
		{"events |", ""},
		{"events --type node|", "nodeup nodedown"},
		{"events --node |", "beta gamma"},
		{"events --device h|", "home"},
		{"device wait r0 --for u|", "uptodate"},
		{"device verify r0 --node |", "beta gamma"},
		{"-f j|", "json"},
	} {
		line := strings.TrimSuffix(c.line, "|")
		var out, errs lockedBuffer
		args := append([]string{"__completeNoDesc"}, strings.Split(line, " ")...)
		if code := Main(args, env(live(), &out, &errs)); code != 0 {
			t.Errorf("%s: exit %d: %s", c.line, code, errs.String())
		}
		var words []string
		for w := range strings.Lines(out.String()) {
			if w = strings.TrimSpace(w); !strings.HasPrefix(w, ":") {
				words = append(words, w)
			}
		}
		if got := strings.Join(words, " "); got != c.want {
			t.Errorf("%s offers %q, want %q", c.line, got, c.want)
		}
	}
}

// TestCompletionWithoutADaemonIsSilentAndQuick.
func TestCompletionWithoutADaemonIsSilentAndQuick(t *testing.T) {
	hang := func(ctx context.Context, _ *conn, _ string) (string, error) {
		<-ctx.Done()
		return "", rpc.ErrTimeout
	}
	for name, d := range map[string]*daemon{
		"away":  {dials: func(int) error { return errors.New("away") }},
		"hangs": {answers: map[string]any{"node/list": hang}},
		"odd":   answers("node/list", `{"a":1}`),
	} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			got := run(t, d, "__completeNoDesc node show b")
			if got.code != 0 || strings.TrimSpace(got.out) != ":4" || time.Since(begun) > completionTime {
				t.Errorf("%s: %+v after %v", name, got, time.Since(begun))
			}
		})
	}
}

func TestCompletionScripts(t *testing.T) {
	for shell, mark := range map[string]string{"bash": "complete -o default -F __lockstepctl_complete lockstepctl", "zsh": "#compdef lockstepctl", "fish": "complete -c lockstepctl"} {
		got := run(t, &daemon{}, "completion "+shell)
		if got.code != 0 || !strings.Contains(got.out, mark) || got.err != "" {
			t.Errorf("%s: exit %d, %d bytes, %s", shell, got.code, len(got.out), got.err)
		}
	}
}

// TestHelp: by the command, by the flag, for groups and for all.
func TestHelp(t *testing.T) {
	for _, line := range []string{"help device wait", "device wait --help", "device wait r0 -h", "-h device wait"} {
		got := run(t, &daemon{}, line)
		for _, want := range []string{
			"lockstepctl device wait: wait until a device is in a state\n\nUsage: lockstepctl device wait [FLAGS] DEVICE [STATE]\n",
			"\nArguments:\n  DEVICE  a device's name", "\nFlags:\n  --for STATE", "\nFlags of every command: -t TARGET, -T SECONDS, ",
			"\nExit status:\n  0  done\n", "  4  timed out\n\nExample:\n  lockstepctl device wait r0 synced\n",
		} {
			if !strings.Contains(got.out, want) {
				t.Errorf("%s: %q is missing in\n%s", line, want, got.out)
			}
		}
		if got.code != 0 || got.err != "" || strings.Contains(got.out, "  5  ") {
			t.Errorf("%s: %+v", line, got)
		}
	}
	for line, want := range map[string]string{
		"help":        "lockstepctl: look at and command lockstepd\n",
		"--help":      "  5  status --check: not healthy\n",
		"node --help": "lockstepctl node: look at and command the links to peers\n\nUsage: lockstepctl node [FLAGS] COMMAND\n\nCommands:\n  connect ",
		"help status": "  5  status --check: not healthy\n",
	} {
		got := run(t, &daemon{}, line)
		if got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("%s: %+v", line, got)
		}
		for l := range strings.Lines(got.out) {
			if len(l) > 81 {
				t.Errorf("%s: a line of %d: %s", line, len(l), l)
			}
		}
	}
}

// TestOnlyWhatIsNeededIsBuilt keeps the start cheap, and must not change what
// is found.
func TestOnlyWhatIsNeededIsBuilt(t *testing.T) {
	for line, want := range map[string]int{"version": 1, "node show beta": 1, "-t status node list": 2, "help": len(parts()), "nonsense": len(parts()), "": len(parts()), "node -h": len(parts()), "__complete x": len(parts())} {
		if got := len(needed(strings.Fields(line))); got != want {
			t.Errorf("%q builds %d parts, want %d", line, got, want)
		}
	}
	if got := run(t, answers("node/list", `[]`), "-t status node list"); got.code != 0 {
		t.Errorf("%+v", got)
	}
}

func BenchmarkVersion(b *testing.B) {
	d := answers("version", `{"program":"lockstepd","version":"1","go":"go1"}`)
	for b.Loop() {
		var out, errs lockedBuffer
		if Main([]string{"version"}, env(d, &out, &errs)) != 0 {
			b.Fatal(errs.String())
		}
	}
}
