package messenger

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/rpc/reconnect"
)

// moments records when a node dials.
type moments struct {
	mu sync.Mutex
	at []time.Time // without repetitions
}

func (r *moments) dialer(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, bind, to string) (net.Conn, error) {
		r.mu.Lock()
		if now := time.Now(); len(r.at) == 0 || !r.at[len(r.at)-1].Equal(now) {
			r.at = append(r.at, now)
		}
		r.mu.Unlock()
		return dial(ctx, bind, to)
	}
}

// TestWaitsDoubleAndAreJitteredDownwards: nobody listens, so that attempts take
// no time. The first retry is in the instant of the first attempt.
func TestWaitsDoubleAndAreJitteredDownwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r moments
		bed, _ := simBed(t, 2, func(i int, o *Options) { o.Dial = r.dialer(o.Dial) })
		b := bed.start(1)
		time.Sleep(time.Minute)
		b.stop()
		const ms = time.Millisecond
		want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms, 5000 * ms}
		if len(r.at) <= len(want) {
			t.Fatalf("dialled at %v only", r.at)
		}
		jittered := false
		for i, w := range want {
			d := r.at[i+1].Sub(r.at[i])
			if d > w || d < w*3/4 {
				t.Errorf("wait %d is %v, of %v", i, d, w)
			}
			jittered = jittered || d < w
		}
		if !jittered {
			t.Error("no wait is jittered")
		}
	})
}

// TestTheStateMachineOfSessionsIsShown: on both sides, through all that happens
// to a node.
func TestTheStateMachineOfSessionsIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, _ := simBed(t, 2, nil)
		check := func(n *node, peer, when string, want reconnect.State, failures int, conns uint64) {
			t.Helper()
			synctest.Wait()
			i, err := n.Node(peer)
			must(t, err)
			if s := i.Dialling; s.State != want || s.SuccessfulConns != conns || i.Attempts != failures {
				t.Errorf("%s: node %s shows %s, %d of %d, %d failures; want %s, %d connections, %d failures",
					when, n.name, s.State, s.SuccessfulConns, s.AttemptedConnections, i.Attempts, want, conns, failures)
			}
			if (i.RetryIn >= 0) != (want == reconnect.Backoff) {
				t.Errorf("%s: node %s shows a retry in %v", when, n.name, i.RetryIn)
			}
		}
		b := bed.start(1)
		check(b, "alpha", "nobody is there", reconnect.Backoff, 2, 0)
		a := bed.start(0)
		a.waitUp(1)
		b.waitUp(1)
		check(b, "alpha", "up", reconnect.Active, 0, 1)
		check(a, "beta", "up", reconnect.Active, 0, 1)
		time.Sleep(10 * time.Second)
		for n, peer := range map[*node]string{a: "beta", b: "alpha"} {
			if i, _ := n.Node(peer); i.Dialling.StateFor != i.Dialling.TotalConnected || i.Dialling.StateFor < 10*time.Second {
				t.Errorf("node %s shows that it is up for %v, connected for %v in all", n.name, i.Dialling.StateFor, i.Dialling.TotalConnected)
			}
		}
		must(t, b.Disconnect(t.Context(), "alpha", false))
		check(b, "alpha", "disconnected", reconnect.Void, 0, 1)
		check(a, "beta", "disconnected there", reconnect.Listening, 0, 1)
		must(t, b.Connect(t.Context(), "alpha"))
		b.waitUp(2)
		check(b, "alpha", "connected again", reconnect.Active, 0, 2)
		check(a, "beta", "connected again", reconnect.Active, 0, 2)
		a.stop()
		time.Sleep(time.Second)
		if i, _ := b.Node("alpha"); i.Dialling.State != reconnect.Backoff || i.Attempts == 0 || i.Dialling.TotalConnected < 10*time.Second {
			t.Errorf("its peer is gone: %+v", i.Dialling)
		}
		b.stop()
	})
}
