package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
)

// TestASecretIsReplacedInSteps: for a window both are taken, the old one is
// proved first, and in the end only the new one is left.
func TestASecretIsReplacedInSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used []string
		r := newRotation(func(s ...[]byte) error {
			used = append(used, fmt.Sprintf("%s", s))
			return nil
		}, []byte("old"), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.run(ctx)
		}()
		check := func(what, want string) {
			t.Helper()
			synctest.Wait()
			r.mu.Lock() // which the rotation holds while it uses secrets
			defer r.mu.Unlock()
			if got := strings.Join(used, " "); got != want {
				t.Errorf("%s: used %s, not %s", what, got, want)
			}
		}
		for _, s := range []string{"old", "new"} {
			if err := r.to([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		check("at first", "[old new]")
		<-time.After(secretWindow/2 + time.Second)
		check("after half of the window", "[old new] [new old]")
		<-time.After(secretWindow / 2)
		check("after the window", "[old new] [new old] [new]")
		_ = r.to([]byte("third"))
		_ = r.to([]byte("new"))
		check("taken back", "[old new] [new old] [new] [new third] [new]")
		<-time.After(2 * secretWindow)
		check("long after", "[old new] [new old] [new] [new third] [new]")
		cancel()
		<-done
	})
}

func TestASecretThatIsRefusedChangesNothing(t *testing.T) {
	bad := errors.New("too short")
	r := newRotation(func(...[]byte) error { return bad }, []byte("old"), slog.New(slog.DiscardHandler))
	if err := r.to([]byte("x")); !errors.Is(err, bad) || string(r.now) != "old" || r.old != nil {
		t.Errorf("%v, now %s, before %s", err, r.now, r.old)
	}
}

// TestNodeEventsHaveATypeThatCanBeAskedFor: filters and handlers know no others.
func TestNodeEventsHaveATypeThatCanBeAskedFor(t *testing.T) {
	for _, typ := range []string{
		cluster.NodeUp, cluster.NodeDown, cluster.NodeRefused, cluster.NodeRelinked, cluster.PingMissed, cluster.PingHeard,
		cluster.TickChanging, cluster.TickChanged, cluster.HostPaused,
	} {
		if !events.Known(eventType(typ)) {
			t.Errorf("%s is published as %s, which is no type", typ, eventType(typ))
		}
	}
}

// TestNodeEventsCarryWhatTheyAreOf: the reason, and which life of the node in
// which session.
func TestNodeEventsCarryWhatTheyAreOf(t *testing.T) {
	got := eventData(cluster.Event{Type: cluster.NodeDown, ID: 0, Reason: "tick-timeout", Session: 7, Incarnation: 0xabcdef0123456789})
	want := map[string]any{"id": 0, "reason": "tick-timeout", "session": uint64(7), "incarnation": "abcdef0123456789"}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestDeviceEventsAreNarrowed: handlers wait for what happened, devices speak
// of what changed.
func TestDeviceEventsAreNarrowed(t *testing.T) {
	var got []string
	n := &narrator{device: "r0", publish: func(e events.Event) uint64 {
		if e.Device != "r0" || e.Text == "" || !events.Known(e.Type) {
			t.Errorf("published %+v", e)
		}
		got = append(got, e.Type)
		return 0
	}}
	n.suspends.Store(true)
	for _, step := range []struct {
		typ, peer, text string
		want            string
	}{
		{"quorum", "", "quorum gained: 2 of 3", "quorum quorum-gained"},
		{"role", "beta", "beta is now Primary", "role"},
		{"role", "", "this node is now primary", "role"},
		{"quorum", "", "quorum lost: 1 of 3", "quorum quorum-lost suspended"},
		{"disk", "beta", "disk of beta: UpToDate -> Outdated", "disk out-of-sync"},
		{"disk", "", "disk UpToDate -> Outdated: why", "disk"},
		{"quorum", "", "quorum gained: 2 of 3", "quorum quorum-gained resumed"},
		{"resync", "beta", "resync of beta is complete", "resync resync-done"},
		{"resync", "beta", "resync from beta: 4096 bytes", "resync"},
		{"split-brain", "beta", "not connected with beta: split brain", "split-brain"},
	} {
		got = nil
		n.tell(device.Event{Type: step.typ, Peer: step.peer, Text: step.text})
		if s := strings.Join(got, " "); s != step.want {
			t.Errorf("%s %q: published %s, not %s", step.typ, step.text, s, step.want)
		}
	}
}

func TestAViewComputesItsKeys(t *testing.T) {
	asked := 0
	v := &view{"things.", func() []string { return []string{"a b", "c"} }, func(name string) []pair {
		asked++
		return []pair{{"size", cmap.Int(int64(len(name)))}}
	}}
	db := cmap.New()
	if _, err := db.Provide(v.prefix, v); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range db.Dump("things.") {
		got = append(got, e.Line())
	}
	if want := []string{"things.a_b.size (i64) = 3", "things.c.size (i64) = 1"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	asked = 0
	if x, err := db.Get("things.c.size"); err != nil || x.Text() != "1" || asked != 1 {
		t.Errorf("%v, %v, asked %d things", x, err, asked)
	}
	if _, err := db.Get("things.c.colour"); !errors.Is(err, cmap.ErrNotExist) {
		t.Error(err)
	}
}
