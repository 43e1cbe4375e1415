package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func env(kv ...string) func(string) string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return func(name string) string { return m[name] }
}

func TestSend(t *testing.T) {
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	abstract := fmt.Sprintf("@notify-test-%d", os.Getpid())
	for _, path := range []string{filepath.Join(dir, "s"), abstract} {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		n := New(path)
		for want, send := range map[string]func() error{
			"READY=1\nMAINPID=17":           func() error { return n.Ready(17) },
			"STOPPING=1":                    n.Stopping,
			"WATCHDOG=1":                    n.Alive,
			"STATUS=a; b":                   func() error { return n.Status("a\nb") },
			"EXTEND_TIMEOUT_USEC=5000000":   func() error { return n.Extend(5 * time.Second) },
			"RELOADING=1\nMONOTONIC_USEC=*": n.Reloading,
		} {
			if err := send(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1024)
			k, err := c.Read(buf)
			got := string(buf[:k])
			if prefix, star := strings.CutSuffix(want, "*"); err != nil || got != want && !(star && strings.HasPrefix(got, prefix)) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
}

func TestNobodyListens(t *testing.T) {
	var none *Notifier
	for _, n := range []*Notifier{none, New(""), New("relative"), New("vsock:2:3")} {
		if n.Enabled() || n.Ready(1) != nil {
			t.Error("sent to nobody")
		}
	}
	if err := New("/no/such/socket").Ready(1); err == nil {
		t.Error("no error")
	}
}

func TestWatchdogInterval(t *testing.T) {
	for _, tc := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"30000000", "", 30 * time.Second}, {"30000000", "7", 30 * time.Second}, {"30000000", "8", 0},
		{"", "", 0}, {"x", "", 0}, {"-1", "", 0}, {"0", "", 0}, {"9999999999999999", "", 0},
	} {
		if got := WatchdogInterval(env("WATCHDOG_USEC", tc.usec, "WATCHDOG_PID", tc.pid), 7); got != tc.want {
			t.Errorf("%q %q: %v", tc.usec, tc.pid, got)
		}
	}
}

// TestWatchdog asserts, in virtual time, that a probe is made three times per
// interval, is given up on in time, and that its failure is told.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var probes []time.Duration
		var failures []error
		start := time.Now()
		wg.Go(func() {
			(&Notifier{}).Watchdog(ctx, 30*time.Second, func(ctx context.Context) error {
				probes = append(probes, time.Since(start))
				switch len(probes) {
				case 2:
					return errors.New("sick")
				case 3:
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}, func(err error) { failures = append(failures, err) })
		})
		time.Sleep(45 * time.Second) // virtual
		cancel()
		wg.Wait()
		if fmt.Sprint(probes) != "[0s 10s 20s 30s 40s]" {
			t.Errorf("probes at %v", probes)
		}
		if len(failures) != 2 || !strings.Contains(failures[0].Error(), "sick") || !errors.Is(failures[1], context.DeadlineExceeded) {
			t.Errorf("failures %v", failures)
		}
	})
}

func TestListen(t *testing.T) {
	for _, tc := range []struct {
		fds, pid, names string
		want            string
	}{
		{"2", "7", "a:b", "map[3:a 4:b] <nil>"},
		{"2", "7", "a", "map[3:a 4:unknown] <nil>"},
		{"1", "7", "", "map[3:unknown] <nil>"},
		{"2", "8", "a:b", "map[] <nil>"},
		{"", "7", "", "map[] <nil>"},
		{"x", "7", "", `map[] LISTEN_FDS="x" is not a number of sockets`},
		{"99999", "7", "", `map[] LISTEN_FDS="99999" is not a number of sockets`},
		{"1", "7", "a:b", "map[] LISTEN_FDNAMES names more sockets than LISTEN_FDS has"},
	} {
		got, err := Listen(env("LISTEN_FDS", tc.fds, "LISTEN_PID", tc.pid, "LISTEN_FDNAMES", tc.names), 7)
		if s := fmt.Sprint(got, err); s != tc.want {
			t.Errorf("%+v: got %s", tc, s)
		}
	}
}

func FuzzListen(f *testing.F) {
	f.Add("2", "a:b")
	f.Fuzz(func(t *testing.T, fds, names string) {
		got, err := parseListen(fds, names)
		if err == nil && len(got) > maxFDs {
			t.Error(len(got))
		}
	})
}
