package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstepd/lockstep/rpc/api"
)

// good is a row without fault.
func good(name string) Command {
	return Command{Name: name, Doc: "Do it.", MaxArgs: Unlimited,
		Do: Text(func(context.Context, Actor, []string) (string, error) { return "", nil })}
}

func TestRegistryRefusesBadRows(t *testing.T) {
	noP := func(context.Context, Actor, struct{}) (int, error) { return 0, nil }
	edit := func(f func(c *Command)) Command {
		c := good("thing/do")
		f(&c)
		return c
	}
	for _, tt := range []struct {
		name string
		row  Command
		want string
	}{
		{"no doc", edit(func(c *Command) { c.Doc = " " }), `command "thing/do": it has no doc`},
		{"no handler", edit(func(c *Command) { c.Do = nil }), `command "thing/do": it has no handler`},
		{"a built-in's name", edit(func(c *Command) { c.Name = "version" }), `command "version": the name is taken`},
		{"negative arity", edit(func(c *Command) { c.MinArgs = -1 }), `-1 to -1 arguments make no sense`},
		{"more at least than at most", edit(func(c *Command) { c.MinArgs, c.MaxArgs = 2, 1 }), `2 to 1 arguments make no sense`},
		{"more arguments than parameters", edit(func(c *Command) { c.MaxArgs = 1; c.Do = Typed(noP, nil) }), `it takes 1 arguments, its parameters take 0`},
		{"more required than parameters", edit(func(c *Command) { c.MinArgs, c.MaxArgs = 1, 1; c.Do = Typed(noP, nil) }), `it requires 1 arguments, its parameters take 0`},
		{"any number without a place for them", edit(func(c *Command) { c.Do = Typed(noP, nil) }), `its parameters have no []string for them`},
		{"parameters that are no struct", edit(func(c *Command) {
			c.Do = Typed(func(context.Context, Actor, int) (int, error) { return 0, nil }, nil)
		}), `parameters must be a struct, not int`},
		{"parameters embedded by pointer", edit(func(c *Command) {
			type P struct{ *api.Subscribe }
			c.Do = Typed(func(context.Context, Actor, P) (int, error) { return 0, nil }, nil)
		}), `parameters must not embed *api.Subscribe by pointer`},
		{"every fault at once", Command{Name: "Bad Name"}, "it has no doc\ncommand \"Bad Name\": it has no handler"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewRegistry(tt.row)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
	if _, err := NewRegistry(good("a"), good("a")); err == nil {
		t.Error("the same name twice is taken")
	}
}

func TestCommandNames(t *testing.T) {
	for name, want := range map[string]bool{
		"status": true, "list-nodes": true, "node/list": true, "vlog/list-pattern": true, "a/b/c": true, "md5": true,
		"": false, "Status": false, "node/": false, "/node": false, "a//b": false, "a-": false, "-a": false, "a--b": false,
		"a b": false, "ä": false, "1a": false, "a_b": false, "a\n": false,
	} {
		if _, err := NewRegistry(good(name)); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestRegistryRowsComeAndGo(t *testing.T) {
	reg := newRegistry(t, good("fixed"))
	before := len(reg.Commands())
	if _, err := reg.Add(good("new/a"), good("fixed")); err == nil {
		t.Fatal("a taken name is added")
	}
	if len(reg.Commands()) != before {
		t.Error("a part of a refused addition is there")
	}
	remove, err := reg.Add(good("new/a"), good("new/b"))
	if err != nil || len(reg.Commands()) != before+2 {
		t.Fatalf("%v, %d rows", err, len(reg.Commands()))
	}
	remove()
	again, err := reg.Add(good("new/a"))
	if err != nil {
		t.Fatal(err)
	}
	remove() // of rows that are gone: it must not take away their successors
	if len(reg.Commands()) != before+1 {
		t.Errorf("%d rows", len(reg.Commands()))
	}
	again()
}

func TestRegistryIsReadWhileItChanges(t *testing.T) {
	reg := newRegistry(t)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 200 {
				reg.Describe()
				reg.lookup("x/y")
			}
		})
	}
	for range 200 {
		remove, err := reg.Add(good("x/y"))
		if err != nil {
			t.Fatal(err)
		}
		remove()
	}
	readers.Wait()
}

type embedded struct {
	Device string `json:"device"`
}

type manyTypes struct {
	embedded
	Size   uint32          `json:"size"`
	Ratio  float64         `json:"ratio"`
	Count  *int            `json:"count"`
	Addr   netip.Addr      `json:"addr"`
	Any    any             `json:"any"`
	Raw    json.RawMessage `json:"raw"`
	Nested struct {
		A int `json:"a"`
	} `json:"nested"`
	Rest   []string `json:"rest"`
	After  uint64   `json:"after"`
	Hidden string   `json:"-"`
}

func TestParametersOfAllTypes(t *testing.T) {
	var got manyTypes
	cmd := Command{Name: "take", Doc: "Take.", MinArgs: 1, MaxArgs: Unlimited,
		Do: Typed(func(_ context.Context, _ Actor, p manyTypes) (string, error) { got = p; return "", nil }, nil)}
	newRegistry(t, cmd)
	five := 5
	want := manyTypes{embedded: embedded{"r0"}, Size: 4096, Ratio: 0.5, Count: &five, Addr: netip.MustParseAddr("::1"),
		Any: "x", Raw: json.RawMessage(`"y"`), Rest: []string{"1", "2"}}
	named := want
	named.Any, named.Raw, named.Nested.A, named.After = 1.5, json.RawMessage(`{"z":1}`), 7, 9
	for _, tt := range []struct {
		name string
		in   input
		want manyTypes
	}{
		{"as arguments", input{args: []string{"r0", "4096", "0.5", "5", "::1", "x", "y", "1", "2"}}, want},
		{"by position", input{raw: []byte(`["r0",4096,0.5,5,"::1","x","y","1",2]`)}, want},
		{"by name", input{raw: []byte(`{"after":9,"rest":["1","2"],"raw":{"z":1},"any":1.5,"addr":"::1","count":5,` +
			`"ratio":0.5,"size":4096,"device":"r0","nested":{"a":7}}`)}, named},
	} {
		got = manyTypes{}
		if _, err := cmd.Do.handle(t.Context(), &cmd, Actor{}, tt.in); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(manyTypes{}, embedded{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	for in, want := range map[string]string{
		`{"device":"r0","size":-1}`:          `parameter "size": expected integer, found number -1`,
		`{"device":"r0","nested":{"b":1}}`:   `parameter "nested": unknown field "b"`,
		`{"device":"r0","nested":{"a":"x"}}`: `parameter "nested": expected integer in "a", found string`,
		`{"device":"r0","addr":"nowhere"}`:   `parameter "addr": ParseAddr("nowhere"): unable to parse IP`,
		`{"device":"r0","Size":1}`:           `"take" command has no parameter "Size"; it has device, size, ratio, count, addr, any, raw, rest, nested, after`,
		`["r0",1,1,1,"::1","x","y",["a"],2]`: `parameter "rest": a list is not a string`,
	} {
		_, err := cmd.Do.handle(t.Context(), &cmd, Actor{}, input{raw: []byte(in)})
		if err == nil || err.Error() != want || wireError(err).Code != api.CodeInvalidParams {
			t.Errorf("%s: %v\nwant %s", in, err, want)
		}
	}
}

func TestDescribe(t *testing.T) {
	cmd := Command{Name: "take", Usage: "DEVICE", Doc: "Take.", Access: Admin, MinArgs: 1, MaxArgs: Unlimited, Deadline: time.Minute,
		Do: Typed(func(context.Context, Actor, manyTypes) (string, error) { return "", nil }, nil)}
	want := api.Command{Name: "take", Usage: "DEVICE", Doc: "Take.", Access: "admin", MinArgs: 1, MaxArgs: -1, DeadlineMS: 60000,
		Params: []api.Param{
			{Name: "device", Type: "string", Positional: true, Required: true},
			{Name: "size", Type: "integer", Positional: true},
			{Name: "ratio", Type: "number", Positional: true},
			{Name: "count", Type: "integer", Positional: true},
			{Name: "addr", Type: "string", Positional: true},
			{Name: "any", Type: "any", Positional: true},
			{Name: "raw", Type: "any", Positional: true},
			{Name: "rest", Type: "list", Positional: true},
			{Name: "nested", Type: "object"},
			{Name: "after", Type: "integer"},
		}}
	if diff := cmp.Diff(want, cmd.describe()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTextOfAResult(t *testing.T) {
	ctx, cmd := t.Context(), Command{Name: "x"}
	show := func(h Handler) string {
		r, err := h.handle(ctx, &cmd, Actor{}, input{args: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		return r.text()
	}
	if got := show(Typed(func(context.Context, Actor, struct{}) (string, error) { return "as it is", nil }, nil)); got != "as it is" {
		t.Errorf("a string: %q", got)
	}
	if got := show(Typed(func(context.Context, Actor, struct{}) (embedded, error) { return embedded{"<r0>"}, nil }, nil)); got != "{\n  \"device\": \"<r0>\"\n}" {
		t.Errorf("a struct: %q", got)
	}
	if got := show(Typed(func(context.Context, Actor, struct{}) (chan int, error) { return nil, nil }, nil)); !strings.HasPrefix(got, "cannot show the result: ") {
		t.Errorf("what is no JSON: %q", got)
	}
}

func TestPolicy(t *testing.T) {
	p := Policy{AdminUIDs: []uint32{0}, AdminGroups: []uint32{10}, ReadGroups: []uint32{20}, AdminNames: []string{"boss"}, ReadNames: []string{"eye"}}
	for _, tt := range []struct {
		who  Actor
		want Role
	}{
		{Actor{Local: true, UID: 0}, Administrator},
		{Actor{Local: true, UID: 5}, NoRole},
		{Actor{Local: true, UID: 5, GID: 10}, Administrator},
		{Actor{Local: true, UID: 5, GID: 5, Groups: []uint32{1, 10}}, Administrator},
		{Actor{Local: true, UID: 5, GID: 20}, Reader},
		{Actor{Local: true, UID: 5, GID: 20, Groups: []uint32{10}}, Administrator},
		{Actor{Local: true, UID: 5, User: "boss"}, NoRole}, // a login name proves nothing
		{Actor{User: "boss"}, Administrator},
		{Actor{User: "eye"}, Reader},
		{Actor{User: "other"}, NoRole},
		{Actor{}, NoRole}, // uid 0 is not root where the kernel has not said so
	} {
		if got := p.Role(tt.who); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.who, got, tt.want)
		}
	}
	if got := (Policy{AdminNames: []string{""}}).Role(Actor{}); got != NoRole {
		t.Errorf("nobody is %v", got)
	}
}

func TestAccess(t *testing.T) {
	for role, want := range map[Role][2]string{ // of the answers to a read and an admin command
		Administrator: {"", ""},
		Reader:        {"", `"set" needs the admin role; user "root" (uid 0) has the read role`},
		NoRole: {`"echo" needs the read role; user "root" (uid 0) has no role`,
			`"set" needs the admin role; user "root" (uid 0) has no role`},
	} {
		s := serve(t, ServerOptions{Authorize: func(a Actor) Role {
			if !a.Local || a.PID == 0 {
				t.Errorf("the actor is %+v", a)
			}
			return role
		}})
		c := s.dial(t, DialOptions{})
		for i, call := range []func() error{
			func() error { return c.Call(t.Context(), "echo", nil, nil) },
			func() error { return c.Call(t.Context(), "set", []string{"x"}, nil) },
		} {
			err := call()
			if want[i] == "" {
				if err != nil {
					t.Errorf("%v: %v", role, err)
				}
				continue
			}
			text := strings.Replace(want[i], `user "root" (uid 0)`, me(t, s), 1)
			if err == nil || err.Error() != text || !errors.Is(err, &Error{Code: api.CodeForbidden}) {
				t.Errorf("%v: %v", role, err)
			}
			if !strings.Contains(s.log.String(), "command refused") {
				t.Errorf("%v: the log does not say so", role)
			}
		}
	}
}

// me returns how the server names this process.
func me(t *testing.T, s *testServer) string {
	t.Helper()
	r := s.raw(t)
	a, err := peerCredentials(r.UnixConn) // of the listener, which is this process
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("user %q (uid %d)", s.users.name(a.UID), a.UID)
}

func TestAdminCommandsAreLogged(t *testing.T) {
	s := serve(t, ServerOptions{})
	s.exchange(t, `{"id":1,"method":"set","params":["r0","3"]}{"id":2,"method":"set","params":["r0","x"]}{"id":3,"method":"echo","params":["quiet"]}`)
	log := s.log.String()
	for _, want := range []string{`msg="admin command" command=set args="r0 3"`, ` outcome=done`, ` outcome=failed`, ` pid=`, ` uid=`, ` took=`, `expected a number`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %q:\n%s", want, log)
		}
	}
	if strings.Contains(log, "quiet") {
		t.Errorf("a read command is logged:\n%s", log)
	}
}

func TestActorOfACommand(t *testing.T) {
	var first, second Actor
	see := Command{Name: "see", Doc: "See.", MaxArgs: 1, Do: Text(func(ctx context.Context, by Actor, args []string) (string, error) {
		a, ok := ActorFrom(ctx)
		if !ok || a.Conn != by.Conn || a.UID != by.UID {
			t.Errorf("the context has %+v, the handler is given %+v", a, by)
		}
		if first, second = second, by; second.Groups == nil {
			second.Groups = []uint32{}
		}
		return "", nil
	})}
	s := serve(t, ServerOptions{}, see)
	s.exchange(t, `{"id":1,"method":"see","params":[]}`)
	s.exchange(t, `{"id":1,"method":"see","params":[]}`)
	if first.Conn == second.Conn || first.PID == 0 || first.User == "" || first.Role != Administrator {
		t.Errorf("%+v\n%+v", first, second)
	}
	if _, ok := ActorFrom(t.Context()); ok {
		t.Error("there is an actor out of nowhere")
	}
}

// FuzzDecode decodes whatever parameters: it never panics, and its errors are
// the client's fault.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"device":"r0","size":1,"nested":{"a":1}}`, `["r0",1,0.5,null,"::1",{},[],"a","b"]`, `[]`, `{"count":null}`} {
		f.Add(seed)
	}
	cmd := Command{Name: "take", Doc: "Take.", MinArgs: 1, MaxArgs: Unlimited,
		Do: Typed(func(context.Context, Actor, manyTypes) (string, error) { return "", nil }, nil)}
	text := Command{Name: "text", Doc: "Take.", MaxArgs: Unlimited,
		Do: Text(func(context.Context, Actor, []string) (string, error) { return "", nil })}
	f.Fuzz(func(t *testing.T, in string) {
		inputs := []input{{args: strings.Fields(in)}}
		if json.Valid([]byte(in)) && (in[0] == '{' || in[0] == '[') {
			inputs = append(inputs, input{raw: []byte(in)})
		}
		for _, c := range []*Command{&cmd, &text} {
			for _, i := range inputs {
				if _, err := c.Do.handle(t.Context(), c, Actor{}, i); err != nil && wireError(err).Code != api.CodeInvalidParams {
					t.Fatalf("%s: %v", in, err)
				}
			}
		}
	})
}
