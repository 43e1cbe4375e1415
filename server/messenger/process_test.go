package messenger

import (
	"context"
	"fmt"
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
// ID TICK LISTEN PEER-ID PEER-ADDRESS.
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
	peer, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	m, err := New(Options{
		Cluster: "test", NodeName: nodeName(id), NodeID: id, Secrets: [][]byte{testSecret}, Tick: tick,
		Listen: Binding{Address: args[2]}, Handler: answering{},
		Peers:  []Peer{{Name: nodeName(peer), ID: peer, Address: args[4]}},
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
func spawn(t *testing.T, childID int, tick time.Duration) (*node, *exec.Cmd) {
	t.Helper()
	reserve, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	childAddr := reserve.Addr().String()
	reserve.Close()
	here := 1 - childID
	bed := newBed(t, 2, func(i int, o *Options) {
		o.Tick = tick
		if i == here {
			o.Peers = []Peer{{Name: nodeName(childID), ID: childID, Address: childAddr}}
		} else {
			o.Listener.Close()
		}
	})
	n := bed.start(here)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %v %s %d %s", childEnv, childID, tick, childAddr, here, n.Addr()))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	n.waitUp(1)
	return n, cmd
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
