package rpc

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
)

// scripted answers the first request of each connection with the same bytes,
// and reads on until the client closes.
func scripted(t *testing.T, replies ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			play(nc, replies)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return path
}

func play(nc net.Conn, replies []string) {
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	in := frame.NewReader(nc, frame.Limits{Size: 1 << 20, Depth: 100})
	if _, err := in.Next(); err != nil {
		return
	}
	for _, r := range replies {
		if _, err := io.WriteString(nc, r); err != nil {
			return
		}
	}
	nc.(*net.UnixConn).CloseWrite()
	io.Copy(io.Discard, nc)
}

// TestWhatTheStockClientTakes pins down which bytes of a server the stock
// client understands: what the unixctl replies of this package rest on. The id
// of its request is 0.
func TestWhatTheStockClientTakes(t *testing.T) {
	const eof = "transaction error (End of file)\n"
	for _, tt := range []struct {
		name, reply string
		code        int
		stdout      string
		stderr      string // how it ends
	}{
		{"no error member", `{"id":0,"result":"hi"}`, 0, "hi", ""},
		{"no newline", `{"id":0,"result":"hi","error":null}`, 0, "hi", ""},
		{"a newline", `{"id":0,"result":"hi\n","error":null}`, 0, "hi\n", ""},
		{"an empty result", `{"id":0,"result":"","error":null}`, 0, "", ""},
		{"both null", `{"id":0,"result":null,"error":null}`, 1, "", "transaction error (Protocol error)\n"},
		{"an error, result null", `{"id":0,"result":null,"error":"bad\n"}`, 2, "", "bad\novs-appctl: TARGET: server returned an error\n"},
		{"an error, no result", `{"id":0,"error":"bad\n"}`, 2, "", "bad\novs-appctl: TARGET: server returned an error\n"},
		{"an error without newline", `{"id":0,"error":"bad"}`, 2, "", "badovs-appctl: TARGET: server returned an error\n"},
		{"an error object", `{"id":0,"error":{"code":1}}`, 1, "", "transaction error (Invalid argument)\n"},
		{"a result object", `{"id":0,"result":{"a":1},"error":null}`, 1, "", "transaction error (Invalid argument)\n"},
		{"result and error", `{"id":0,"result":"a","error":"b"}`, 1, "", "transaction error (Protocol error)\n"},
		{"a jsonrpc member", `{"jsonrpc":"2.0","id":0,"result":"hi"}`, 1, "", "transaction error (Protocol error)\n"},
		{"method null", `{"id":0,"result":"hi","error":null,"method":null}`, 1, "", "transaction error (Protocol error)\n"},
		{"params null", `{"id":0,"result":"hi","error":null,"params":null}`, 0, "hi", ""},
		{"id a string", `{"id":"0","result":"hi","error":null}`, 1, "", eof},
		{"a wrong id", `{"id":7,"result":"hi","error":null}`, 1, "", eof},
		{"id 0.0", `{"id":0.0,"result":"hi","error":null}`, 0, "hi", ""},
		{"id null", `{"id":null,"result":"hi","error":null}`, 1, "", "transaction error (Protocol error)\n"},
		{"no id", `{"result":"hi","error":null}`, 1, "", "transaction error (Protocol error)\n"},
		{"a notification first", `{"id":null,"method":"event","params":[{}]}{"id":0,"result":"hi","error":null}`, 0, "hi", ""},
		{"a request first", `{"id":9,"method":"echo","params":[]}{"id":0,"result":"hi","error":null}`, 0, "hi", ""},
		{"white space", " \r\n\t" + `{"id":0,"result":"hi","error":null}` + "\n\n", 0, "hi", ""},
		{"a large result", `{"id":0,"result":"` + strings.Repeat("x", 5<<20) + `","error":null}`, 0, strings.Repeat("x", 5<<20), ""},
		{"a zero byte", `{"id":0,"result":"a\u0000","error":null}`, 1, "", "transaction error (Protocol error)\n"},
		{"a raw control byte", "{\"id\":0,\"result\":\"a\x01\"}", 1, "", "transaction error (Protocol error)\n"},
		{"a trailing comma", `{"id":0,"result":"a",}`, 1, "", "transaction error (Protocol error)\n"},
		{"a byte order mark", "\ufeff{}", 1, "", "transaction error (Protocol error)\n"},
		{"too deep", strings.Repeat("[", 1001), 1, "", "transaction error (Protocol error)\n"},
		{"not an object", `"hi"`, 1, "", "transaction error (Protocol error)\n"},
		{"bytes that are not UTF-8", "{\"id\":0,\"result\":\"\xff\xfe\",\"error\":null}", 0, "\xff\xfe", ""},
		{"duplicate members", `{"id":7,"id":0,"result":"a","result":"hi","error":null}`, 0, "hi", ""},
		{"closed after the request", ``, 1, "", eof},
		{"a part of a reply", `{"id":0,"resu`, 1, "", eof},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := scripted(t, tt.reply)
			stdout, stderr, code := appctl(t, path, "cmd")
			stderr = strings.ReplaceAll(stderr, path, "TARGET")
			if code != tt.code || stdout != tt.stdout || !strings.HasSuffix(stderr, tt.stderr) {
				t.Errorf("exit %d, stdout %.100q, stderr %.300q", code, stdout, stderr)
			}
		})
	}
}

func TestStockClientTakesAReplyInPieces(t *testing.T) {
	path := scripted(t, `{"id":`, `0,"resu`, `lt":"h`, `i\n","error":null}`)
	if stdout, stderr, code := appctl(t, path, "cmd"); stdout != "hi\n" || code != 0 {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

// TestWhatCutsTheStockClientOff: a server that closes with the request unread
// may kill it before it shows an error; one that half-closes and reads on never
// does, which is how this package refuses.
func TestWhatCutsTheStockClientOff(t *testing.T) {
	const refusal = `{"id":0,"error":"go away\n"}`
	const killed = -1 // by SIGPIPE
	for _, tt := range []struct {
		name  string
		serve func(nc net.Conn)
		codes []int
	}{
		{"closed", func(nc net.Conn) { nc.Close() }, []int{1, killed}},
		{"refused and closed", func(nc net.Conn) {
			io.WriteString(nc, refusal)
			nc.Close()
		}, []int{1, 2, killed}},
		{"refused, half-closed and drained", func(nc net.Conn) { play(nc, []string{refusal}) }, []int{2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				if nc, err := ln.Accept(); err == nil {
					tt.serve(nc)
				}
			}()
			defer func() {
				ln.Close()
				<-done
			}()
			stdout, stderr, code := appctl(t, path, "cmd")
			if !slices.Contains(tt.codes, code) || stdout != "" || code == 2 && !strings.HasPrefix(stderr, "go away\n") {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

// TestStockClientAtAFullBacklog: a daemon that hangs is noticed at once only by
// those whom its backlog has no room for. That of this package's listeners is
// as long as the system allows.
func TestStockClientAtAFullBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := &unix.SockaddrUnix{Name: path}
	if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		if err = unix.Connect(c, at); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, stderr, code := appctl(t, path, "version"); code != 1 || !strings.Contains(stderr, "Protocol error") {
		t.Errorf("exit %d, %q", code, stderr)
	}
}

// TestWhatOurClientTakes does the same for CallText, whose first id is 1.
func TestWhatOurClientTakes(t *testing.T) {
	lost := func(err error) bool { return errors.Is(err, ErrLost) && errors.Is(err, ErrUnreachable) }
	for _, tt := range []struct {
		name, reply, want string
		err               func(error) bool
	}{
		{"no error member", `{"id":1,"result":"hi"}`, "hi", nil},
		{"an empty result", `{"id":1,"result":"","error":null}`, "", nil},
		{"an error", `{"id":1,"error":"bad\n"}`, "", func(err error) bool {
			e, ok := errors.AsType[*Error](err)
			return ok && e.Message == "bad" && e.Code == api.CodeFailed
		}},
		{"JSON, when it was asked for", `{"id":1,"result":{"a":1},"error":null}`, `{"a":1}`, nil},
		{"a notification and a foreign reply first", `{"id":null,"method":"event","params":[{}]}{"id":9,"result":"no"}{"id":"x","result":"no"}{"id":1,"result":"hi"}`, "hi", nil},
		{"bytes that are not UTF-8", "{\"id\":1,\"result\":\"\xff\"}", "\xff", nil},
		{"an error to nobody", `{"id":null,"error":"go away\n"}`, "", func(err error) bool { return err.Error() == "go away" }},
		{"an error of the other dialect to nobody", `{"jsonrpc":"2.0","id":null,"error":{"code":-32003,"message":"busy"}}`, "",
			func(err error) bool { return errors.Is(err, &Error{Code: api.CodeBusy}) && err.Error() == "busy" }},
		{"garbage", `hello`, "", lost},
		{"closed after the request", ``, "", lost},
		{"a part of a reply", `{"id":1,"resu`, "", lost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Dial(t.Context(), scripted(t, tt.reply), DialOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got, err := c.CallText(t.Context(), "cmd")
			if got != tt.want || (err == nil) != (tt.err == nil) || (err != nil && !tt.err(err)) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
