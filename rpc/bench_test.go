package rpc

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/rpc/frame"
)

// pipeline sends requests on one connection without waiting and reads as many
// replies; each operation is one request.
func pipeline(b *testing.B, path, request string) {
	b.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	const burst = 100
	batch := strings.Repeat(request, burst)
	in := frame.NewReader(nc, frame.Limits{Size: 1 << 20, Depth: 100})
	b.ReportAllocs()
	sent := make(chan struct{}, 10) // bursts on their way
	writer := make(chan error, 1)
	n := 0
	go func() {
		for range sent {
			if _, err := io.WriteString(nc, batch); err != nil {
				writer <- err
				return
			}
		}
		writer <- nil
	}()
	for b.Loop() {
		if n%burst == 0 {
			if n == 0 {
				for range cap(sent) / 2 {
					sent <- struct{}{}
				}
			}
			sent <- struct{}{}
		}
		if _, err := in.Next(); err != nil {
			b.Fatal(err)
		}
		n++
	}
	close(sent)
	go io.Copy(io.Discard, nc)
	if err := <-writer; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
}

// BenchmarkPipelined answers small requests of one connection, next to what
// ovsdb-server does with the same.
func BenchmarkPipelined(b *testing.B) {
	const unixctl = `{"id":0,"method":"version","params":[]}`
	b.Run("lockstep-unixctl", func(b *testing.B) { pipeline(b, serve(b, ServerOptions{}).path, unixctl) })
	b.Run("lockstep-jsonrpc2", func(b *testing.B) {
		pipeline(b, serve(b, ServerOptions{}).path, `{"jsonrpc":"2.0","id":0,"method":"version"}`)
	})
	b.Run("ovsdb-server-unixctl", func(b *testing.B) { pipeline(b, ovsdbServer(b), unixctl) })
}

// ovsdbServer starts Open vSwitch's database server with an empty database and
// returns the path of its control socket.
func ovsdbServer(b *testing.B) string {
	b.Helper()
	for _, program := range []string{"ovsdb-server", "ovsdb-tool"} {
		if _, err := exec.LookPath(program); err != nil {
			b.Skipf("%s is not installed (Debian: openvswitch-common)", program)
		}
	}
	dir := b.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	schema := `{"name":"empty","version":"1.0.0","tables":{"t":{"columns":{"c":{"type":"string"}}}}}`
	if err := os.WriteFile(at("schema"), []byte(schema), 0o600); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("ovsdb-tool", "create", at("db"), at("schema")).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command("ovsdb-server", "--unixctl="+at("ctl"), at("db"))
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+dir, "OVS_LOGDIR="+dir, "OVS_DBDIR="+dir)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	for {
		c, err := Dial(ctx, at("ctl"), DialOptions{})
		if err == nil {
			c.Close()
			return at("ctl")
		}
		if pause(ctx, 10*time.Millisecond); ctx.Err() != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClient connects, asks once, and closes: what a command line does.
func BenchmarkClient(b *testing.B) {
	s := serve(b, ServerOptions{})
	for _, dialect := range []string{"unixctl", "jsonrpc2"} {
		b.Run(dialect, func(b *testing.B) {
			for b.Loop() {
				c, err := Dial(b.Context(), s.path, DialOptions{})
				if err != nil {
					b.Fatal(err)
				}
				if dialect == "unixctl" {
					_, err = c.CallText(b.Context(), "version")
				} else {
					err = c.Call(b.Context(), "version", nil, nil)
				}
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

// BenchmarkNotify sends one notification to 64 subscribers that read.
func BenchmarkNotify(b *testing.B) {
	const subscribers = 64
	joined := make(chan *Notifier, subscribers)
	s := serve(b, ServerOptions{}, Command{Name: "subscribe", Doc: "Subscribe.",
		Do: Text(func(ctx context.Context, _ Actor, _ []string) (string, error) {
			n, _ := NotifierFrom(ctx)
			joined <- n
			return "", nil
		})})
	var all []*Notifier
	for range subscribers {
		nc, err := net.Dial("unix", s.path)
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		io.WriteString(nc, `{"jsonrpc":"2.0","id":1,"method":"subscribe"}`)
		go io.Copy(io.Discard, nc)
		all = append(all, <-joined)
	}
	b.ReportAllocs()
	lost := 0
	for b.Loop() {
		note, err := NewNotification("event", map[string]string{"type": "resync", "device": "r0"})
		if err != nil {
			b.Fatal(err)
		}
		for _, n := range all {
			if n.Send(note) != nil {
				lost++
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(lost)/float64(b.N*subscribers), "lost/sent")
}
