package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// shells complete a command line, "lockstepctl …" up to the cursor, and print
// the only word on offer.
var shells = map[string][]string{
	// A bash that has no bash-completion.
	"bash": {"bash", "--norc", "-c", `
		source <(lockstepctl completion bash)
		COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=33
		compopt() { :; } # no key was pressed
		__lockstepctl_complete
		printf '%s\n' "${COMPREPLY[@]}"`, "bash"},
	"fish": {"fish", "--no-config", "-c", `
		lockstepctl completion fish | source
		complete --do-complete $argv[1] | string replace --all --regex '\t.*' ''
		true`},
	// Tab and Return are pressed on a terminal, and what then runs is looked at.
	"zsh": {"zsh", "-f", "-c", `
		zmodload zsh/zpty
		zpty -b z "TERM=dumb zsh --no-globalrcs -i"
		zpty -r z seen '*READY*'
		zpty -w -n z "$1"$'\t\r'
		zpty -r z seen '*RAN * END*'
		print -r -- ${${seen##*RAN }%% END*}`, "zsh"},
}

// zshrc is what the zsh on a terminal reads: it is ready when it prompts.
const zshrc = `
autoload -Uz compinit
compinit -u -D
source <(lockstepctl completion zsh)
lockstepctl() { if [[ $1 == __* ]]; then command lockstepctl "$@"; else print "RAN $@[-1] END"; fi }
precmd() { print READY; }
`

// TestCompletionInShells presses Tab in real shells: commands, flags, and the
// names of nodes, devices, services and keys, which a live daemon is asked for.
// Where it does not answer within the blink that a Tab may take, the user
// presses it again.
func TestCompletionInShells(t *testing.T) {
	need(t, "bash", "fish", "zsh")
	t.Parallel()
	alpha, home := start(t, quick()).Node("alpha"), t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".zshrc"), []byte(zshrc), 0o600); err != nil {
		t.Fatal(err)
	}
	for shell, argv := range shells {
		for line, want := range map[string]string{
			"lockstepctl devi":                       "device",
			"lockstepctl device show r":              "r0",
			"lockstepctl node why b":                 "beta",
			"lockstepctl events --node g":            "gamma",
			"lockstepctl service show nbd/r0/u":      "nbd/r0/unix",
			"lockstepctl cmap get config.cluster.na": "config.cluster.name",
			"lockstepctl device wait r0 up":          "uptodate",
			"lockstepctl status --wa":                "--watch",
		} {
			t.Run(shell+"/"+line, func(t *testing.T) {
				t.Parallel()
				ctx, got := within(t, patience), ""
				if !poll(ctx, func() bool {
					cmd := exec.CommandContext(ctx, argv[0], append(slices.Clone(argv[1:]), line)...)
					cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(alpha.Args()[0])+string(os.PathListSeparator)+os.Getenv("PATH"),
						"LOCKSTEP_TARGET="+alpha.Socket(), "HOME="+home, "ZDOTDIR="+home)
					out, err := cmd.CombinedOutput()
					if err != nil {
						t.Fatalf("%v: %s", err, out)
					}
					got = strings.TrimSpace(string(out))
					return got == want
				}) {
					t.Errorf("%q is offered, want %q", got, want)
				}
			})
		}
	}
}
