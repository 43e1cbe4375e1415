package rpc

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestModernReplies compares replies of JSON-RPC 2.0.
func TestModernReplies(t *testing.T) {
	s := serve(t, ServerOptions{})
	call := func(rest string) string { return `{"jsonrpc":"2.0",` + rest + `}` }
	result := func(id, value string) string { return `{"jsonrpc":"2.0","id":` + id + `,"result":` + value + "}\n" }
	failure := func(id string, code int, text string) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":%q}}`+"\n", id, code, text)
	}
	for _, tt := range []struct{ name, send, want string }{
		{"a call", call(`"id":1,"method":"echo","params":["a","b"]`), result(`1`, `"a b"`)},
		{"no params", call(`"id":1,"method":"echo"`), result(`1`, `""`)},
		{"empty named params of a text command", call(`"id":1,"method":"echo","params":{}`), result(`1`, `""`)},
		{"named params of a text command", call(`"id":1,"method":"echo","params":{"a":1}`),
			failure(`1`, -32602, `"echo" command takes its parameters by position, not by name: unexpected "a"`)},
		{"numbers for text", call(`"id":1,"method":"echo","params":[1,true,1.50]`), result(`1`, `"1 true 1.50"`)},
		{"a structured result", call(`"id":1,"method":"words","params":{"words":["a"]}`), result(`1`, `{"words":["a"]}`)},
		{"the rest of the params", call(`"id":1,"method":"words","params":["a","b"]`), result(`1`, `{"words":["a","b"]}`)},
		{"a list for the rest", call(`"id":1,"method":"words","params":[["a","b"]]`), result(`1`, `{"words":["a","b"]}`)},
		{"a null result", call(`"id":1,"method":"null"`), result(`1`, `null`)},

		{"ids come back as they came: text", call(`"id":"x","method":"echo"`), result(`"x"`, `""`)},
		{"ids: empty text", call(`"id":"","method":"echo"`), result(`""`, `""`)},
		{"ids: negative", call(`"id":-1,"method":"echo"`), result(`-1`, `""`)},
		{"ids: a fraction", call(`"id":0.5,"method":"echo"`), result(`0.5`, `""`)},
		{"ids: large", call(`"id":18446744073709551616,"method":"echo"`), result(`18446744073709551616`, `""`)},
		{"ids: null", call(`"id":null,"method":"echo"`), result(`null`, `""`)},

		{"a notification has no reply", call(`"method":"echo"`) + call(`"id":2,"method":"echo"`), result(`2`, `""`)},
		{"a notification that fails has none either", call(`"method":"fail","params":["x"]`), ""},

		{"unknown command", call(`"id":1,"method":"bogus"`),
			failure(`1`, -32601, `"bogus" is not a valid command (use "list-commands" to see a list of valid commands)`)},
		{"too few params", call(`"id":1,"method":"set"`), failure(`1`, -32602, `"set" command requires at least 1 arguments`)},
		{"too many params", call(`"id":1,"method":"version","params":[1]`), failure(`1`, -32602, `"version" command takes at most 0 arguments`)},
		{"a param is missing", call(`"id":1,"method":"set","params":{"count":1}`), failure(`1`, -32602, `"set" command requires the parameter "name"`)},
		{"an unknown param", call(`"id":1,"method":"set","params":{"name":"n","coutn":1}`),
			failure(`1`, -32602, `"set" command has no parameter "coutn"; it has name, count, wait, force, extra`)},
		{"a param of the wrong type", call(`"id":1,"method":"set","params":{"name":"n","count":"1"}`),
			failure(`1`, -32602, `parameter "count": expected integer, found string`)},
		{"an error of its own code", call(`"id":1,"method":"refuse"`),
			`{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"cannot: not now","data":{"subject":"device r0"}}}` + "\n"},
		{"any other error", call(`"id":1,"method":"fail","params":["bad"]`), failure(`1`, -32000, "bad")},
		{"a panic", call(`"id":1,"method":"panic"`), failure(`1`, -32603, `internal error in "panic"; the daemon's log has the details`)},

		{"another version", `{"jsonrpc":"1.0","id":1,"method":"echo"}`, failure(`1`, -32600, `"jsonrpc" must be "2.0", found "1.0"`)},
		{"the version as a number", `{"jsonrpc":2.0,"id":1,"method":"echo"}`, failure(`1`, -32600, `"jsonrpc" must be "2.0", found 2.0`)},
		{"no method", call(`"id":1`), failure(`1`, -32600, `the request has no "method"`)},
		{"method a number", call(`"id":1,"method":1,"params":"bar"`), failure(`1`, -32600, `"method" must be a string, found a number`)},
		{"params a string", call(`"id":1,"method":"echo","params":"x"`), failure(`1`, -32600, `"params" must be an object or a list, found a string`)},
		{"params null are none", call(`"id":1,"method":"echo","params":null`), result(`1`, `""`)},
		{"id a list", call(`"id":[1],"method":"echo"`), failure(`null`, -32600, `"id" must be a string or a number, found a list`)},
		{"id a boolean", call(`"id":true,"method":"echo"`), failure(`null`, -32600, `"id" must be a string or a number, found a boolean`)},
		{"a reply", call(`"id":1,"result":5`), failure(`1`, -32600, "the message is a reply, and nothing was asked")},

		{"garbage", `hello`, failure(`null`, -32700, "cannot parse the request: expected a JSON object, found 'h'")},
		{"a syntax error", call(`"id":1,"method":"echo","params":[}`),
			failure(`1`, -32700, "cannot parse the request: invalid character '}' looking for beginning of value at byte 51")},
		{"breaks off", `{"jsonrpc":"2.0","id":1,"met`, failure(`1`, -32700, "cannot parse the request: it breaks off")},
		{"too deep", `{"jsonrpc":"2.0","id":1,"params":` + strings.Repeat("[", 200), failure(`1`, -32007, "a request may be at most 100 levels deep")},
		{"too large", `{"jsonrpc":"2.0","id":1,"params":["` + strings.Repeat("x", 1<<20), failure(`1`, -32007, "a request may be at most 1048576 bytes")},

		{"an empty batch", `[]`, failure(`null`, -32600, "the batch is empty")},
		{"a batch of notifications", `[` + call(`"method":"echo"`) + `]` + call(`"id":2,"method":"echo"`), result(`2`, `""`)},
		{"a batch of nothing good", `[1,{}]`, `[` +
			`{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"a batch holds objects with \"jsonrpc\":\"2.0\""}},` +
			`{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"a batch holds objects with \"jsonrpc\":\"2.0\""}}]` + "\n"},
		{"a unixctl request in a batch", `[{"id":1,"method":"echo","params":[]}]`, `[` +
			`{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"a batch holds objects with \"jsonrpc\":\"2.0\""}}]` + "\n"},
		{"too large a batch", `[` + strings.Repeat(`1,`, 256) + `1]`, failure(`null`, -32600, "a batch may hold at most 256 requests")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, s.exchange(t, tt.send)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// reply is what a test wants to know of a reply.
type reply struct {
	ID     any
	Result any
	Error  *struct{ Code int }
}

func TestBatchesAreAnsweredWhole(t *testing.T) {
	s := serve(t, ServerOptions{})
	got := s.exchange(t, `[
		{"jsonrpc":"2.0","id":1,"method":"echo","params":["a"]},
		{"jsonrpc":"2.0","method":"echo","params":["notification"]},
		{"jsonrpc":"2.0","id":"2","method":"bogus"},
		{"foo":"boo"},
		[1],
		{"jsonrpc":"2.0","id":3,"method":"echo","params":["b"]}
	]`)
	var replies []reply
	if err := json.Unmarshal([]byte(got), &replies); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	seen := make(map[string]int)
	for _, r := range replies {
		what := fmt.Sprint(r.ID, " ", r.Result)
		if r.Error != nil {
			what = fmt.Sprint(r.ID, " ", r.Error.Code)
		}
		seen[what]++
	}
	want := map[string]int{"1 a": 1, "2 -32601": 1, "<nil> -32600": 2, "3 b": 1}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBothDialectsOnOneConnection(t *testing.T) {
	s := serve(t, ServerOptions{})
	r := s.raw(t)
	for range 3 {
		r.send(`{"id":0,"method":"echo","params":["old"]}`)
		r.expect(`{"id":0,"result":"old\n","error":null}`)
		r.send(`{"jsonrpc":"2.0","id":0,"method":"echo","params":["new"]}`)
		r.expect(`{"jsonrpc":"2.0","id":0,"result":"new"}` + "\n")
	}
	r.send(`{"id":1,"method":"echo","params":["x"]}garbage`)
	if got, want := r.rest(), `{"id":1,"result":"x\n","error":null}{"id":null,"error":"cannot parse the request: expected a JSON object, found 'g'\n"}`; got != want {
		t.Errorf("%s", got)
	}
}

// A later request overtakes one that waits.
func TestModernRequestsRunConcurrently(t *testing.T) {
	b := newBlocking("block", 0)
	s := serve(t, ServerOptions{}, b.Command)
	r := s.raw(t)
	r.send(`{"jsonrpc":"2.0","id":1,"method":"block"}`)
	receive(t, b.began, "the command to begin")
	r.send(`{"jsonrpc":"2.0","id":2,"method":"echo"}`)
	r.expect(`{"jsonrpc":"2.0","id":2,"result":""}` + "\n")
	r.Close()
	receive(t, b.ended, "the command to be cancelled")
}

func TestTypedParameters(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := s.dial(t, DialOptions{})
	type m = map[string]any
	for _, tt := range []struct {
		params any
		want   string
	}{
		{m{"name": "n"}, `{n 0 0s false }`},
		{m{"name": "n", "count": 3, "wait": "1m30s", "force": true, "extra": "e"}, `{n 3 1m30s true e}`},
		{m{"name": "n", "wait": 1.5}, `{n 0 1.5s false }`},
		{[]any{"n", 3, "2s", true}, `{n 3 2s true }`},
		{[]any{"n", "3", "2", "yes"}, `{n 3 2s true }`},
		{[]any{"n", "3", 0.25, "off"}, `{n 3 250ms false }`},
		{[]any{7}, `parameter "name": expected string, found number`},
		{[]any{"n", "x"}, `parameter "count": expected a number, found "x"`},
		{[]any{"n", "99999999999999999999"}, `parameter "count": the number 99999999999999999999 is out of range`},
		{[]any{"n", 1.5}, `parameter "count": expected integer, found number 1.5`},
		{[]any{"n", 1, "soon"}, `parameter "wait": expected a time such as 1m30s or a number of seconds, found "soon"`},
		{[]any{"n", 1, []int{1}}, `parameter "wait": a list is not a string`},
		{[]any{"n", 1, 1, "maybe"}, `parameter "force": expected true or false, found "maybe"`},
		{[]any{"n", 1, 1, true, "e"}, `"set" command takes at most 4 arguments`},
	} {
		var p setParams
		got := ""
		if err := c.Call(t.Context(), "set", tt.params, &p); err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("{%s %d %v %v %s}", p.Name, p.Count, p.Wait, p.Force, p.Extra)
		}
		if got != tt.want {
			t.Errorf("%v: %s, want %s", tt.params, got, tt.want)
		}
	}
}

func TestHelp(t *testing.T) {
	s := serve(t, ServerOptions{}, Command{Name: "long/wait", Doc: "Wait.", Deadline: NoDeadline,
		Do: Text(func(context.Context, Actor, []string) (string, error) { return "", nil })})
	c := s.dial(t, DialOptions{})
	got, err := c.CallText(t.Context(), "help", "set")
	want := `set NAME [COUNT [WAIT [FORCE]]]
  Show typed parameters.
  Access: admin. Deadline: 10 s.
  name         string, required
  count        integer, optional
  wait         duration, optional
  force        boolean, optional
  extra        string, optional
`
	if err != nil || got != want {
		t.Errorf("help set: %v\n%s", err, got)
	}
	all, err := c.CallText(t.Context(), "help")
	if err != nil || !strings.Contains(all, "\nset                     Show typed parameters.\n") || strings.Contains(all, "hidden") {
		t.Errorf("help: %v\n%s", err, all)
	}
	if _, err := c.CallText(t.Context(), "help", "bogus"); err == nil {
		t.Error("help bogus succeeded")
	}
	if text, err := c.CallText(t.Context(), "help", "long/wait"); err != nil || strings.Contains(text, "Deadline") {
		t.Errorf("a command without deadline shows one: %v\n%s", err, text)
	}
}
