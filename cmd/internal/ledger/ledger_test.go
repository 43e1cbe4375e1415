package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// memory is a device in memory, with faults to order.
type memory struct {
	mu    sync.Mutex
	data  []byte
	write func(p []byte, off int64) (apply bool, err error)
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	apply, err := true, error(nil)
	if m.write != nil {
		apply, err = m.write(p, off)
	}
	if apply {
		copy(m.data[off:], p)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (m *memory) Flush() error { return nil }
func (m *memory) Close() error { return nil }

const size = 64 * Unit

func isViolation(err error) bool {
	_, ok := errors.AsType[*Violation](err)
	return ok
}

func TestLedgerFindsWhatIsWrong(t *testing.T) {
	lost := errors.New("connection lost")
	for name, c := range map[string]struct {
		fault func(m *memory) // after a first good write of blocks 4 to 7 and a second of block 5
		want  string          // "": nothing is wrong
	}{
		"all is well":              {func(*memory) {}, ""},
		"lost write":               {func(m *memory) { clear(m.data[5*Unit : 6*Unit]) }, "block 5 has generation 0; 2 was acknowledged"},
		"old write":                {func(m *memory) { stamp(m.data[5*Unit:6*Unit], 1, 5, 1) }, "block 5 has generation 1; 2 was acknowledged"},
		"write nobody made":        {func(m *memory) { stamp(m.data[9*Unit:10*Unit], 1, 9, 1) }, "block 9 has generation 1; 0 was"},
		"torn block":               {func(m *memory) { clear(m.data[6*Unit+2048 : 7*Unit]) }, "block 6 is torn"},
		"flipped bit":              {func(m *memory) { m.data[4*Unit+3000] ^= 4 }, "block 4 is torn"},
		"misplaced block":          {func(m *memory) { copy(m.data[8*Unit:9*Unit], m.data[7*Unit:8*Unit]) }, "block 8 holds block 7"},
		"block of another run":     {func(m *memory) { stamp(m.data[4*Unit:5*Unit], 2, 4, 1) }, "another run"},
		"foreign data":             {func(m *memory) { m.data[0] = 1 }, "foreign data"},
		"unanswered write is old":  {func(m *memory) {}, ""},
		"foreign data in the tail": {func(m *memory) { m.data[size-1] = 1 }, "foreign data"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{data: make([]byte, size)}
			l := New(1, size)
			buf := make([]byte, 4*Unit)
			if err := errors.Join(l.Write(m, buf, 4*Unit), l.Write(m, buf[:Unit], 5*Unit)); err != nil {
				t.Fatal(err)
			}
			m.write = func([]byte, int64) (bool, error) { return false, lost }
			if err := l.Write(m, buf[:Unit], 7*Unit); !errors.Is(err, lost) {
				t.Fatal(err)
			}
			c.fault(m)
			err := l.Verify(m)
			if c.want == "" && err != nil || c.want != "" && (!isViolation(err) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestUnansweredWriteIsOldOrNewAndThenStays(t *testing.T) {
	m := &memory{data: make([]byte, size)}
	l := New(1, size)
	buf := make([]byte, Unit)
	m.write = func([]byte, int64) (bool, error) { return true, errors.New("no answer") }
	if l.Write(m, buf, 0) == nil {
		t.Fatal("the write was answered")
	}
	if err := l.Verify(m); err != nil {
		t.Fatalf("new: %v", err)
	}
	clear(m.data)
	if err := l.Verify(m); !isViolation(err) {
		t.Errorf("a block that was seen went back, and nobody minds: %v", err)
	}
}

// lostReader is a connection that is lost: it has read nothing, and says so as a file at its end does.
type lostReader struct{}

func (lostReader) ReadAt([]byte, int64) (int, error) { return 0, fmt.Errorf("read: %w", io.EOF) }

func TestLostConnectionIsNoBrokenPromise(t *testing.T) {
	l := New(1, size)
	if err := l.Read(lostReader{}, make([]byte, Unit), 0); !errors.Is(err, io.EOF) || isViolation(err) {
		t.Errorf("got %v", err)
	}
}

func TestVerifyFile(t *testing.T) {
	m := &memory{data: make([]byte, size)}
	l := New(1, size)
	if err := l.Write(m, make([]byte, 2*Unit), Unit); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, m.data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.VerifyFile(path); err != nil {
		t.Error(err)
	}
	if got := l.Written(); got != 2*Unit {
		t.Errorf("written: %d", got)
	}
}

// TestLoadSurvivesLostConnections runs a load over a device that drops every
// hundredth write, half of them after it was done.
func TestLoadSurvivesLostConnections(t *testing.T) {
	m := &memory{data: make([]byte, size)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	m.write = func([]byte, int64) (bool, error) {
		if n++; n == 2000 {
			cancel()
		}
		if n%100 == 0 {
			return n%200 == 0, errors.New("connection lost")
		}
		return true, nil
	}
	l, c := New(7, size), new(Load)
	if err := l.Run(ctx, c, 3, func(context.Context) (Device, error) { return m, nil }); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(m); err != nil {
		t.Error(err)
	}
	if c.Errors.Load() == 0 || len(c.Failures()) == 0 || c.Dials.Load() <= 3 || c.Writes.Load() < 2000 {
		t.Errorf("errors %d, connections %d, writes %d", c.Errors.Load(), c.Dials.Load(), c.Writes.Load())
	}
}

func TestLoadStopsAtABrokenPromise(t *testing.T) {
	m := &memory{data: make([]byte, size)}
	m.write = func([]byte, int64) (bool, error) { return false, nil } // acknowledges and forgets
	err := New(7, size).Run(t.Context(), new(Load), 2, func(context.Context) (Device, error) { return m, nil })
	if !isViolation(err) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkStamp(b *testing.B) {
	buf := make([]byte, Unit)
	b.SetBytes(Unit)
	for b.Loop() {
		stamp(buf, 1, 2, 3)
	}
}
