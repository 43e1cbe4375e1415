package messenger

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
	"go.uber.org/goleak"
)

// childEnv makes the test binary a node of its own:
// ID TICK PEER-ID PEER-ADDRESS. It inherits its listener.
const childEnv = "LOCKSTEP_MESSENGER_CHILD"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		if err := child(strings.Fields(args)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// answering is the handler of a child: it answers every Write.
type answering struct{}

func (answering) SessionUp(*Session)           {}
func (answering) SessionDown(*Session, Reason) {}
func (answering) HandleFrame(s *Session, f *wire.Frame, b *block.Batch) {
	if f.Type == wire.Write {
		s.Send(&wire.Header{Type: wire.WriteAck, Arg: f.Arg}, nil, nil, b)
	}
}

func child(args []string) error {
	id, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	tick, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	peer, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	ln, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	m, err := New(Options{
		Cluster: "test", NodeName: nodeName(id), NodeID: id, Secrets: [][]byte{testSecret}, Tick: tick,
		Listener: ln, Handler: answering{},
		Peers:  []Peer{{Name: nodeName(peer), ID: peer, Address: args[3]}},
		Paused: func(d time.Duration) { fmt.Println("paused", d) },
		Events: func(e cluster.Event) { fmt.Println(e.Type, e.Reason) },
	})
	if err != nil {
		return err
	}
	if err := m.Start(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
	return m.Close(context.Background())
}

// spawn starts a child with the id given and a node here with the other one of
// 0 and 1, and waits until they are connected.
func spawn(t testing.TB, childID int, tick time.Duration) (*node, *exec.Cmd) {
	t.Helper()
	n, cmds := spawnAll(t, 2, 1-childID, tick)
	return n, cmds[childID]
}

// spawnAll starts a node here with the id given and children with all other
// ids below nodes, which know the node here alone, and waits until it is
// connected with each. The children are by id.
func spawnAll(t testing.TB, nodes, here int, tick time.Duration) (*node, []*exec.Cmd) {
	t.Helper()
	bed := newBed(t, nodes, func(_ int, o *Options) { o.Tick = tick })
	n := bed.start(here)
	cmds := make([]*exec.Cmd, nodes)
	for id := range nodes {
		if id != here {
			cmds[id] = startChild(t, bed.opts[id].Listener.(*net.TCPListener), fmt.Sprintf("%d %v %d %s", id, tick, here, n.Addr()))
		}
	}
	n.wait("all sessions", func() bool { return len(n.up) == nodes-1 })
	return n, cmds
}

func startChild(t testing.TB, ln *net.TCPListener, args string) *exec.Cmd {
	t.Helper()
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+args)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The listener is the child's alone from here on, and dies with it.
	file.Close()
	ln.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// TestAKilledProcessIsSeenAtOnce: the sockets of a killed process are closed
// by the kernel, and the peer does not wait for the tick time. With writes
// under way it may be resets rather than ends of file that tell.
func TestAKilledProcessIsSeenAtOnce(t *testing.T) {
	for _, childID := range []int{0, 1} {
		for _, load := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s load=%t", nodeName(childID), load), func(t *testing.T) {
				n, cmd := spawn(t, childID, time.Minute)
				s := n.waitUp(1)
				if load {
					for i := range uint64(2000) {
						sendNumber(s, wire.Write, i, pattern(60000), nil)
					}
				}
				start := time.Now()
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				n.wait("down", func() bool { return slices.Contains(n.log, "down connection-closed") })
				t.Logf("seen after %v", time.Since(start))
			})
		}
	}
}

// TestAStoppedProcessIsSilent is SIGSTOP: its kernel goes on acking, and only
// the pings tell. Resumed, it finds that it was away, and connects again.
func TestAStoppedProcessIsSilent(t *testing.T) {
	const tick = 600 * time.Millisecond
	for _, childID := range []int{0, 1} {
		t.Run(nodeName(childID), func(t *testing.T) {
			n, cmd := spawn(t, childID, tick)
			start := time.Now()
			if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			n.wait("down", func() bool { return slices.Contains(n.log, "down tick-timeout") })
			if d := time.Since(start); d < tick/2 {
				t.Errorf("seen after only %v", d)
			} else {
				t.Logf("seen after %v", d)
			}
			if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			n.waitUp(2)
		})
	}
}

var long = flag.Bool("long", false, "measure at longer tick times too")

// TestStoppedProcessesAreFoundWithinTheWindow stops ten peers at random phases
// of their pings. Each is found after more than T since its last frame, and
// T + T/I at the latest, unless this process itself was kept from running.
func TestStoppedProcessesAreFoundWithinTheWindow(t *testing.T) {
	ticks := []time.Duration{time.Second}
	if *long {
		ticks = append(ticks, 4*time.Second, 8*time.Second)
	}
	for _, tick := range ticks {
		t.Run(tick.String(), func(t *testing.T) {
			t.Parallel()
			stopAtPhases(t, tick)
		})
	}
}

func stopAtPhases(t *testing.T, tick time.Duration) {
	const peers = 10
	interval := tick / DefaultPingCount
	n, cmds := spawnAll(t, peers+1, peers, tick)
	heard := make(map[int]time.Duration) // for how long nothing was, when it was given up
	n.record(func() {
		n.onDown = func(s *Session, r Reason) {
			d, err := time.ParseDuration(strings.TrimPrefix(r.Text, "nothing was heard for "))
			if err != nil || r.Code != ReasonTimeout {
				t.Errorf("peer %d: %v", s.PeerID(), r)
			}
			n.record(func() { heard[s.PeerID()] = d })
		}
	})
	stopped := make([]time.Time, peers)
	for i := range peers {
		ctx, cancel := context.WithTimeout(t.Context(), rand.N(interval))
		<-ctx.Done()
		cancel()
		stopped[i] = time.Now()
		must(t, cmds[i].Process.Signal(syscall.SIGSTOP))
	}
	n.wait("all down", func() bool { return len(heard) == peers })
	var after []time.Duration
	waitFor(t, "the events", func() bool { return n.countEvents(cluster.NodeDown) == peers })
	for _, e := range n.eventsOf(cluster.NodeDown) {
		after = append(after, e.Time.Sub(stopped[e.ID]).Round(time.Millisecond))
	}
	slices.Sort(after)
	t.Logf("T = %v: seen after %v", tick, after)
	paused := n.countEvents(cluster.HostPaused)
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, d := range heard {
		if d < tick || d > tick+interval && paused == 0 {
			t.Errorf("peer %d was given up after %v of silence at T = %v", id, d, tick)
		}
	}
}

// BenchmarkKill is how long it takes until the end of a peer's process is seen.
func BenchmarkKill(b *testing.B) {
	for _, load := range []bool{false, true} {
		b.Run(map[bool]string{false: "idle", true: "loaded"}[load], func(b *testing.B) {
			var total, worst time.Duration
			for b.Loop() {
				n, cmd := spawn(b, 0, time.Minute)
				s := n.waitUp(1)
				for i := range uint64(2000) {
					if load {
						sendNumber(s, wire.Write, i, pattern(60000), nil)
					}
				}
				start := time.Now()
				if err := cmd.Process.Kill(); err != nil {
					b.Fatal(err)
				}
				n.wait("down", func() bool { return len(n.log) == 2 })
				d := time.Since(start)
				total, worst = total+d, max(worst, d)
				n.stop()
			}
			b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/kill")
			b.ReportMetric(float64(worst.Microseconds())/1000, "ms-worst")
		})
	}
}
