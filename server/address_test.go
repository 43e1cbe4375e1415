package server

import (
	"net"
	"testing"
)

func TestWhereASocketListens(t *testing.T) {
	for _, c := range []struct {
		have, want    string
		same, overlap bool
	}{
		{"127.0.0.1:7799", "127.0.0.1:7799", true, true},
		{"127.0.0.1:7799", "127.0.0.2:7799", false, false},
		{"127.0.0.1:7799", "127.0.0.1:7800", false, false},
		{"127.0.0.1:7799", "127.0.0.1:0", true, false},
		{"0.0.0.0:7799", "127.0.0.1:7799", true, true},
		{"[::]:7799", "127.0.0.1:7799", true, true},
		{"127.0.0.1:7799", ":7799", false, true},
		{"127.0.0.1:7799", "[::]:7799", false, true},
		{"127.0.0.1:7799", "nonsense", false, false},
	} {
		have, err := net.ResolveTCPAddr("tcp", c.have)
		if err != nil {
			t.Fatal(err)
		}
		if got := listensAt(have, c.want); got != c.same {
			t.Errorf("%s listens at %s: %t", c.have, c.want, got)
		}
		if got := overlap(have, c.want); got != c.overlap {
			t.Errorf("%s overlaps with %s: %t", c.have, c.want, got)
		}
	}
	if listensAt(&net.UnixAddr{Name: "x", Net: "unix"}, "127.0.0.1:1") {
		t.Error("a Unix socket takes peers")
	}
}
