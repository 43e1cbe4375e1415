package rpc

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestUnixctlReplies compares replies of the unixctl dialect byte by byte.
func TestUnixctlReplies(t *testing.T) {
	s := serve(t, ServerOptions{})
	const req = `{"id":0,"method":"%s","params":[%s]}`
	cmd := func(name, params string) string { return fmt.Sprintf(req, name, params) }
	for _, tt := range []struct{ name, send, want string }{
		{"text ends with a newline", cmd("echo", `"hi"`), `{"id":0,"result":"hi\n","error":null}`},
		{"a newline is not doubled", cmd("echo", `"hi\n"`), `{"id":0,"result":"hi\n","error":null}`},
		{"an empty text stays empty", cmd("echo", ``), `{"id":0,"result":"","error":null}`},
		{"an error has no result", cmd("fail", `"bad"`), `{"id":0,"error":"bad\n"}`},
		{"an error with code is its text", cmd("refuse", ``), `{"id":0,"error":"cannot: not now\n"}`},
		{"quotes, backslashes, controls", cmd("echo", `"q\"uo\\te\u0001\t"`), `{"id":0,"result":"q\"uo\\te\u0001\t\n","error":null}`},
		{"< > & are not escaped", cmd("echo", `"<&>"`), `{"id":0,"result":"<&>\n","error":null}`},
		{"UTF-8", cmd("echo", `"é\u20ac"`), `{"id":0,"result":"é€` + `\n","error":null}`},
		{"bytes that are not UTF-8", cmd("echo", "\"\xff\xfe\x7f\""), "{\"id\":0,\"result\":\"\xff\xfe\x7f\\n\",\"error\":null}"},
		{"unknown command", cmd("bogus", ``), `{"id":0,"error":"\"bogus\" is not a valid command (use \"list-commands\" to see a list of valid commands)\n"}`},
		{"too few arguments", cmd("set", ``), `{"id":0,"error":"\"set\" command requires at least 1 arguments\n"}`},
		{"too many arguments", cmd("version", `"a"`), `{"id":0,"error":"\"version\" command takes at most 0 arguments\n"}`},
		{"a non-string argument", cmd("echo", `"a",1`), `{"id":0,"error":"\"echo\" command has non-string argument\n"}`},
		{"too many non-string arguments", cmd("version", `1`), `{"id":0,"error":"\"version\" command takes at most 0 arguments\n"}`},
		{"a zero byte in an argument", cmd("echo", `"a\u0000"`), `{"id":0,"error":"\"echo\" command has non-string argument\n"}`},
		{"an argument of the wrong type", cmd("set", `"n","x"`), `{"id":0,"error":"parameter \"count\": expected a number, found \"x\"\n"}`},

		// A stream without separators, in order; any white space will do.
		{"pipelined", cmd("echo", `"1"`) + cmd("echo", `"2"`) + "\n\t " + cmd("fail", `"3"`),
			`{"id":0,"result":"1\n","error":null}{"id":0,"result":"2\n","error":null}{"id":0,"error":"3\n"}`},

		// What a real server drops the connection for is answered here.
		{"null id", `{"id":null,"method":"echo","params":[]}`, `{"id":null,"error":"request must have \"id\"\n"}`},
		{"no id", `{"method":"echo","params":[]}`, `{"id":null,"error":"request must have \"id\"\n"}`},
		{"no params", `{"id":1,"method":"echo"}`, `{"id":1,"error":"request must have \"params\"\n"}`},
		{"params an object", `{"id":1,"method":"echo","params":{}}`, `{"id":1,"error":"params must be JSON array\n"}`},
		{"method null", `{"id":1,"method":null,"params":[]}`, `{"id":1,"error":"method is not a JSON string\n"}`},
		{"method a number", `{"id":1,"method":1,"params":[]}`, `{"id":1,"error":"method is not a JSON string\n"}`},
		{"no method", `{"id":1,"params":[]}`, `{"id":1,"error":"request must have \"method\"\n"}`},
		{"unknown member", `{"id":1,"method":"echo","params":[],"x":1}`, `{"id":1,"error":"message has unexpected member \"x\"\n"}`},
		{"a reply", `{"id":1,"result":"x","error":null}`, `{"id":1,"error":"the message is a reply, and nothing was asked\n"}`},
		{"the stream stays in step after a bad request", `{"id":1}` + cmd("echo", `"still here"`),
			`{"id":1,"error":"request must have \"method\"\n"}{"id":0,"result":"still here\n","error":null}`},
		{"duplicate members: the last counts", `{"id":1,"id":2,"method":"x","method":"echo","params":[1],"params":["a"]}`, `{"id":2,"result":"a\n","error":null}`},
		{"members with needless escapes", `{"\u0069d":3,"method":"\u0065cho","params":["a"]}`, `{"id":3,"result":"a\n","error":null}`},

		// A stream that is out of step is told so, and closed.
		{"syntax error with an id", `{"id":4,"method":"echo","params":[tru]}`,
			`{"id":4,"error":"cannot parse the request: invalid character ']' in literal true (expecting 'e') at byte 38\n"}`},
		{"answered before the error", cmd("echo", `"1"`) + `garbage`,
			`{"id":0,"result":"1\n","error":null}{"id":null,"error":"cannot parse the request: expected a JSON object, found 'g'\n"}`},
		{"breaks off", `{"id":5,"method":"echo","para`, `{"id":5,"error":"cannot parse the request: it breaks off\n"}`},
		{"too deep", `{"id":6,"method":"echo","params":` + strings.Repeat("[", 200), `{"id":6,"error":"a request may be at most 100 levels deep\n"}`},
		{"too large", `{"id":7,"method":"echo","params":["` + strings.Repeat("x", 1<<20), `{"id":7,"error":"a request may be at most 1048576 bytes\n"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, s.exchange(t, tt.send)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnixctlEchoesAnyIDAsItCame(t *testing.T) {
	s := serve(t, ServerOptions{})
	for _, id := range []string{`0`, `-1`, `0.5`, `0.0`, `1e3`, `18446744073709551616`, `"x"`, `""`, `"\u00e9"`, `[1, 2]`, `{}`, `{"a":[null]}`, `true`, `false`} {
		got := s.exchange(t, `{"id":`+id+`,"method":"echo","params":["x"]}`)
		if want := `{"id":` + id + `,"result":"x\n","error":null}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// setFormat is a request for JSON, and its reply.
const (
	setFormat      = `{"id":0,"method":"set-options","params":["--format","json"]}`
	setFormatReply = `{"id":0,"result":{"reply":"","reply-format":"plain"},"error":null}`
)

func TestUnixctlJSONFormat(t *testing.T) {
	s := serve(t, ServerOptions{})
	for _, tt := range []struct{ name, send, want string }{
		{"text is wrapped, without a newline", `{"id":1,"method":"echo","params":["hi"]}`, `{"id":1,"result":{"reply":"hi","reply-format":"plain"},"error":null}`},
		{"a typed result is JSON", `{"id":1,"method":"words","params":["a","b"]}`, `{"id":1,"result":{"words":["a","b"]},"error":null}`},
		{"zero bytes are replaced in it", `{"id":1,"method":"words","params":["\ufffd"]}`, `{"id":1,"result":{"words":["` + "\ufffd" + `"]},"error":null}`},
		{"an error stays a string", `{"id":1,"method":"fail","params":["bad"]}`, `{"id":1,"error":"bad"}`},
		{"null is no result to the clients", `{"id":1,"method":"null","params":[]}`, `{"id":1,"result":{"reply":"nothing","reply-format":"plain"},"error":null}`},
		{"and back to text", `{"id":1,"method":"set-options","params":["--format","text"]}{"id":2,"method":"echo","params":["hi"]}`,
			`{"id":1,"result":"","error":null}{"id":2,"result":"hi\n","error":null}`},
		{"list-commands is an object of usages", `{"id":1,"method":"list-commands","params":[]}`,
			`{"id":1,"result":{"echo":"[ARG…]","fail":"MESSAGE","help":"[COMMAND]","list-commands":"","null":"","panic":"","refuse":"",` +
				`"set":"NAME [COUNT [WAIT [FORCE]]]","set-options":"[--format text|json]","version":"","whoami":"","words":"[WORD…]"},"error":null}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := s.exchange(t, setFormat+tt.send)
			if diff := cmp.Diff(setFormatReply+tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if got := s.exchange(t, `{"id":0,"method":"words","params":["a"]}`); got != `{"id":0,"result":"a\n","error":null}` {
		t.Errorf("the format stuck to another connection: %s", got)
	}
}

func TestSetOptionsTakesWhatGetoptTakes(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string // json or text, or the error
	}{
		{"--format json", "json"},
		{"--format=json", "json"},
		{"--form json", "json"},
		{"--f=json", "json"},
		{"-f json", "json"},
		{"-fjson", "json"},
		{"--format JSON", "json"},
		{"--format text", "text"},
		{"--format=json --format=text", "text"},
		{"json", "text"},
		{"-- --format=json", "text"},
		{"-", "text"},
		{"--format X", "option format has invalid value X"},
		{"--format=", "option format has invalid value "},
		{"--fmt", "unrecognized option '--fmt'"},
		{"--fmt=json", "unrecognized option '--fmt=json'"},
		{"--format", "option '--format' requires an argument"},
		{"-f", "option requires an argument -- 'f'"},
		{"-x", "invalid option -- 'x'"},
	} {
		format, err := formatOption(strings.Fields(tt.args))
		got := format
		if err != nil {
			got = err.Error()
		} else if format == "" {
			got = "text"
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.args, got, tt.want)
		}
	}
}

func TestUnixctlRequestsRunOneByOneAndInOrder(t *testing.T) {
	s := serve(t, ServerOptions{})
	const n = 5000
	var send, want strings.Builder
	for i := range n {
		fmt.Fprintf(&send, `{"id":%d,"method":"echo","params":["%d"]}`, i, i)
		fmt.Fprintf(&want, `{"id":%d,"result":"%d\n","error":null}`, i, i)
	}
	if got := s.exchange(t, send.String()); got != want.String() {
		t.Errorf("%d bytes differ from the %d expected", len(got), want.Len())
	}
}

// appctl runs the stock client.
func appctl(t *testing.T, target string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path, err := exec.LookPath("ovs-appctl")
	if err != nil {
		t.Skip("ovs-appctl is not installed (Debian: openvswitch-common)")
	}
	cmd := exec.CommandContext(t.Context(), path, append([]string{"-T", "60", "-t", target}, args...)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestStockClient(t *testing.T) {
	s := serve(t, ServerOptions{})
	refused := "\novs-appctl: " + s.path + ": server returned an error\n"
	for _, tt := range []struct {
		args           []string
		stdout, stderr string
		code           int
	}{
		{[]string{"version"}, "testd (lockstep) 1.2.3\n", "", 0},
		{[]string{"echo"}, "", "", 0},
		{[]string{"echo", "foo", "b c", `q"uo\te`, "é", "tab\t", "\x01\x7f"}, "foo b c q\"uo\\te é tab\t \x01\x7f\n", "", 0},
		{[]string{"echo", "\xff\xfe"}, "\xff\xfe\n", "", 0},
		{[]string{"hidden"}, "found\n", "", 0},
		{[]string{"set-options", "--format", "json"}, "", "ovs-appctl: " + s.path + ": transaction error (Invalid argument)\n", 1},
		{[]string{"fail", "bad"}, "", "bad" + refused, 2},
		{[]string{"bogus"}, "", `"bogus" is not a valid command (use "list-commands" to see a list of valid commands)` + refused, 2},
		{[]string{"set"}, "", `"set" command requires at least 1 arguments` + refused, 2},
		{[]string{"version", "x"}, "", `"version" command takes at most 0 arguments` + refused, 2},
		{[]string{"panic"}, "", `internal error in "panic"; the daemon's log has the details` + refused, 2},
		{[]string{"echo", strings.Repeat("x", 100<<10)}, strings.Repeat("x", 100<<10) + "\n", "", 0},
	} {
		stdout, stderr, code := appctl(t, s.path, tt.args...)
		if stdout != tt.stdout || code != tt.code || !strings.HasSuffix(stderr, tt.stderr) {
			t.Errorf("%.60q: exit %d, stdout %.200q, stderr %.200q", tt.args, code, stdout, stderr)
		}
	}
}

// The stock client sends what is too large to the end, and is told then.
func TestStockClientIsToldThatItsRequestIsTooLarge(t *testing.T) {
	s := serve(t, ServerOptions{})
	args := []string{"echo"}
	for range 20 {
		args = append(args, strings.Repeat("x", 100<<10))
	}
	_, stderr, code := appctl(t, s.path, args...)
	if code != 2 || !strings.HasPrefix(stderr, "a request may be at most 1048576 bytes\n") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
}

func TestStockClientListsCommands(t *testing.T) {
	s := serve(t, ServerOptions{})
	stdout, _, _ := appctl(t, s.path, "list-commands")
	lines := strings.Split(stdout, "\n")
	if lines[0] != "The available commands are:" || lines[1] != "  echo                    [ARG…]" ||
		lines[4] != "  list-commands           " || strings.Contains(stdout, "hidden") {
		t.Errorf("list-commands:\n%s", stdout)
	}
}

func TestStockClientSeesCommandsComeAndGo(t *testing.T) {
	s := serve(t, ServerOptions{})
	remove, err := s.reg.Add(Command{Name: "service/hello", Doc: "Greet.",
		Do: Text(func(context.Context, Actor, []string) (string, error) { return "hello", nil })})
	if err != nil {
		t.Fatal(err)
	}
	if stdout, _, code := appctl(t, s.path, "service/hello"); stdout != "hello\n" || code != 0 {
		t.Errorf("%q, exit %d", stdout, code)
	}
	remove()
	if _, stderr, code := appctl(t, s.path, "service/hello"); code != 2 {
		t.Errorf("after it was removed: %q, exit %d", stderr, code)
	}
}
