package ctl

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/stream"
	"github.com/lockstepd/lockstep/rpc/stream/certtest"
)

// TestOverTheNetwork reaches a daemon on another host by ssl:, and says what is
// missing where it can't.
func TestOverTheNetwork(t *testing.T) {
	ca := certtest.New(t, t.TempDir())
	ca.Issue(t, "alpha", net.IPv4(127, 0, 0, 1))
	id, err := stream.NewIdentity(stream.Files{Cert: ca.Cert("alpha"), Key: ca.Key("alpha"), CA: ca.CA()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := stream.Listen("pssl:0:127.0.0.1", stream.Options{TLS: id})
	if err != nil {
		t.Fatal(err)
	}
	reg, err := rpc.NewRegistry(commands()...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- rpc.NewServer(rpc.ServerOptions{Registry: reg, Program: "lockstepd", Version: "9.9",
			Authorize: rpc.Policy{AdminNames: []string{"admin"}}.Role}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	target := "-t ssl:" + l.Addr().String()
	flags := func(a *certtest.Authority) string {
		a.Issue(t, "admin")
		return " --certificate " + a.Cert("admin") + " --private-key " + a.Key("admin") + " --ca-cert " + a.CA()
	}
	known, foreign := flags(ca), flags(certtest.New(t, t.TempDir()))
	for name, c := range map[string]struct {
		line string
		code int
		says string
	}{
		"known":          {target + known + " status", 0, "alpha (id 0): healthy"},
		"no certificate": {target + " status", 3, "TLS needs to know who you are and whom to trust; give --certificate, --private-key and --ca-cert"},
		"no file":        {target + " --certificate /x --private-key /x --ca-cert /x status", 3, "/x: no such file or directory"},
		"not trusted":    {target + foreign + " status", 3, "see whether --ca-cert is the one that signed"},
		"nobody there":   {"-t ssl:127.0.0.1:1" + known + " status", 3, "connection refused; see whether it listens there ([control] listen), or name another address with -t"},
		"odd class":      {"-t foo:bar status", 3, "cannot reach foo:bar: "},
	} {
		var out, errs lockedBuffer
		e := OS(testRelease)
		e.Out, e.Err, e.OutTerm, e.ErrTerm = &out, &errs, nil, nil
		if code := Main(strings.Fields(c.line), e); code != c.code || !strings.Contains(out.String()+errs.String(), c.says) {
			t.Errorf("%s: exit %d\nout: %s\nerr: %s\nwant %s", name, code, out.String(), errs.String(), c.says)
		}
	}
}
