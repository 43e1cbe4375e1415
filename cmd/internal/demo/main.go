// Command demo runs the main job on one machine: three nodes as three
// processes, one device on all of them, data written through NBD, a node killed
// and caught up again, and the three disks compared. Then it stays, for a
// person to play with, until Ctrl-C, and leaves nothing behind. It needs
// nothing but Go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case ctx.Err() != nil:
		fmt.Println("\nInterrupted. All processes ended, the folder is removed.")
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.SetOutput(stderr)
	bin := f.String("bin", "bin", "`folder` that holds lockstepd and lockstepctl")
	once := f.Bool("once", false, "exit after the comparison of the disks")
	dir := f.String("dir", "", "`folder` to make the demo's folder in (default: the system's for temporary files)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%q: no arguments are expected", f.Args())
	}
	c, err := cluster.New(cluster.Options{Bin: *bin, Dir: *dir}, cluster.Three("1GiB"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	d := &demo{c: c, out: stdout, tty: isTerminal(stdout)}
	if err := d.show(ctx); err != nil {
		return err
	}
	if *once {
		return nil
	}
	d.howToPlay()
	<-ctx.Done()
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
