package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
)

// pipeListener hands out the server's ends of in-memory connections, for tests
// in virtual time.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// connect returns the client's end of a new connection.
func (l *pipeListener) connect() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return ours
}

func everybody(Actor) Role { return Administrator }

// servePipe starts a server in virtual time.
func servePipe(t *testing.T, o ServerOptions, cmds ...Command) (*testServer, *pipeListener) {
	t.Helper()
	ln := newPipeListener()
	o.Authorize = everybody
	return serveOn(t, ln, "", o, cmds...), ln
}

func send(t *testing.T, nc net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(nc, text); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, nc net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(nc, got); string(got) != want {
		t.Fatalf("received %.300q, %v\nwant %.300q", got[:n], err, want)
	}
}

func TestDeadlines(t *testing.T) {
	for _, tt := range []struct {
		name     string
		deadline time.Duration
		want     time.Duration
		text     string
	}{
		{"default", 0, 10 * time.Second, "10s"},
		{"its own", 90 * time.Second, 90 * time.Second, "1m30s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBlocking("block", tt.deadline)
				s, ln := servePipe(t, ServerOptions{}, b.Command)
				nc := ln.connect()
				start := time.Now()
				send(t, nc, `{"id":1,"method":"block","params":[]}`)
				expect(t, nc, `{"id":1,"error":"\"block\" timed out after `+tt.text+`\n"}`)
				send(t, nc, `{"jsonrpc":"2.0","id":2,"method":"block"}`)
				expect(t, nc, fmt.Sprintf(`{"jsonrpc":"2.0","id":2,"error":{"code":-32002,"message":"\"block\" timed out after %s",`+
					`"data":{"limit":"deadline_ms","value":%d}}}`+"\n", tt.text, tt.want.Milliseconds()))
				if took := time.Since(start); took != 2*tt.want {
					t.Errorf("answered after %v", took)
				}
				if n := s.Stats().Timeouts; n != 2 {
					t.Errorf("%d timeouts are counted", n)
				}
				nc.Close()
			})
		})
	}
}

func TestNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlocking("block", NoDeadline)
		_, ln := servePipe(t, ServerOptions{}, b.Command)
		nc := ln.connect()
		send(t, nc, `{"id":1,"method":"block","params":[]}`)
		<-b.began
		time.Sleep(24 * time.Hour)
		select {
		case err := <-b.ended:
			t.Errorf("it ended: %v", err)
		default:
		}
		nc.Close()
		if err := <-b.ended; !errors.Is(err, &api.Error{Code: api.CodeCancelled}) {
			t.Errorf("it ended because of %v", err)
		}
	})
}

// A handler that does not heed its context keeps neither its client waiting
// nor the next request, and is named when the server stops.
func TestHandlerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		hang := Command{Name: "hang", Doc: "Hang.", Do: Text(func(context.Context, Actor, []string) (string, error) {
			<-release
			return "late", nil
		})}
		s, ln := servePipe(t, ServerOptions{}, hang)
		nc := ln.connect()
		send(t, nc, `{"id":1,"method":"hang","params":[]}{"id":2,"method":"echo","params":["next"]}`)
		expect(t, nc, `{"id":1,"error":"\"hang\" timed out after 10s\n"}{"id":2,"result":"next\n","error":null}`)
		if n := s.Stats().InProgress; n != 1 {
			t.Errorf("%d commands are in progress", n)
		}
		err := s.stop()
		if err == nil || err.Error() != "0 connections do not end; commands in progress: hang" {
			t.Errorf("Serve returned %v", err)
		}
		close(release)
		s.stop = func() error { return nil }
		nc.Close()
		synctest.Wait()
	})
}

func TestTooManyCommandsInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlocking("block", 0)
		_, ln := servePipe(t, ServerOptions{Limits: Limits{Running: 1}}, b.Command)
		first, second := ln.connect(), ln.connect()
		send(t, first, `{"id":1,"method":"block","params":[]}`)
		<-b.began
		send(t, second, `{"id":1,"method":"echo","params":[]}`)
		expect(t, second, `{"id":1,"error":"the daemon is busy with 1 commands; try again later\n"}`)
		first.Close()
		<-b.ended
		synctest.Wait()
		send(t, second, `{"id":2,"method":"echo","params":[]}`)
		expect(t, second, `{"id":2,"result":"","error":null}`)
		second.Close()
	})
}

// Requests beyond a connection's limit wait for a second, and are refused then.
func TestTooManyRequestsOfOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlocking("block", 0)
		_, ln := servePipe(t, ServerOptions{Limits: Limits{InProgress: 2}}, b.Command)
		nc := ln.connect()
		start := time.Now()
		for i := range 3 {
			send(t, nc, fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"block"}`, i))
		}
		expect(t, nc, `{"jsonrpc":"2.0","id":2,"error":{"code":-32003,"message":"2 requests of this connection are in progress; wait for one of them",`+
			`"data":{"limit":"in_progress","value":2}}}`+"\n")
		if took := time.Since(start); took != time.Second {
			t.Errorf("refused after %v", took)
		}
		nc.Close()
	})
}

// A client may send any number of requests at once, as long as they are quick.
func TestPipelinedModernRequestsAreNotRefused(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{InProgress: 2}})
	const n = 2000
	var in strings.Builder
	for i := range n {
		fmt.Fprintf(&in, `{"jsonrpc":"2.0","id":%d,"method":"echo","params":["%d"]}`+"\n", i, i)
	}
	dec := json.NewDecoder(strings.NewReader(s.exchange(t, in.String())))
	for range n {
		var r struct {
			ID     int
			Result string
		}
		if err := dec.Decode(&r); err != nil || fmt.Sprint(r.ID) != r.Result {
			t.Fatalf("%+v, %v", r, err)
		}
	}
}

func TestClientThatGoesAwayCancelsItsCommand(t *testing.T) {
	for name, request := range map[string]string{
		"unixctl":           `{"id":1,"method":"block","params":[]}`,
		"JSON-RPC 2.0":      `{"jsonrpc":"2.0","id":1,"method":"block"}`,
		"with more to come": `{"id":1,"method":"block","params":[]}` + strings.Repeat(`{"id":2,"method":"echo","params":[]}`, 10),
		"with much to come": `{"id":1,"method":"block","params":[]}` + strings.Repeat(`{"id":2,"method":"echo","params":[]}`, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBlocking("block", time.Hour)
			s := serve(t, ServerOptions{}, b.Command)
			r := s.raw(t)
			r.send(request)
			receive(t, b.began, "the command to begin")
			r.Close()
			if err := receive(t, b.ended, "the command to be cancelled"); !errors.Is(err, &api.Error{Code: api.CodeCancelled}) {
				t.Errorf("it ended because of %v", err)
			}
		})
	}
}

// Closing the sending half is not going away: the reply is still wanted. Going
// away after that is.
func TestHalfClosedClientGetsItsReply(t *testing.T) {
	b := newBlocking("block", time.Hour)
	release := make(chan struct{})
	slow := Command{Name: "slow", Doc: "Wait.", Do: Text(func(context.Context, Actor, []string) (string, error) {
		b.began <- struct{}{}
		<-release
		return "done", nil
	})}
	s := serve(t, ServerOptions{}, b.Command, slow)

	r := s.raw(t)
	r.send(`{"id":1,"method":"slow","params":[]}`)
	r.CloseWrite()
	receive(t, b.began, "the command to begin")
	close(release)
	if got := r.all(); got != `{"id":1,"result":"done\n","error":null}` {
		t.Errorf("received %q", got)
	}

	r = s.raw(t)
	r.send(`{"id":1,"method":"block","params":[]}`)
	r.CloseWrite()
	receive(t, b.began, "the command to begin")
	r.Close()
	receive(t, b.ended, "the command to be cancelled")
}

func TestTooManyConnections(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{Connections: 2}})
	var held []*raw
	for range 2 {
		r := s.raw(t)
		r.send(`{"id":0,"method":"echo","params":[]}`)
		r.expect(`{"id":0,"result":"","error":null}`)
		held = append(held, r)
	}
	const text = `the daemon has 2 control connections, as many as it takes; try again later`
	if got := s.exchange(t, `{"id":7,"method":"echo","params":[]}`); got != `{"id":7,"error":"`+text+`\n"}` {
		t.Errorf("unixctl: %s", got)
	}
	if got := s.exchange(t, `{"jsonrpc":"2.0","id":"x","method":"echo"}`); got != `{"jsonrpc":"2.0","id":"x","error":{"code":-32003,"message":"`+text+
		`","data":{"limit":"connections","value":2}}}`+"\n" {
		t.Errorf("JSON-RPC 2.0: %s", got)
	}
	if got := s.exchange(t, ``); !strings.Contains(got, `"id":null`) {
		t.Errorf("a client that says nothing: %s", got)
	}
	if _, stderr, code := appctl(t, s.path, "echo", "x"); code != 2 || !strings.HasPrefix(stderr, text+"\n") {
		t.Errorf("the stock client: exit %d, %q", code, stderr)
	}
	c := s.dial(t, DialOptions{})
	if err := c.Call(t.Context(), "echo", nil, nil); !errors.Is(err, &Error{Code: api.CodeBusy}) {
		t.Errorf("our client: %v", err)
	}
	if n := s.Stats().Refused; n != 5 {
		t.Errorf("%d refusals are counted", n)
	}

	held[0].Close()
	for { // the place is free once the server has noticed
		if got := s.exchange(t, `{"id":7,"method":"echo","params":[]}`); !strings.Contains(got, "try again later") {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the place is never free")
		}
	}
}

// The refusal reaches the client even while it is still sending.
func TestRefusedClientThatSendsALot(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{Connections: 1}})
	held := s.raw(t)
	held.send(`{"id":0,"method":"echo","params":[]}`)
	held.expect(`{"id":0,"result":"","error":null}`)
	got := s.exchange(t, strings.Repeat(`{"id":0,"method":"echo","params":["`+strings.Repeat("x", 1000)+`"]}`, 2000))
	if !strings.HasPrefix(got, `{"id":0,"error":"the daemon has 1 control connections`) {
		t.Errorf("received %.200q", got)
	}
}

func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := servePipe(t, ServerOptions{})
		nc := ln.connect()
		send(t, nc, `{"id":1,"method":"echo","params":["x"]}`)
		for wait, want := range map[time.Duration]uint64{10*time.Second - 1: 0, 10*time.Second + 1: 1} {
			time.AfterFunc(wait, func() {
				if n := s.Stats().CutOff; n != want {
					t.Errorf("%d are cut off after %v", n, wait)
				}
			})
		}
		time.Sleep(11 * time.Second)
		if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the connection is still open: %v", err)
		}
		if !strings.Contains(s.log.String(), "its client does not read") {
			t.Errorf("the log does not say so:\n%s", s.log)
		}
	})
}

// A client that reads slowly gets all of a large result.
func TestSlowReaderGetsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := strings.Repeat("x", 512<<10)
		_, ln := servePipe(t, ServerOptions{}, Command{Name: "large", Doc: "Answer much.",
			Do: Text(func(context.Context, Actor, []string) (string, error) { return text, nil })})
		nc := ln.connect()
		send(t, nc, `{"jsonrpc":"2.0","id":1,"method":"large"}`)
		want := `{"jsonrpc":"2.0","id":1,"result":"` + text + `"}` + "\n"
		for len(want) > 0 {
			time.Sleep(4 * time.Second) // in all far beyond the write deadline
			n := min(len(want), 40<<10)
			expect(t, nc, want[:n])
			want = want[n:]
		}
		nc.Close()
	})
}

func TestNotifications(t *testing.T) {
	subscribed := make(chan *Notifier, 1)
	sub := Command{Name: "events/subscribe", Doc: "Subscribe.",
		Do: Typed(func(ctx context.Context, _ Actor, _ struct{}) (api.Subscribed, error) {
			n, ok := NotifierFrom(ctx)
			if !ok {
				return api.Subscribed{}, errors.New("no notifier")
			}
			subscribed <- n
			return api.Subscribed{Seq: 1}, Notify(ctx, "event", api.Lost{Count: 1})
		}, nil)}
	s := serve(t, ServerOptions{}, sub)

	got := make(chan string, 10)
	c := s.dial(t, DialOptions{Notify: func(method string, params json.RawMessage) { got <- method + string(params) }})
	if err := c.Call(t.Context(), "events/subscribe", nil, nil); err != nil {
		t.Fatal(err)
	}
	n := receive(t, subscribed, "the subscription")
	err := n.Notify("event", map[string]int{"seq": 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`event{"count":1,"from":0,"to":0}`, `event{"seq":2}`} {
		if g := receive(t, got, "a notification"); g != want {
			t.Errorf("%s, want %s", g, want)
		}
	}
	c.Close()
	receive(t, n.Done(), "the end of the connection")
	for err = nil; !errors.Is(err, ErrGone); err = n.Notify("event", nil) { // once the writer has noticed
		if t.Context().Err() != nil {
			t.Fatalf("a notification to nobody: %v", err)
		}
	}

	// To a client of the unixctl dialect in its own form, which the stock
	// client passes over.
	r := s.raw(t)
	r.send(`{"id":1,"method":"events/subscribe","params":[]}`)
	r.expect(`{"id":null,"method":"event","params":[{"count":1,"from":0,"to":0}]}{"id":1,"result":"{`)
	<-subscribed
	if stdout, stderr, code := appctl(t, s.path, "events/subscribe"); code != 0 {
		t.Errorf("the stock client: exit %d, %s%s", code, stdout, stderr)
	}
}

// A subscriber that does not read is told nothing more than fits its queue,
// without anybody waiting, and hears when there is room again.
func TestNotificationsToAClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subscribed := make(chan *Notifier, 1)
		sub := Command{Name: "subscribe", Doc: "Subscribe.", Do: Text(func(ctx context.Context, _ Actor, _ []string) (string, error) {
			n, _ := NotifierFrom(ctx)
			subscribed <- n
			return "", nil
		})}
		s, ln := servePipe(t, ServerOptions{Limits: Limits{QueueBytes: 1000}}, sub)
		nc := ln.connect()
		send(t, nc, `{"jsonrpc":"2.0","id":1,"method":"subscribe"}`)
		expect(t, nc, `{"jsonrpc":"2.0","id":1,"result":""}`+"\n")
		n := <-subscribed
		note, err := NewNotification("event", strings.Repeat("x", 100))
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		for err == nil {
			if err = n.Send(note); err == nil {
				sent++
			}
			synctest.Wait() // the writer takes the first and waits for the client
		}
		if !errors.Is(err, ErrFull) || sent > 10 || s.Stats().Dropped != 1 {
			t.Fatalf("after %d: %v, %d dropped", sent, err, s.Stats().Dropped)
		}
		for range sent {
			expect(t, nc, string(note.modern))
		}
		<-n.Room()
		if err := n.Send(note); err != nil {
			t.Errorf("with room again: %v", err)
		}
		expect(t, nc, string(note.modern))
		synctest.Wait()
		sent, err = n.SendAll(slices.Repeat([]*Notification{note}, 20))
		if !errors.Is(err, ErrFull) || sent != 1000/len(note.modern) {
			t.Errorf("%d of 20 were taken: %v", sent, err)
		}
		for range sent {
			expect(t, nc, string(note.modern))
		}
		nc.Close()
	})
}

// Goroutines of a connection end with it, and are bounded.
func TestGoroutinesOfASubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 2*maxFollowers)
		sub := Command{Name: "subscribe", Doc: "Subscribe.", Do: Text(func(ctx context.Context, _ Actor, _ []string) (string, error) {
			n, _ := NotifierFrom(ctx)
			return "", n.Go(func(ctx context.Context) {
				<-ctx.Done()
				ended <- context.Cause(ctx)
			})
		})}
		s, ln := servePipe(t, ServerOptions{}, sub)
		nc := ln.connect()
		for range maxFollowers {
			send(t, nc, `{"jsonrpc":"2.0","id":1,"method":"subscribe"}`)
			expect(t, nc, `{"jsonrpc":"2.0","id":1,"result":""}`+"\n")
		}
		send(t, nc, `{"id":1,"method":"subscribe","params":[]}`)
		expect(t, nc, `{"id":1,"error":"the connection has 16 subscriptions, as many as it may\n"}`)
		nc.Close()
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if n := len(ended); n != maxFollowers {
			t.Errorf("%d have ended", n)
		}
	})
}

// A subscriber that closed its sending half is still notified, until it is gone.
func TestHalfClosedSubscriber(t *testing.T) {
	ended := make(chan error, 1)
	tick := make(chan struct{})
	sub := Command{Name: "subscribe", Doc: "Subscribe.", Do: Text(func(ctx context.Context, _ Actor, _ []string) (string, error) {
		n, _ := NotifierFrom(ctx)
		return "", n.Go(func(ctx context.Context) {
			for {
				select {
				case <-tick:
					n.Notify("event", []int{1})
				case <-ctx.Done():
					ended <- context.Cause(ctx)
					return
				}
			}
		})
	})}
	s := serve(t, ServerOptions{}, sub)
	r := s.raw(t)
	r.send(`{"jsonrpc":"2.0","id":1,"method":"subscribe"}`)
	r.CloseWrite()
	r.expect(`{"jsonrpc":"2.0","id":1,"result":""}` + "\n")
	for range 3 {
		tick <- struct{}{}
		r.expect(`{"jsonrpc":"2.0","method":"event","params":[1]}` + "\n")
	}
	r.Close()
	if err := receive(t, ended, "the subscription to end"); !errors.Is(err, &api.Error{Code: api.CodeCancelled}) {
		t.Errorf("it ended because of %v", err)
	}
}

// A client that does not read does not keep the server from stopping.
func TestStopWhileAClientDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := servePipe(t, ServerOptions{Limits: Limits{QueueBytes: 1}})
		nc := ln.connect()
		send(t, nc, strings.Repeat(`{"id":1,"method":"echo","params":["x"]}`, 10))
		synctest.Wait()
		start := time.Now()
		if err := s.stop(); err != nil || time.Since(start) > 2*lastWord {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		nc.Close()
	})
}

// Commands that hang, on any number of connections, hold up no other.
func TestHungCommandsHoldUpNobodyElse(t *testing.T) {
	b := newBlocking("block", time.Hour)
	s := serve(t, ServerOptions{}, b.Command)
	const n = 200
	for range n {
		s.raw(t).send(`{"id":1,"method":"block","params":[]}`)
	}
	for range n {
		receive(t, b.began, "the commands to begin")
	}
	if got := s.exchange(t, `{"id":1,"method":"echo","params":["x"]}`); got != `{"id":1,"result":"x\n","error":null}` {
		t.Errorf("received %s", got)
	}
}

// Remote clients are known by the name in their certificate.
func TestRolesByCertificate(t *testing.T) {
	ln := newPipeListener()
	s := serveOn(t, ln, "", ServerOptions{Authorize: Policy{AdminNames: []string{"boss"}, ReadNames: []string{"eye"}}.Role})
	for name, want := range map[string]string{
		"boss": `{"id":1,"result":"boss admin\n","error":null}`,
		"eye":  `{"id":1,"result":"eye read\n","error":null}`,
		"else": `{"id":1,"error":"\"whoami\" needs the read role; certificate \"else\" has no role\n"}`,
		"":     `{"id":1,"error":"\"whoami\" needs the read role; an unknown user has no role\n"}`,
	} {
		ours, theirs := net.Pipe()
		ln.conns <- certified{theirs, name}
		send(t, ours, `{"id":1,"method":"whoami","params":[]}`)
		expect(t, ours, want)
		ours.Close()
	}
	ours, theirs := net.Pipe()
	ln.conns <- certified{theirs, "unshaken"}
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a failed handshake is served: %v", err)
	}
	s.stop()
	if !strings.Contains(s.log.String(), "TLS handshake: bad certificate") {
		t.Errorf("the log:\n%s", s.log)
	}
}

// certified is a connection whose other side proves its name.
type certified struct {
	net.Conn
	name string
}

func (c certified) PeerName() string { return c.name }

func (c certified) HandshakeContext(context.Context) error {
	if c.name == "unshaken" {
		return errors.New("bad certificate")
	}
	return nil
}

func TestStopSendsTheRepliesOfCommandsInProgress(t *testing.T) {
	var s *testServer
	stopping := make(chan struct{})
	exit := Command{Name: "exit", Doc: "Stop the daemon.", Access: Admin, Do: Text(func(ctx context.Context, _ Actor, _ []string) (string, error) {
		go s.stop()
		<-ctx.Done()
		close(stopping)
		return "bye", nil
	})}
	s = serve(t, ServerOptions{}, exit)
	idle := s.raw(t)
	idle.send(`{"id":1,"method":"echo","params":[]}`)
	idle.expect(`{"id":1,"result":"","error":null}`)
	r := s.raw(t)
	r.send(`{"id":1,"method":"exit","params":[]}{"id":2,"method":"echo","params":[]}`)
	receive(t, stopping, "the server to stop")
	if got := r.all(); got != `{"id":1,"result":"bye\n","error":null}{"id":2,"error":"the daemon is stopping\n"}` {
		t.Errorf("received %s", got)
	}
	if got := idle.all(); got != "" {
		t.Errorf("the idle one received %s", got)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestPanicIsLoggedWithItsStack(t *testing.T) {
	s := serve(t, ServerOptions{})
	s.exchange(t, `{"id":1,"method":"panic","params":[]}`)
	if log := s.log.String(); !strings.Contains(log, "on purpose") || !strings.Contains(log, "rpc_test.go") {
		t.Errorf("the log:\n%s", log)
	}
	if n := s.Stats().Panics; n != 1 {
		t.Errorf("%d panics are counted", n)
	}
}

// Reading and parsing whatever comes neither panics nor ends in silence.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{
		`{"id":0,"method":"echo","params":["a"]}`, `{"jsonrpc":"2.0","id":1,"method":"set","params":{"name":"n"}}`,
		`[{"jsonrpc":"2.0","id":1,"method":"echo"},1]`, `{"id":0`, `x`, `{"id":0,"method":"set-options","params":["-f","json"]}{"id":1,"method":"words","params":[]}`,
		"{\"id\":\"\xff\",\"method\":\"echo\",\"params\":[\"\\ud800\"]}", `{"jsonrpc":"2.0","method":"echo"}{"result":1}`,
	} {
		f.Add(seed)
	}
	s := serve(f, ServerOptions{Limits: Limits{RequestBytes: 1 << 16}})
	f.Fuzz(func(t *testing.T, in string) {
		out := s.exchange(t, in)
		if strings.Trim(in, " \t\r\n") != "" && out == "" && !strings.Contains(in, "jsonrpc") {
			t.Fatalf("%q is answered with silence", in)
		}
		if n := s.Stats().Panics; n > 0 && !strings.Contains(in, "panic") {
			t.Fatalf("panicked: %s", s.log)
		}
	})
}
