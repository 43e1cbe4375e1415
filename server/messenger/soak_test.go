package messenger

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

var (
	soakSeed  = flag.Uint64("seed", 0, "the first seed of TestSoak; 0: a random one")
	soakSeeds = flag.Int("seeds", 1, "how many seeds TestSoak goes through")
)

// TestSoak runs 32 nodes on a simulated network in virtual time, with cuts,
// stretches of silence, stopped and killed nodes, slow paths, links that overtake
// one another, changes of the tick time, and nodes that leave, join and are
// replaced at random, and checks the history of all that they saw:
//
//   - there is at most one session of a pair at a time, and nodeup and nodedown
//     of it alternate;
//   - each session's frames arrive in order, each once;
//   - what is not told as not acked in the end has arrived;
//   - nobody is given up for silence while its lease lasts;
//   - when all is well again, all are connected.
func TestSoak(t *testing.T) {
	// A thousand sessions in one process have each their buffers; garbage beside
	// them is not for a machine that runs other tests as well.
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	nodes := 32
	if raceDetector {
		nodes = 10 // it takes ten times as long
	}
	first := *soakSeed
	if first == 0 {
		first = rand.Uint64()
	}
	for i := range uint64(*soakSeeds) {
		seed := first + i
		synctest.Test(t, func(t *testing.T) {
			s := &soak{seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), nodes: nodes, steps: 60, sent: make(map[sending]uint64), got: make(map[sending]uint64)}
			s.run(t)
		})
		if t.Failed() {
			t.Fatalf("go test ./server/messenger -run TestSoak -seed %d", seed)
		}
	}
	t.Logf("seeds %d to %d", first, first+uint64(*soakSeeds)-1)
}

// sending is one direction of a session.
type sending struct {
	session  string // as both sides know it
	from, to int
}

type soak struct {
	seed         uint64
	rng          *rand.Rand
	nodes, steps int
	bed          *bed
	net          *simNet
	asleep       map[int]bool
	away         map[int]bool // not configured on the others
	replaced     int

	// mu guards what was sent and received in each session so far.
	mu        sync.Mutex
	sent, got map[sending]uint64
}

func (s *soak) run(t *testing.T) {
	s.asleep, s.away = make(map[int]bool), make(map[int]bool)
	s.bed, s.net = simBed(t, s.nodes, nil)
	s.net.delay.Store(int64(time.Millisecond))
	s.net.slow = s.rng.IntN(2) == 0
	if s.rng.IntN(2) == 0 {
		s.net.lags(s.seed, 30*time.Millisecond)
	}
	for i := range s.nodes {
		s.start(i)
	}
	time.Sleep(5 * time.Second)
	for range s.steps {
		s.step(t)
		s.talk()
		time.Sleep(time.Duration(s.rng.IntN(300)) * time.Millisecond)
	}
	s.net.healAll()
	for _, i := range slices.Sorted(maps.Keys(s.away)) {
		s.join(t, i)
	}
	time.Sleep(3 * time.Minute)
	for _, n := range s.bed.nodes {
		n.mu.Lock()
		if len(n.up) != s.nodes-1 {
			t.Errorf("node %s has %d sessions in the end", n.name, len(n.up))
		}
		n.mu.Unlock()
	}
	s.talk()
	time.Sleep(10 * time.Second)
	s.mu.Lock()
	for d, n := range s.sent {
		if s.bed.nodes[d.from].sessionID(d.to) == d.session && s.got[d] != n {
			t.Errorf("%s: %d of %d frames have arrived", d.session, s.got[d], n)
		}
	}
	s.mu.Unlock()
	for _, n := range s.bed.nodes {
		n.stop()
		checkEvents(t, n)
	}
}

func (n *node) sessionID(peer int) string {
	if s := n.Session(peer); s != nil {
		return s.key()
	}
	return ""
}

// key is the session's name, the same on both sides.
func (s *Session) key() string { return fmt.Sprintf("%016x-%016x", s.cookie, s.answer) }

// step does one thing to the cluster.
func (s *soak) step(t *testing.T) {
	i, j := s.rng.IntN(s.nodes), s.rng.IntN(s.nodes)
	from, to := nodeName(i), nodeName(j)
	switch s.rng.IntN(16) {
	case 0, 1:
		s.net.reset(from, to)
	case 2:
		s.net.stop(from, to)
	case 3, 4:
		s.net.heal(from, to)
		s.net.heal(to, from)
	case 5: // a broken cable
		for k := range s.nodes {
			s.net.reset(from, nodeName(k))
		}
	case 6: // a node that stops, and goes on later
		s.sleep(i, !s.asleep[i])
	case 7:
		if len(s.asleep) > 0 {
			s.sleep(slices.Min(slices.Collect(maps.Keys(s.asleep))), false)
		}
	case 8:
		if s.rng.IntN(2) == 0 {
			crash(s.bed.nodes[i])
		} else {
			s.bed.nodes[i].stop()
		}
		checkEvents(t, s.bed.nodes[i])
		s.start(i)
	case 9:
		_, _, _ = s.bed.nodes[i].SetTick(time.Duration(500+s.rng.IntN(8000))*time.Millisecond, time.Duration(s.rng.IntN(10))*time.Second, s.rng.IntN(2) == 0)
	case 10:
		must(t, s.bed.nodes[i].Reconnect(t.Context(), ""))
	case 11:
		s.net.delay.Store(int64(time.Duration(s.rng.IntN(50)) * time.Millisecond))
	case 12:
		if s.away[i] {
			s.join(t, i)
		} else {
			s.leave(t, i)
		}
	case 13: // by another host under the same id
		s.leave(t, i)
		s.bed.nodes[i].stop()
		checkEvents(t, s.bed.nodes[i])
		s.replaced++
		s.bed.opts[i].NodeName = fmt.Sprintf("%s-%d", nodeName(i), s.replaced)
		if s.rng.IntN(2) == 0 { // it is there before the others know it, or after
			s.start(i)
			s.join(t, i)
		} else {
			s.join(t, i)
			s.start(i)
		}
	default:
		time.Sleep(time.Duration(s.rng.IntN(8000)) * time.Millisecond)
	}
}

// leave takes a node out of the configuration of all others, one after the
// other, as they read theirs.
func (s *soak) leave(t *testing.T, i int) {
	if s.away[i] {
		return
	}
	s.away[i] = true
	for _, j := range s.rng.Perm(s.nodes) {
		if j == i {
			continue
		}
		must(t, s.bed.nodes[j].RemoveNode(t.Context(), s.bed.opts[i].NodeName))
		o := &s.bed.opts[j]
		o.Peers = slices.DeleteFunc(slices.Clone(o.Peers), func(p Peer) bool { return p.ID == i })
		time.Sleep(time.Duration(s.rng.IntN(20)) * time.Millisecond)
	}
}

// join is the reverse.
func (s *soak) join(t *testing.T, i int) {
	delete(s.away, i)
	p := Peer{Name: s.bed.opts[i].NodeName, ID: i, Address: nodeName(i)}
	for _, j := range s.rng.Perm(s.nodes) {
		if j == i {
			continue
		}
		must(t, s.bed.nodes[j].AddNode(p))
		s.bed.opts[j].Peers = append(s.bed.opts[j].Peers, p)
		time.Sleep(time.Duration(s.rng.IntN(20)) * time.Millisecond)
	}
}

// sleep stops or restarts all that a node says and hears.
func (s *soak) sleep(i int, on bool) {
	for k := range s.nodes {
		if a, b := nodeName(i), nodeName(k); on {
			s.net.stop(a, b)
			s.net.stop(b, a)
		} else {
			s.net.heal(a, b)
			s.net.heal(b, a)
		}
	}
	if s.asleep[i] = on; !on {
		delete(s.asleep, i)
	}
}

// talk sends a frame over every session.
func (s *soak) talk() {
	for i, n := range s.bed.nodes {
		for j := range s.nodes {
			x := n.Session(j)
			if x == nil {
				continue
			}
			d := sending{x.key(), i, j}
			s.mu.Lock()
			no := s.sent[d] + 1
			s.mu.Unlock()
			sendNumber(x, wire.Write, no, pattern(100), nil)
			// What is sent into a session that ends may be dropped.
			if x.Alive() {
				s.mu.Lock()
				s.sent[d] = no
				s.mu.Unlock()
			}
		}
	}
}

func (s *soak) start(i int) {
	n := s.bed.start(i)
	n.record(func() {
		n.frame = func(x *Session, f *wire.Frame, _ *block.Batch) {
			d := sending{x.key(), x.PeerID(), i}
			s.mu.Lock()
			s.got[d]++
			want := s.got[d]
			s.mu.Unlock()
			if f.Arg[0] != want {
				n.blame("frame %d from node %d is number %d", want, d.from, f.Arg[0])
			}
		}
		n.onDown = func(x *Session, r Reason) { s.ended(n, i, x, r) }
	})
}

// blame notes a broken promise; the first one counts.
func (n *node) blame(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fault == "" {
		n.fault = fmt.Sprintf(format, args...)
	}
}

// ended checks a session that is over, from within SessionDown.
func (s *soak) ended(n *node, i int, x *Session, r Reason) {
	left := uint64(0)
	for range x.Unacked(wire.Data) {
		left++
	}
	d := sending{x.key(), i, x.PeerID()}
	s.mu.Lock()
	sent, got := s.sent[d], s.got[d]
	s.mu.Unlock()
	if got+left < sent {
		n.blame("of %d frames to node %d %d arrived and %d were told as not acked", sent, d.to, got, left)
	}
	if r.Code != ReasonTimeout || !strings.HasPrefix(r.Text, "nothing was heard") {
		return
	}
	if p := s.bed.nodes[d.to].Session(i); p != nil && p.key() == d.session && p.LeaseLeft() > 0 {
		n.blame("node %d is given up (%v) with %v of its lease left", d.to, r, p.LeaseLeft())
	}
}
