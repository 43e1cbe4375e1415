package messenger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Binding says where to accept peers.
type Binding struct {
	// Address is "HOST:PORT", or "HOST:FIRST-LAST" for the first free port of a
	// range.
	Address string
	// Avoid are ports that are not taken even where they are free.
	Avoid []int
	// Retries is how often to try again, Delay apart, when nothing was free: a
	// predecessor may be on its way out.
	Retries int
	Delay   time.Duration
}

// Bind listens as b says. A fixed port that is busy is an error, never another
// port.
func Bind(ctx context.Context, b Binding) (net.Listener, error) {
	host, first, last, err := parsePorts(b.Address)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		ln, err := bindOnce(ctx, host, first, last, b.Avoid)
		if err == nil || try >= b.Retries {
			return ln, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (given up: %w)", err, context.Cause(ctx))
		case <-time.After(b.Delay):
		}
	}
}

func bindOnce(ctx context.Context, host string, first, last int, avoid []int) (net.Listener, error) {
	var lc net.ListenConfig
	var failed error
	for port := first; port <= last; port++ {
		if slices.Contains(avoid, port) {
			continue
		}
		ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return ln, nil
		}
		failed = err
	}
	switch {
	case failed == nil:
		return nil, fmt.Errorf("cannot accept peers on %s: every port from %d to %d is on the list of those to avoid", host, first, last)
	case first == last:
		return nil, fmt.Errorf("cannot accept peers: %w", failed)
	}
	return nil, fmt.Errorf("cannot accept peers: no port from %d to %d is free on %s: %w", first, last, host, failed)
}

// parsePorts takes an address with a port or a range of ports apart.
func parsePorts(address string) (host string, first, last int, err error) {
	host, ports, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, 0, fmt.Errorf("cannot accept peers on %q: %w", address, err)
	}
	lo, hi, isRange := strings.Cut(ports, "-")
	first, err = strconv.Atoi(lo)
	last = first
	if isRange && err == nil {
		last, err = strconv.Atoi(hi)
	}
	if err != nil || first < 0 || last > 65535 || last < first {
		err = errors.New("a port from 0 to 65535, or a range of them, is needed")
		return "", 0, 0, fmt.Errorf("cannot accept peers on %q: %w", address, err)
	}
	return host, first, last, nil
}
