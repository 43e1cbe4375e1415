// Command serve exports a file, or memory, over a Unix socket by the NBD
// server alone: to measure it with fio beside other servers.
//
//	go run ./server/nbd/nbdtest/serve -socket /tmp/s -file disk.img
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/pprof"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run() error {
	socket := flag.String("socket", "", "listen on this Unix socket")
	file := flag.String("file", "", "export this file; memory if empty")
	size := flag.Int64("size", 1<<30, "size of the memory disk in bytes")
	spin := flag.Duration("spin", 20*time.Microsecond, "poll for so long before sleeping; negative: never")
	profile := flag.String("cpuprofile", "", "write a CPU profile here")
	verbose := flag.Bool("v", false, "log connections")
	flag.Parse()

	disk, err := open(*file, *size)
	if err != nil {
		return err
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ln, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	opts := nbd.Options{Backend: nbdtest.NewBackend(disk), Limits: nbd.Limits{Spin: *spin}}
	if *verbose {
		opts.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return nbd.NewServer(opts).Serve(ctx, ln)
}

func open(file string, size int64) (nbdtest.Disk, error) {
	if file == "" {
		return nbdtest.NewMemory("disk", size), nil
	}
	return nbdtest.OpenFile("disk", file)
}
