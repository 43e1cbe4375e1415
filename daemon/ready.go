package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// verdict is the one message on a readiness pipe.
type verdict struct {
	ready  bool
	status int    // when not ready
	text   string // when not ready: why, possibly in several lines
}

// maxVerdict bounds the message.
const maxVerdict = 64 << 10

// errDied is the end of a readiness pipe without a message.
var errDied = errors.New("ended before it reported that it serves")

// send writes the message: "R\n", or "E STATUS QUOTED-TEXT\n".
func (v verdict) send(w io.Writer) error {
	line := "R\n"
	if !v.ready {
		text := v.text
		if len(text) > maxVerdict/8 { // quoting makes a byte four at most
			text = text[:maxVerdict/8] + "…"
		}
		line = fmt.Sprintf("E %d %q\n", v.status, text)
	}
	_, err := io.WriteString(w, line)
	return err
}

// readVerdict waits for the message. Anything else, a crash's traceback say,
// is never taken for one.
func readVerdict(r io.Reader) (verdict, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxVerdict)).ReadString('\n')
	if err == io.EOF && line == "" {
		return verdict{}, errDied
	}
	if err != nil && err != io.EOF {
		return verdict{}, fmt.Errorf("cannot read the readiness message: %w", err)
	}
	return parseVerdict(line)
}

func parseVerdict(line string) (verdict, error) {
	bad := fmt.Errorf("malformed readiness message %.80q", line)
	if line == "R\n" {
		return verdict{ready: true}, nil
	}
	rest, ok := strings.CutPrefix(line, "E ")
	status, quoted, ok2 := strings.Cut(strings.TrimSuffix(rest, "\n"), " ")
	if !ok || !ok2 || !strings.HasSuffix(line, "\n") {
		return verdict{}, bad
	}
	n, err := strconv.Atoi(status)
	if err != nil || n < 1 || n > 255 {
		return verdict{}, bad
	}
	text, err := strconv.Unquote(quoted)
	if err != nil {
		return verdict{}, bad
	}
	return verdict{status: n, text: text}, nil
}

// reporter is the writing end of a readiness pipe; nil reports to nobody.
type reporter struct{ pipe *os.File }

// report sends the verdict and closes the pipe; later reports go nowhere.
func (r *reporter) report(v verdict) error {
	if r == nil || r.pipe == nil {
		return nil
	}
	err := v.send(r.pipe)
	r.pipe.Close()
	r.pipe = nil
	return err
}

// pending reports whether somebody waits for the verdict.
func (r *reporter) pending() bool { return r != nil && r.pipe != nil }
