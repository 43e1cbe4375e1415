package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Flags are the daemon's own command-line flags.
type Flags struct {
	Detach, Monitor  bool
	NoChdir          bool
	Pidfile          Optional
	OverwritePidfile bool
	User             string
	Unixctl          string
	LogFile          Optional
	Verbose          []string // one specification each; "" means everything at DBG
	RunDir           string
	RestartDelay     time.Duration
}

// Optional is a flag whose value may be left out: --pidfile, --pidfile=FILE.
type Optional struct {
	Set   bool
	Value string // "" for the default
}

// noValue stands for "no value given" inside the flag parser.
const noValue = "\x00"

// optionalValue parses an Optional.
type optionalValue struct{ o *Optional }

func (v optionalValue) String() string {
	if v.o == nil {
		return ""
	}
	return v.o.Value
}

func (v optionalValue) Type() string { return "file" }

func (v optionalValue) Set(s string) error {
	v.o.Set, v.o.Value = true, strings.TrimPrefix(s, noValue)
	return nil
}

// specsValue collects the specifications of -v.
type specsValue struct{ specs *[]string }

func (v specsValue) String() string { return "" }
func (v specsValue) Type() string   { return "spec" }

func (v specsValue) Set(s string) error {
	*v.specs = append(*v.specs, strings.TrimPrefix(s, noValue))
	return nil
}

// Register adds the flags to a command.
func (f *Flags) Register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.Detach, "detach", false, "run in the background; return when the daemon serves")
	fs.BoolVar(&f.Monitor, "monitor", false, "start a monitor that restarts the daemon when it crashes")
	fs.BoolVar(&f.NoChdir, "no-chdir", false, "do not change to / in the background")
	fs.Var(optionalValue{&f.Pidfile}, "pidfile", "write the pid to FILE and hold a lock on it")
	fs.BoolVar(&f.OverwritePidfile, "overwrite-pidfile", false, "start even if another instance holds the pidfile")
	fs.StringVar(&f.User, "user", "", "run as USER, and as GROUP or USER's own group")
	fs.StringVar(&f.Unixctl, "unixctl", "", "control socket, or none")
	fs.Var(optionalValue{&f.LogFile}, "log-file", "write the log to FILE")
	fs.VarP(specsValue{&f.Verbose}, "verbose", "v", "set log levels; everything at DBG without SPEC")
	fs.StringVar(&f.RunDir, "rundir", "", "folder of pidfile and sockets")
	fs.DurationVar(&f.RestartDelay, "restart-delay", 0, "least time between two restarts by the monitor")
	for _, name := range []string{"pidfile", "log-file", "verbose"} {
		fs.Lookup(name).NoOptDefVal = noValue
	}
}

// Normalize rewrites -vSPEC, as Open vSwitch's programs take it, to -v=SPEC,
// up to a "--".
func Normalize(args []string) []string {
	out := make([]string, 0, len(args))
	for i, a := range args {
		if a == "--" {
			return append(out, args[i:]...)
		}
		if rest, ok := strings.CutPrefix(a, "-v"); ok && rest != "" && rest[0] != '=' {
			a = "-v=" + rest
		}
		out = append(out, a)
	}
	return out
}

// Places are where files go when no flag says otherwise.
type Places struct {
	Program   string // names the files
	RunDirEnv string // environment variable that overrides RunDir
	RunDir    string
	LogDir    string
}

// Resolve fills in the defaults and makes all paths absolute. As in Open
// vSwitch, relative names of pidfile and control socket are below the rundir,
// and that of the log file below the log folder.
func (f *Flags) Resolve(p Places) error {
	if f.RunDir == "" {
		f.RunDir = os.Getenv(p.RunDirEnv)
	}
	if f.RunDir == "" {
		f.RunDir = p.RunDir
	}
	dir, err := filepath.Abs(f.RunDir)
	if err != nil {
		return err
	}
	f.RunDir = dir
	f.Pidfile.Value = below(f.RunDir, f.Pidfile.Value, p.Program+".pid")
	f.LogFile.Value = below(p.LogDir, f.LogFile.Value, p.Program+".log")
	if f.Unixctl != "" && f.Unixctl != "none" {
		f.Unixctl = below(f.RunDir, f.Unixctl, "")
	}
	return nil
}

func below(dir, name, def string) string {
	if name == "" {
		name = def
	}
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}
