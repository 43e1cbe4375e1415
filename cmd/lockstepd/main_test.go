package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestCommandLine checks what never starts a daemon: status and words.
func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"--help", 0, "Usage: lockstepd [OPTION]...", ""},
		{"-h", 0, "3 already running", ""},
		{"--version", 0, "lockstepd (lockstep) ", ""},
		{"-V", 0, "lockstepd (lockstep) ", ""},
		{"--bogus", 2, "", "lockstepd: unknown flag: --bogus; run \"lockstepd --help\" to see the options\n"},
		{"extra", 2, "", "unexpected argument \"extra\""},
		{"--detach=perhaps", 2, "", "invalid argument"},
		{"--config=", 2, "", "a path must not be empty"},
		{"--check -c /no/such/file.toml", 2, "", "/no/such/file.toml"},
		{"--user=no-such-user --state-dir=/no/such/dir", 2, "", ""},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"lockstepd"}, strings.Fields(tc.args)...)
		if got := run(nil, args, &stdout, &stderr); got != tc.status {
			t.Errorf("%s: status %d, want %d", tc.args, got, tc.status)
		}
		if !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.stderr) {
			t.Errorf("%s: stdout %q, stderr %q", tc.args, &stdout, &stderr)
		}
		if tc.stdout == "" && stdout.Len() > 0 || tc.status == 0 && stderr.Len() > 0 {
			t.Errorf("%s: stdout %q, stderr %q", tc.args, &stdout, &stderr)
		}
	}
}

// TestHelpNamesEveryFlag keeps the text, which is written by hand, complete.
func TestHelpNamesEveryFlag(t *testing.T) {
	var o options
	for _, name := range []string{
		"config", "node", "state-dir", "rundir", "check", "dump-md", "detach", "monitor", "restart-delay", "no-chdir", "pidfile",
		"overwrite-pidfile", "user", "unixctl", "log-file", "verbose", "version",
	} {
		if command(&o).Flags().Lookup(name) == nil {
			t.Errorf("there is no --%s", name)
		}
		if !strings.Contains(help, "--"+name) {
			t.Errorf("the help does not name --%s", name)
		}
	}
}
