package torture

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Mark begins the lines of the console that are the machine's reports; the
// kernel's own words lack it.
const Mark = "@torture "

// A Report is all that a machine said on its console.
type Report struct {
	Checked int      // files that were whole; -1 before that is known
	Writing bool     // the writers are at work
	Synced  int      // promises made
	Errors  int      // writes that failed
	Again   int      // connections made in the place of lost ones
	Halted  bool     // it ended in order
	Failed  []string // what was wrong
}

// Learn reads a console and adds to what is kept the promises made in it. A
// last line that is cut short is not counted: it was not said.
func Learn(console []byte, kept []Kept) (Report, error) {
	r := Report{Checked: -1}
	if end := bytes.LastIndexByte(console, '\n'); end >= 0 {
		console = console[:end+1]
	} else {
		console = nil
	}
	for s := bufio.NewScanner(bytes.NewReader(console)); s.Scan(); {
		_, line, found := strings.Cut(strings.TrimRight(s.Text(), "\r"), Mark)
		if !found {
			continue
		}
		if err := r.line(line, kept); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *Report) line(line string, kept []Kept) error {
	var w, n int
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "synced", "removing", "replaced", "begins":
		if _, err := fmt.Sscan(rest, &w, &n); err != nil || w < 0 || w >= len(kept) {
			return fmt.Errorf("the console says %q: %v", line, err)
		}
	}
	switch word {
	case "begins": // before anything of a file is written
		kept[w].Next = n + 1
	case "synced":
		kept[w].Files = append(kept[w].Files, n)
		r.Synced++
	case "removing": // before it is removed
		kept[w].Files = slices.DeleteFunc(kept[w].Files, func(f int) bool { return f == n })
	case "replaced":
		kept[w].Gen = n
		r.Synced++
	case "checked":
		if _, err := fmt.Sscan(rest, &r.Checked); err != nil {
			return fmt.Errorf("the console says %q: %w", line, err)
		}
	case "writing":
		r.Writing = true
	case "lost":
	case "again":
		r.Again++
	case "error":
		r.Errors++
	case "halted":
		r.Halted = true
	case "failed":
		r.Failed = append(r.Failed, rest)
	default:
		return fmt.Errorf("the console says %q", line)
	}
	return nil
}
