package messenger

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestALeaseNeverLapsesWhileAllIsWell: on idle links and on links where other
// frames take the place of pings, and through short cuts' ends.
func TestALeaseNeverLapsesWhileAllIsWell(t *testing.T) {
	for _, c := range []struct {
		name string
		load func(sa, sb *Session, b *block.Batch)
	}{
		{"idle", func(_, _ *Session, _ *block.Batch) {}},
		{"loaded both ways", func(sa, sb *Session, b *block.Batch) {
			for _, s := range []*Session{sa, sb} {
				sendNumber(s, wire.Write, 1, pattern(100), b)
				sendNumber(s, wire.WriteAck, 1, nil, b)
			}
		}},
		{"loaded one way", func(sa, _ *Session, b *block.Batch) { sendNumber(sa, wire.WriteAck, 1, nil, b) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
				sn.delay.Store(int64(2 * time.Millisecond))
				sa, sb := a.waitUp(1), b.waitUp(1)
				time.Sleep(time.Second)
				var batch block.Batch
				for i := range 3000 {
					c.load(sa, sb, &batch)
					batch.Finish()
					time.Sleep(17 * time.Millisecond)
					if sa.LeaseLeft() <= 0 || sb.LeaseLeft() <= 0 {
						t.Fatalf("after %d rounds %v and %v are left", i, sa.LeaseLeft(), sb.LeaseLeft())
					}
				}
				sn.reset("alpha", "beta")
				time.Sleep(time.Second)
				if sa.LeaseLeft() <= 0 || sb.LeaseLeft() <= 0 {
					t.Errorf("after a cut that was mended %v and %v are left", sa.LeaseLeft(), sb.LeaseLeft())
				}
			})
		})
	}
}

// TestALeaseEndsBeforeThePeerGivesUp: whichever way is silent and whenever it
// fell silent, also while tick times change.
func TestALeaseEndsBeforeThePeerGivesUp(t *testing.T) {
	for round := range 60 {
		simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
			sn.delay.Store(int64(time.Millisecond))
			sa, sb := a.waitUp(1), b.waitUp(1)
			outlived := func(of string, s *Session) func(*Session, Reason) {
				return func(_ *Session, r Reason) {
					if left := s.LeaseLeft(); left > 0 {
						t.Errorf("round %d: %s was given up (%v) with %v of its lease left", round, of, r, left)
					}
				}
			}
			a.record(func() { a.onDown = outlived("beta", sb) })
			b.record(func() { b.onDown = outlived("alpha", sa) })
			time.Sleep(5*time.Second + time.Duration(round)*97*time.Millisecond)
			if round%4 == 3 {
				_, _, _ = a.SetTick([]time.Duration{time.Second, 9 * time.Second}[round/4%2], time.Duration(round%5)*time.Second, round%8 == 3)
				time.Sleep(time.Duration(round) * 130 * time.Millisecond)
			}
			if round%3 != 1 {
				sn.stop("alpha", "beta")
			}
			if round%3 != 2 {
				sn.stop("beta", "alpha")
			}
			time.Sleep(40 * time.Second)
			a.wait("down", func() bool { return len(a.log) == 2 && len(a.up) == 0 })
			if sa.LeaseLeft() > 0 || sb.LeaseLeft() > 0 {
				t.Errorf("round %d: sessions that are over have leases", round)
			}
		})
	}
}
