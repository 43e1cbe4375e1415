package rpc

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/rpc/api"
)

// Open vSwitch's client of 3.4 and later knows a second format. Distributions
// have the one before, so here is what the later one sends, byte by byte, and
// what must come back for it to print what it should: it waits for each reply
// before it sends on, with ids that count from 0.

// request is what the client writes, in one piece and without a newline.
func request(id int, method, params string) string {
	return fmt.Sprintf(`{"id":%d,"method":%q,"params":[%s]}`, id, method, params)
}

func resulting(id int, result string) string {
	return fmt.Sprintf(`{"id":%d,"result":%s,"error":null}`, id, result)
}

func failing(id int, text string) string { return fmt.Sprintf(`{"id":%d,"error":"%s"}`, id, text) }

// plain is a text in the format JSON.
func plain(text string) string { return `{"reply":"` + text + `","reply-format":"plain"}` }

// step is a request, and all that comes back for it.
type step struct{ send, want string }

// converse sends each request when the one before is answered, and wants
// nothing more at the end.
func (s *testServer) converse(t *testing.T, steps ...step) {
	t.Helper()
	r := s.raw(t)
	for _, u := range steps {
		r.send(u.send)
		r.expect(u.want)
	}
	if more := r.rest(); more != "" {
		t.Errorf("and then came %.300q", more)
	}
}

// unusual are commands whose results test what the client can take.
func unusual() []Command {
	text := func(name, result string) Command {
		return Command{Name: name, Doc: "Answer a text.", Do: Text(func(context.Context, Actor, []string) (string, error) { return result, nil })}
	}
	return []Command{
		text("large", strings.Repeat("x", 5<<20)),
		text("odd/bytes", "a\x00b\x01\x1f\x7f\xff\xfe\"\\\u2028"),
		{Name: "odd/object", Doc: "Answer an object.", Do: Typed(func(context.Context, Actor, struct{}) (map[string]string, error) {
			return map[string]string{"z": "\x00\x01", "a": "<&>"}, nil
		}, nil)},
		{Name: "number", Doc: "Answer a number.", Do: Typed(func(context.Context, Actor, struct{}) (int, error) { return 7, nil }, nil)},
		{Name: "list", Doc: "Answer nothing of many.", Do: Typed(func(context.Context, Actor, struct{}) ([]int, error) { return []int{}, nil }, nil)},
		{Name: "push", Doc: "Notify, and answer.", Do: Text(func(ctx context.Context, _ Actor, _ []string) (string, error) {
			return "pushed", Notify(ctx, "event", api.Lost{Count: 1})
		})},
		{Name: "odd/error", Doc: "Fail in odd words.", Do: Text(func(context.Context, Actor, []string) (string, error) {
			return "unseen", api.Errorf(api.CodeFailed, "a\x00b\x01\xff")
		})},
	}
}

// TestWhatTheLaterClientGets has, for each reply that the later client cannot
// take or shows in a way of its own, the request that would bring it out, in
// both formats.
func TestWhatTheLaterClientGets(t *testing.T) {
	s := serve(t, ServerOptions{}, unusual()...)
	xs := strings.Repeat("x", 5<<20)
	for _, tt := range []struct {
		name, method, params string
		text, json           string // the reply's members after the id: result or error
	}{
		// It adds the newline that a text lacks, but not in JSON.
		{"a text", "echo", `"hi"`, `"hi\n"`, plain("hi")},
		{"a text with a newline", "echo", `"hi\n"`, `"hi\n"`, plain(`hi\n`)},
		{"an empty text", "echo", ``, `""`, plain("")},
		{"arguments as it quotes them", "echo", `"a","b c","q\"uo\\te","é"`, `"a b c q\"uo\\te é\n"`, plain(`a b c q\"uo\\te é`)},
		{"bytes and controls as it sends them", "echo", "\"\xff\xfe\",\"\\u0001\\u001f\x7f\\t\"", "\"\xff\xfe \\u0001\\u001f\x7f\\t\\n\"", plain("\xff\xfe \\u0001\\u001f\x7f\\t")},
		// Where both members are null it finds no reply.
		{"nothing", "null", ``, `"nothing\n"`, plain("nothing")},
		// It takes an object for a result in JSON only, where text is wrapped for it.
		{"an object", "words", `"a","b"`, `"a\nb\n"`, `{"words":["a","b"]}`},
		{"a number", "number", ``, `"7\n"`, `7`},
		{"an empty list", "list", ``, `"[]\n"`, `[]`},
		{"a name that is not listed", "hidden", ``, `"found\n"`, plain("found")},
		// It reads any length; it does not read a zero byte or raw controls.
		{"5 MiB", "large", ``, `"` + xs + `\n"`, plain(xs)},
		{"odd bytes", "odd/bytes", ``, "\"a\ufffdb\\u0001\\u001f\x7f\xff\xfe\\\"\\\\\u2028\\n\"", plain("a\ufffdb\\u0001\\u001f\x7f\xff\xfe\\\"\\\\\u2028")},
		{"odd bytes in an object", "odd/object", ``, `"{\n  \"a\": \"<&>\",\n  \"z\": \"\\u0000\\u0001\"\n}\n"`, `{"a":"\u003c\u0026\u003e","z":"\ufffd\u0001"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.converse(t, step{request(0, tt.method, tt.params), resulting(0, tt.text)})
			s.converse(t, step{setFormat, setFormatReply}, step{request(1, tt.method, tt.params), resulting(1, tt.json)})
		})
	}
}

// TestErrorsToTheLaterClient: it takes nothing but a string for an error, in
// either format, and no result beside it. In text it adds the newline itself if
// there is none.
func TestErrorsToTheLaterClient(t *testing.T) {
	s := serve(t, ServerOptions{}, unusual()...)
	for _, tt := range []struct{ name, method, params, want string }{
		{"words", "fail", `"bad"`, `bad`},
		{"a code and data", "refuse", ``, `cannot: not now`},
		{"odd bytes, beside a result", "odd/error", ``, "a\ufffdb\\u0001\xff"},
		{"a panic", "panic", ``, `internal error in \"panic\"; the daemon's log has the details`},
		{"no such command", "bogus", ``, `\"bogus\" is not a valid command (use \"list-commands\" to see a list of valid commands)`},
		{"too few arguments", "set", ``, `\"set\" command requires at least 1 arguments`},
		{"too many arguments", "version", `"x"`, `\"version\" command takes at most 0 arguments`},
		{"an argument of the wrong type", "set", `"n","x"`, `parameter \"count\": expected a number, found \"x\"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.converse(t, step{request(0, tt.method, tt.params), failing(0, tt.want+`\n`)})
			s.converse(t, step{setFormat, setFormatReply}, step{request(1, tt.method, tt.params), failing(1, tt.want)})
		})
	}
}

// TestSetOptionsOnTheWire: the reply is in the format that was chosen, and one
// that fails changes nothing. The later client shows the error and does not send
// its command.
func TestSetOptionsOnTheWire(t *testing.T) {
	s := serve(t, ServerOptions{})
	asText, asJSON := resulting(1, `"hi\n"`), resulting(1, plain("hi"))
	for _, tt := range []struct{ params, reply, after string }{
		{`"--format","json"`, resulting(0, plain("")), asJSON},
		{`"--format=json"`, resulting(0, plain("")), asJSON},
		{`"--form","json"`, resulting(0, plain("")), asJSON},
		{`"-f","json"`, resulting(0, plain("")), asJSON},
		{`"--format","text"`, resulting(0, `""`), asText},
		{`"json"`, resulting(0, `""`), asText},
		{`"--format","X"`, failing(0, `option format has invalid value X\n`), asText},
		{`"--fmt"`, failing(0, `unrecognized option '--fmt'\n`), asText},
		{`"--format"`, failing(0, `option '--format' requires an argument\n`), asText},
		{``, failing(0, `\"set-options\" command requires at least 1 arguments\n`), asText},
		{`"a","b","c"`, failing(0, `\"set-options\" command takes at most 2 arguments\n`), asText},
	} {
		t.Run(tt.params, func(t *testing.T) {
			s.converse(t, step{request(0, "set-options", tt.params), tt.reply}, step{request(1, "echo", `"hi"`), tt.after})
		})
	}
	t.Run("failed in JSON", func(t *testing.T) {
		s.converse(t, step{setFormat, setFormatReply},
			step{request(1, "set-options", `"--format","X"`), failing(1, `option format has invalid value X`)},
			step{request(2, "echo", `"hi"`), resulting(2, plain("hi"))},
			step{request(3, "set-options", `"--format","text"`), resulting(3, `""`)},
			step{request(4, "echo", `"hi"`), resulting(4, `"hi\n"`)})
	})
}

// TestNotificationsToTheLaterClient: it passes over what comes before the
// reply, if it is a notification of its dialect.
func TestNotificationsToTheLaterClient(t *testing.T) {
	s := serve(t, ServerOptions{}, unusual()...)
	const note = `{"id":null,"method":"event","params":[{"count":1,"from":0,"to":0}]}`
	s.converse(t, step{request(0, "push", ``), note + resulting(0, `"pushed\n"`)})
	s.converse(t, step{setFormat, setFormatReply}, step{request(1, "push", ``), note + resulting(1, plain("pushed"))})
}

// TestLaterClientIsAnsweredInPieces: its request may arrive byte by byte.
func TestLaterClientIsAnsweredInPieces(t *testing.T) {
	s := serve(t, ServerOptions{})
	r := s.raw(t)
	for _, b := range setFormat {
		r.send(string(b))
	}
	r.expect(setFormatReply)
	for _, b := range request(1, "echo", `"hi"`) {
		r.send(string(b))
	}
	r.expect(resulting(1, plain("hi")))
}

// TestLaterClientIsRefused: set-options is what it sends first, so that is
// refused: with its id, as a string, and after it was read. A daemon that stops
// answers what is in progress.
func TestLaterClientIsRefused(t *testing.T) {
	t.Run("one too many", func(t *testing.T) {
		s := serve(t, ServerOptions{Limits: Limits{Connections: 1}})
		held := s.raw(t)
		held.send(request(0, "echo", ``))
		held.expect(resulting(0, `""`))
		for _, first := range []string{setFormat, request(0, "echo", `"hi"`)} {
			r := s.raw(t)
			r.send(first)
			if got := r.all(); got != failing(0, `the daemon has 1 control connections, as many as it takes; try again later\n`) {
				t.Errorf("received %s", got)
			}
		}
	})
	t.Run("no role", func(t *testing.T) {
		s := serve(t, ServerOptions{Authorize: func(Actor) Role { return NoRole }})
		user := strings.ReplaceAll(me(t, s), `"`, `\"`)
		s.converse(t, step{setFormat, failing(0, `\"set-options\" needs the read role; `+user+` has no role\n`)})
	})
	t.Run("the daemon stops", func(t *testing.T) {
		b := newBlocking("block", 0)
		s := serve(t, ServerOptions{}, b.Command)
		r := s.raw(t)
		r.send(setFormat)
		r.expect(setFormatReply)
		r.send(request(1, "block", ``))
		receive(t, b.began, "the command to begin")
		go s.stop()
		if got := r.all(); got != failing(1, `the daemon is stopping`) {
			t.Errorf("received %s", got)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}
