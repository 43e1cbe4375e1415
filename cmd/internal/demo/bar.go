package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// bar shows how far a resync is: in place on a terminal, a line per quarter elsewhere.
type bar struct {
	out     io.Writer
	tty     bool
	quarter int64 // the last one shown
	drawn   bool
}

func (b *bar) draw(done, total int64, state string, since time.Duration) {
	done = max(0, min(done, total))
	part := 1.0
	if total > 0 {
		part = float64(done) / float64(total)
	}
	quarter := 1 + int64(part*4)
	if !b.tty && quarter == b.quarter {
		return
	}
	b.quarter, b.drawn = quarter, true
	const width = 32
	full := int(part * width)
	line := fmt.Sprintf("      [%s%s] %3.0f %%  %d of %d MiB  %.1f s  %s", strings.Repeat("=", full), strings.Repeat(" ", width-full),
		part*100, done/mib, total/mib, since.Seconds(), state)
	if b.tty {
		fmt.Fprintf(b.out, "\r%-78s", line)
	} else {
		fmt.Fprintln(b.out, line)
	}
}

// end leaves the bar as it is and goes on below it.
func (b *bar) end() {
	if b.tty && b.drawn {
		fmt.Fprintln(b.out)
	}
	fmt.Fprint(b.out, "    done")
}
