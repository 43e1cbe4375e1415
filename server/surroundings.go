package server

import (
	"context"
	"time"
)

// healthPause is the least time between two lines about the engine's health:
// a resync changes its figures all the time.
const healthPause = time.Second

// tellHealth keeps the service manager's line about the engine's health true
// until ctx ends.
func (e *engine) tellHealth(ctx context.Context) {
	if e.opts.Status == nil {
		return
	}
	tick := time.NewTicker(healthPause)
	defer tick.Stop()
	for {
		seen := e.rev.Current()
		e.opts.Status(e.control.Words())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if _, err := e.rev.Wait(ctx, seen); err != nil {
			return
		}
	}
}

// watchMonitor has the status be looked at again when the monitor is gone.
func (e *engine) watchMonitor(ctx context.Context) {
	select {
	case <-e.opts.MonitorGone:
		e.rev.Bump()
	case <-ctx.Done():
	}
}

// While a stop takes long, every extendEvery the engine asks for extendBy
// more, so that a stop is cut off where it hangs and not where it is long.
const (
	extendEvery = 5 * time.Second
	extendBy    = 3 * extendEvery
)

// extending runs stop, and asks for more time for as long as it runs.
func extending(extend func(time.Duration), stop func() error) error {
	if extend == nil {
		return stop()
	}
	over, asked := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(asked)
		tick := time.NewTicker(extendEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				extend(extendBy)
			case <-over:
				return
			}
		}
	}()
	defer func() {
		close(over)
		<-asked
	}()
	return stop()
}
