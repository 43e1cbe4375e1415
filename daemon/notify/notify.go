// Package notify tells the service manager how the daemon is, by systemd's
// notification protocol: datagrams of NAME=VALUE lines to the socket that
// NOTIFY_SOCKET names. Without a service manager every call does nothing.
package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Notifier sends to one service manager. The nil Notifier and the zero one send nothing.
type Notifier struct{ path string }

// New returns a notifier for the value of NOTIFY_SOCKET: a path, or '@' and an
// abstract name; "" for none.
func New(path string) *Notifier {
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		path = "" // vsock and relative names are not ours to guess at
	}
	return &Notifier{path}
}

// Enabled reports whether anybody listens.
func (n *Notifier) Enabled() bool { return n != nil && n.path != "" }

// sendTimeout bounds what a service manager with a full queue can cost.
const sendTimeout = time.Second

// Send sends lines as one message.
func (n *Notifier) Send(lines ...string) error {
	if !n.Enabled() {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("cannot reach the service manager: %w", err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("cannot notify the service manager: %w", err)
	}
	if _, err := conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("cannot notify the service manager: %w", err)
	}
	return nil
}

// Ready says that the daemon serves, and which process is the one to watch.
func (n *Notifier) Ready(mainPID int) error {
	return n.Send("READY=1", "MAINPID="+strconv.Itoa(mainPID))
}

// Reloading says that the configuration is being read again; Ready ends it.
func (n *Notifier) Reloading() error {
	return n.Send("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(monotonic(), 10))
}

// Stopping says that the daemon is on its way out.
func (n *Notifier) Stopping() error { return n.Send("STOPPING=1") }

// Status puts one line about the daemon's health into `systemctl status`.
func (n *Notifier) Status(text string) error {
	return n.Send("STATUS=" + strings.ReplaceAll(text, "\n", "; "))
}

// Extend asks for more time to start or stop.
func (n *Notifier) Extend(d time.Duration) error {
	return n.Send("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(d.Microseconds(), 10))
}

// Alive feeds the watchdog.
func (n *Notifier) Alive() error { return n.Send("WATCHDOG=1") }

func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return ts.Nano() / 1000
}

// WatchdogInterval returns the time within which the service manager wants a
// sign of life, by WATCHDOG_USEC and WATCHDOG_PID; 0 when it wants none.
func WatchdogInterval(getenv func(string) string, pid int) time.Duration {
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || usec > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	if p := getenv("WATCHDOG_PID"); p != "" && p != strconv.Itoa(pid) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}

// Watchdog feeds the watchdog until ctx ends: three times per interval, each
// time only if probe succeeds. A probe that hangs is given up on after a third
// of the interval; failed gets what went wrong.
func (n *Notifier) Watchdog(ctx context.Context, interval time.Duration, probe func(context.Context) error, failed func(error)) {
	t := time.NewTicker(interval / 3)
	defer t.Stop()
	for {
		if err := check(ctx, interval/3, probe); err == nil {
			err = n.Alive()
			if err != nil {
				failed(err)
			}
		} else if ctx.Err() == nil {
			failed(fmt.Errorf("no sign of life for the watchdog: %w", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func check(ctx context.Context, limit time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return probe(ctx)
}

// Listen returns the descriptors that the service manager passed on (socket
// activation), by name. The variables are for the process named by LISTEN_PID
// alone. Unnamed ones are called "unknown", as by systemd.
func Listen(getenv func(string) string, pid int) (map[int]string, error) {
	if getenv("LISTEN_FDS") == "" || getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil
	}
	return parseListen(getenv("LISTEN_FDS"), getenv("LISTEN_FDNAMES"))
}

// firstFD is where passed descriptors begin; maxFDs bounds their number.
const (
	firstFD = 3
	maxFDs  = 4096
)

func parseListen(fds, names string) (map[int]string, error) {
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxFDs {
		return nil, fmt.Errorf("LISTEN_FDS=%q is not a number of sockets", fds)
	}
	var name []string
	if names != "" {
		name = strings.Split(names, ":")
	}
	if len(name) > n {
		return nil, errors.New("LISTEN_FDNAMES names more sockets than LISTEN_FDS has")
	}
	passed := make(map[int]string, n)
	for i := range n {
		passed[firstFD+i] = "unknown"
		if i < len(name) && name[i] != "" {
			passed[firstFD+i] = name[i]
		}
	}
	return passed, nil
}

// Forget removes the protocol's variables from the environment, so that
// children do not speak in the daemon's name.
func Forget() {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
}
