package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Pos is a place in a file; lines and columns count from 1, columns in bytes.
// The zero Pos is no place.
type Pos struct {
	Line, Col int
}

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	File string
	Pos
	// Key is the key by names: "device.r0.size", or by number where a name
	// is missing: "device.2.name" is that of the second device.
	Key     string
	Found   string // what is there
	Allowed string // what could be
}

// String is "FILE:LINE:COL: KEY: FOUND; ALLOWED".
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.Where())
	b.WriteString(": ")
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Found)
	if f.Allowed != "" {
		b.WriteString("; " + f.Allowed)
	}
	return b.String()
}

// Where is "FILE:LINE:COL", or the file alone where the fault has no place in it.
func (f Fault) Where() string {
	if f.Line == 0 {
		return f.File
	}
	return fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Col)
}

// Faults is everything that is wrong with a configuration, in the order of
// the file. It is the error of Load and Decode.
type Faults []Fault

// Error is one fault per line: the text of `lockstepd --check`.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// maxFaults bounds what one broken file can make us say.
const maxFaults = 200

// faultList collects faults of one file.
type faultList struct {
	file   string
	faults Faults
	more   int // beyond maxFaults
}

func (l *faultList) add(pos Pos, key, found, allowed string) {
	if len(l.faults) == maxFaults {
		l.more++
		return
	}
	l.faults = append(l.faults, Fault{File: l.file, Pos: pos, Key: key, Found: found, Allowed: allowed})
}

// full reports whether add would only count.
func (l *faultList) full() bool { return len(l.faults) == maxFaults }

// err is nil, or the sorted Faults.
func (l *faultList) err() error {
	if len(l.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(l.faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	if l.more > 0 {
		l.faults = append(l.faults, Fault{File: l.file, Found: fmt.Sprintf("%d more faults", l.more), Allowed: "mend these first"})
		l.more = 0
	}
	return l.faults
}
