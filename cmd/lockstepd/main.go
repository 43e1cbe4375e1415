// Command lockstepd is the lockstep daemon: it replicates block devices of
// this host to its peers. This package knows both the engine and the
// daemonizer around it, and is the only one that does.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/daemon"
	"github.com/lockstepd/lockstep/daemon/title"
	"github.com/lockstepd/lockstep/server"
)

const program = "lockstepd"

// The places that no flag names.
const (
	defaultConfig   = "/etc/lockstep/lockstep.toml"
	defaultStateDir = "/var/lib/lockstep"
	defaultRunDir   = "/run/lockstep"
	defaultLogDir   = "/var/log/lockstep"
	runDirEnv       = "LOCKSTEP_RUNDIR"
)

func main() {
	t, args := title.Take() // before anything keeps a part of the arguments
	os.Exit(run(t, args, os.Stdout, os.Stderr))
}

// options is the command line, parsed.
type options struct {
	daemon  daemon.Flags
	engine  engineFlags
	check   bool
	dumpMD  string // path of a metadata file
	version bool
}

// engineFlags are the flags that the engine takes.
type engineFlags struct {
	Config   string
	Node     string
	StateDir string
	RunDir   string
	given    bool // Node was named, not taken from the host
}

// NodeGiven is the node's name where the command line has it. A file can be
// checked on a host that is none of its nodes.
func (f engineFlags) NodeGiven() string {
	if f.given {
		return f.Node
	}
	return ""
}

func run(t *title.Title, args []string, stdout, stderr io.Writer) int {
	var o options
	status := daemon.ExitOK
	cmd := command(&o)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := o.resolve(); err != nil {
			return err
		}
		status = o.start(t, args, stdout, stderr)
		return nil
	}
	cmd.SetArgs(daemon.Normalize(args[1:]))
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.Execute(); err != nil {
		fmt.Fprintf(stderr, "%s: %v; run \"%s --help\" to see the options\n", program, err, program)
		return daemon.ExitConfig
	}
	return status
}

func command(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: program, Args: noArgs, SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	o.daemon.Register(cmd)
	fs := cmd.Flags()
	fs.StringVarP(&o.engine.Config, "config", "c", defaultConfig, "")
	fs.StringVarP(&o.engine.Node, "node", "n", "", "")
	fs.StringVar(&o.engine.StateDir, "state-dir", defaultStateDir, "")
	fs.BoolVar(&o.check, "check", false, "")
	fs.StringVar(&o.dumpMD, "dump-md", "", "")
	fs.BoolVarP(&o.version, "version", "V", false, "")
	cmd.SetHelpFunc(func(c *cobra.Command, _ []string) { fmt.Fprint(c.OutOrStdout(), help) })
	return cmd
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

// resolve makes paths absolute, for the background has no working folder, and
// finds this node's name.
func (o *options) resolve() error {
	if err := o.daemon.Resolve(daemon.Places{
		Program: program, RunDirEnv: runDirEnv, RunDir: defaultRunDir, LogDir: defaultLogDir,
	}); err != nil {
		return err
	}
	for _, path := range []*string{&o.engine.Config, &o.engine.StateDir} {
		if *path == "" {
			return errors.New("a path must not be empty")
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	o.engine.RunDir = o.daemon.RunDir
	if o.engine.Node != "" {
		o.engine.given = true
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("cannot find the host name; name this node with --node: %w", err)
	}
	o.engine.Node = host
	return nil
}

func (o *options) start(t *title.Title, args []string, stdout, stderr io.Writer) int {
	switch {
	case o.version:
		fmt.Fprintln(stdout, versionText())
		return daemon.ExitOK
	case o.check:
		return check(o.engine, stdout, stderr)
	case o.dumpMD != "":
		if err := server.DumpMetadata(o.dumpMD, stdout); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", program, err)
			return daemon.ExitFailed
		}
		return daemon.ExitOK
	}
	return daemon.Run(daemon.Options{
		Program: program, Version: version(), Args: args, Title: t, Flags: o.daemon, Modules: modules,
		CrashDir: filepath.Join(o.engine.StateDir, "crash"), Dirs: []string{o.engine.StateDir},
		// The next one reads the file anew.
		ProbeArgs: []string{"--check", "--config=" + o.engine.Config, "--node=" + o.engine.Node},
	}, engineMain(o.engine, o.daemon))
}

const help = `lockstepd: replicate block devices of this host to its peers, synchronously

Usage: lockstepd [OPTION]...

Node:
  -c, --config FILE         configuration, the same on all nodes
                            (default /etc/lockstep/lockstep.toml)
  -n, --node NAME           this node's name in it (default: the host name)
      --state-dir DIR       disks and their metadata (default /var/lib/lockstep)
      --rundir DIR          pidfile and sockets
                            (default $LOCKSTEP_RUNDIR, else /run/lockstep)
      --check               say what is wrong with the configuration, and exit
      --dump-md FILE        print what a device's metadata file says, as JSON, and
                            exit (lockstepctl device dump-md --offline uses it)

Daemon:
      --detach              run in the background; the command returns when the
                            daemon serves, or fails with the daemon's own status
      --monitor             restart the daemon when it crashes
      --restart-delay TIME  least time between two such restarts (default 10s;
                            the first one is immediate)
      --no-chdir            do not change to / in the background
      --pidfile[=FILE]      write the pid to FILE and hold a lock on it
                            (default RUNDIR/lockstepd.pid)
      --overwrite-pidfile   start even if another instance holds the pidfile
      --user USER[:GROUP]   run as USER
      --unixctl=PATH|none   control socket (default RUNDIR/lockstepd.PID.ctl)

Log:
      --log-file[=FILE]     write the log to FILE
                            (default /var/log/lockstep/lockstepd.log)
  -v, --verbose[=SPEC]      levels: words of MODULE, console|syslog|file and
                            off|emer|err|warn|info|dbg, separated by ':';
                            without SPEC, everything at dbg

  -V, --version             print the version, and exit
  -h, --help                print this, and exit

Signals: TERM and INT stop in order, a second one at once; HUP reads the
configuration again, and has a monitor whose program was replaced restart the
daemon by the new one, with its clients; USR1 writes state and goroutines to
the log.

Exit status: 0 ended in order; 1 failed; 2 bad flags or configuration;
3 already running.
`
