package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

// Words is the health in one line, for a service manager to show.
func (c *Control) Words() string {
	st, err := c.snapshot("")
	if err != nil {
		return "health unknown: " + err.Error()
	}
	what := fmt.Sprintf("%s serves %s", st.Node, count(len(st.Devices), "device"))
	if st.Health == "ok" {
		return what + ", all is well"
	}
	var problems []string
	for _, p := range st.Problems {
		problems = append(problems, p.Subject+": "+p.What)
	}
	return fmt.Sprintf("%s, %s: %s", what, st.Health, strings.Join(problems, "; "))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Dump writes the engine's state for an operator to read.
func (c *Control) Dump(w io.Writer) {
	st, err := c.snapshot("")
	if err != nil {
		fmt.Fprintf(w, "status: %v\n", err)
		return
	}
	fmt.Fprintln(w, statusText(st))
	for _, d := range st.Devices {
		if detail, err := c.deviceShow(context.Background(), rpc.Actor{}, api.DeviceParams{Device: d.Name}); err == nil {
			fmt.Fprintf(w, "\n%s\n", deviceText(detail))
		}
	}
	for _, conn := range c.o.NBD.Stats().Connections {
		fmt.Fprintf(w, "\nnbd client %s of %s since %s, %d requests in flight\n",
			conn.Client.Addr, conn.Export, since(conn.Since), conn.Inflight)
	}
}

// Probe asks the daemon behind a control socket for nothing in particular, the
// way a user's command goes. That it was answered is all that counts: a
// refusal is an answer.
func Probe(ctx context.Context, path string) error {
	c, err := rpc.Dial(ctx, path, rpc.DialOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.Call(ctx, "version", nil, nil)
	if _, refused := errors.AsType[*rpc.Error](err); refused {
		return nil
	}
	return err
}
