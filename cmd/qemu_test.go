package cmd_test

import (
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// TestQemuRidesOutALostServer lets QEMU's block layer write while the daemon
// it is connected to is killed, and restarted: with reconnect-delay it sends
// again what was not answered, and sees no error.
func TestQemuRidesOutALostServer(t *testing.T) {
	need(t, "qemu-img")
	t.Parallel()
	c := start(t, quick())
	alpha := c.Node("alpha")
	for name, lose := range map[string]func(t *testing.T){
		"killed":    func(t *testing.T) { alpha.Kill9(); launch(t, alpha) },
		"restarted": func(t *testing.T) { restart(t, alpha) },
	} {
		t.Run(name, func(t *testing.T) {
			host := proc.NewHost()
			t.Cleanup(host.Close)
			before, done := writes(t, alpha), make(chan error, 1)
			ctx := within(t, 2*patience)
			go func() {
				_, err := host.Run(ctx, "qemu-img", "bench", "-w", "-c", "60000", "-d", "16", "-s", "4096", "--flush-interval=256", "--image-opts",
					"driver=nbd,server.type=unix,server.path="+alpha.NBD("r0")+",export=r0,reconnect-delay=40")
				done <- err
			}()
			if !poll(ctx, func() bool { return writes(t, alpha) >= before+1000 }) {
				t.Fatal("qemu-img does not write")
			}
			lose(t)
			if err := <-done; err != nil {
				t.Error(err)
			}
			converged(t, c)
		})
	}
}

// restart stops a node's daemon in order and starts it again.
func restart(t *testing.T, n *cluster.Node) {
	t.Helper()
	if err := n.Restart(within(t, patience)); err != nil {
		t.Fatal(err)
	}
}

// writes returns how many writes a node has counted on r0.
func writes(t *testing.T, n *cluster.Node) (count uint64) {
	t.Helper()
	var d struct {
		Writes uint64 `json:"writes"`
	}
	if err := n.Call(within(t, patience), "device/show", []string{"r0"}, &d); err != nil {
		t.Fatal(err)
	}
	return d.Writes
}
