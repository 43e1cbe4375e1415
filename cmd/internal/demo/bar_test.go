package main

import (
	"strings"
	"testing"
	"time"
)

func TestBarWithoutATerminal(t *testing.T) {
	var out strings.Builder
	b := &bar{out: &out}
	for done := int64(0); done <= 128; done++ {
		b.draw(done*mib, 128*mib, "SyncSource", time.Second)
	}
	b.end()
	if n := strings.Count(out.String(), "\n"); n != 5 { // 0, 25, 50, 75 and 100 per cent
		t.Errorf("%d lines:\n%s", n, out.String())
	}
	if !strings.Contains(out.String(), "["+strings.Repeat("=", 32)+"] 100 %  128 of 128 MiB") {
		t.Errorf("no full bar:\n%s", out.String())
	}
}

func TestBarBearsOddFigures(t *testing.T) {
	var out strings.Builder
	b := &bar{out: &out, tty: true}
	b.draw(-5, 0, "", 0)
	b.draw(9, 5, "", 0)
	b.end()
	if strings.Contains(out.String(), "NaN") || !strings.Contains(out.String(), "100 %") {
		t.Errorf("%q", out.String())
	}
}
