package cluster

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTableTransitions(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	tab := NewTable()
	tab.Add(2, "gamma", at(0))
	tab.Add(1, "beta", at(0))
	steps := []struct {
		name  string
		do    func() bool
		ok    bool
		state State
		since int
	}{
		{"attempt", func() bool { tab.Attempt(1, at(1), "dialling"); return true }, true, Connecting, 0},
		{"failed", func() bool { tab.Failed(1, at(2), "refused"); return true }, true, Down, 0},
		{"up", func() bool { return tab.Up(1, at(3), 5, 77) }, true, Up, 3},
		{"up twice", func() bool { return tab.Up(1, at(4), 6, 78) }, false, Up, 3},
		{"attempt while up", func() bool { tab.Attempt(1, at(4), "x"); return true }, true, Up, 3},
		{"failed while up", func() bool { tab.Failed(1, at(4), "a link was cut"); return true }, true, Up, 3},
		{"down", func() bool { return tab.Down(1, at(5), "timeout") }, true, Down, 5},
		{"down twice", func() bool { return tab.Down(1, at(6), "again") }, false, Down, 5},
		{"disconnect", func() bool { tab.Disconnect(1, at(7), "asked"); return true }, true, Disconnected, 7},
		{"attempt while disconnected", func() bool { tab.Attempt(1, at(8), "x"); return true }, true, Disconnected, 7},
		{"connect", func() bool { tab.Connect(1, at(9)); return true }, true, Down, 9},
		{"up again", func() bool { return tab.Up(1, at(10), 7, 79) }, true, Up, 10},
		{"unknown", func() bool { return tab.Up(9, at(10), 7, 79) }, false, Up, 10},
	}
	for _, s := range steps {
		before := tab.Revision()
		ok := s.do()
		n, _ := tab.Get(1)
		if ok != s.ok || n.State != s.state || !n.Since.Equal(at(s.since)) {
			t.Errorf("%s: %t, %v since %v; want %t, %v since %d", s.name, ok, n.State, n.Since.Unix(), s.ok, s.state, s.since)
		}
		if tab.Revision() < before {
			t.Errorf("%s: the revision went back", s.name)
		}
	}
	if n, _ := tab.Get(1); n.Connects != 2 || n.Incarnation != 79 || n.LastError != "timeout" {
		t.Errorf("in the end %+v", n)
	}
	if all := tab.All(); len(all) != 2 || all[0].Name != "beta" {
		t.Errorf("all: %+v", all)
	}
	tab.Remove(1)
	if _, ok := tab.Get(1); ok {
		t.Error("a removed node is still there")
	}
}

// fakePeer answers nothing and counts.
type fakePeer struct {
	mu     sync.Mutex
	act    Activity
	pings  int
	silent time.Duration
}

func (p *fakePeer) Activity() Activity {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.act
}

func (p *fakePeer) Ping(Promise) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pings++
}

func (p *fakePeer) Silent(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = d
}

func TestMonitorPingsAndFindsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var told []ActionKind
		m := NewMonitor(MonitorOptions{
			Promise: Promise{4 * time.Second, 4},
			Clock:   func() Instant { return time.Since(start) + 1 },
			Notify:  func(a Action) { told = append(told, a.Kind) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.Run(ctx)
		}()
		p := &fakePeer{act: Activity{Received: 1}}
		m.Watch(3, 1, Promise{4 * time.Second, 4}, p)
		time.Sleep(6 * time.Second)
		p.mu.Lock()
		if p.silent < 4*time.Second || p.silent > 5*time.Second || p.pings < 4 {
			t.Errorf("silent for %v, %d pings", p.silent, p.pings)
		}
		p.mu.Unlock()
		m.Unwatch(3, 1)
		if _, _, err := m.Set(time.Second, 0); err != nil {
			t.Error(err)
		}
		if err := m.SetPings(1); err == nil {
			t.Error("a ping count of 1 is taken")
		}
		if err := m.SetPings(5); err != nil || m.Promise() != (Promise{time.Second, 5}) {
			t.Errorf("%v, %v", err, m.Promise())
		}
		cancel()
		<-done
		if !slices.Contains(told, Missed) {
			t.Errorf("told of %v", told)
		}
	})
}
