package nbd

import (
	"testing"
	"time"
)

func TestPollsInVainBecomeRare(t *testing.T) {
	s := spinner{limit: time.Microsecond}
	count := func(reads int, inVain bool) (polls int) {
		for range reads {
			if s.next() > 0 {
				polls++
				s.polled(inVain)
			}
		}
		return polls
	}
	if n := count(100, false); n != 100 {
		t.Errorf("%d polls of 100 though each was worth it", n)
	}
	if n := count(10000, true); n > 170 {
		t.Errorf("%d polls of 10000 though all were in vain", n)
	}
	count(1<<maxBackoff, false)
	if n := count(100, false); n != 100 {
		t.Errorf("%d polls of 100 after the client became busy again", n)
	}
	never := spinner{limit: -1}
	if never.next() != 0 {
		t.Error("polled though it is off")
	}
}
