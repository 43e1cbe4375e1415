package cluster

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigText(t *testing.T) {
	cfg := Three("64MiB")
	cfg.Devices[0].NBD = []string{"unix", "tcp:127.0.0.1:10809"}
	cfg.Extra = "\n[log]\nlevel = \"debug\"\n"
	got := cfg.toml(func(id int) string { return "127.1.2." + string(rune('1'+id)) + ":7799" })
	for _, want := range []string{
		"name = \"gamma\"\nid = 2\naddress = \"127.1.2.3:7799\"\n",
		"tick_time = \"2s\"\n", "size = \"64MiB\"\n", "disk = \"r0.img\"\n", "quorum = \"majority\"\n",
		"nbd = [\"unix\", \"tcp:127.0.0.1:10809\"]\n", "[log]\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, "protocol") {
		t.Errorf("what was left empty is in\n%s", got)
	}
}

func TestNewNeedsThePrograms(t *testing.T) {
	_, err := New(Options{Bin: t.TempDir()}, Three("1MiB"))
	if err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
}

func TestInSync(t *testing.T) {
	good := func() Status {
		return Status{Nodes: []Peer{{Name: "beta", State: "up"}}, Devices: []DeviceState{{
			Name: "r0", Disk: "UpToDate", Peers: []DevicePeer{{Node: "beta", Disk: "UpToDate", Replication: "Established"}}}}}
	}
	for name, c := range map[string]struct {
		change func(*Status)
		want   bool
	}{
		"as it should be": {func(*Status) {}, true},
		"peer down":       {func(s *Status) { s.Nodes[0].State = "down" }, false},
		"dirty":           {func(s *Status) { s.Devices[0].Peers[0].OutOfSync = 4096 }, false},
		"resyncing":       {func(s *Status) { s.Devices[0].Peers[0].Replication = "SyncSource" }, false},
		"own disk stale":  {func(s *Status) { s.Devices[0].Disk = "Outdated" }, false},
		"no such device":  {func(s *Status) { s.Devices = nil }, false},
	} {
		s := good()
		c.change(&s)
		if got := InSync("r0")(s); got != c.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func TestSameFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int, change func([]byte)) string {
		b := bytes.Repeat([]byte{7}, size)
		change(b)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	same := func([]byte) {}
	a := write("a", 3<<20, same)
	for _, c := range []struct {
		path, want string
	}{
		{write("b", 3<<20, same), ""},
		{write("c", 3<<20-1, same), "different sizes"},
		{write("d", 3<<20, func(b []byte) { b[2<<20+8192] = 1; b[2<<20+9000] = 1 }), "1 blocks of 4 KiB, first at byte 2105344"},
		{write("e", 3<<20, func(b []byte) { b[0] = 1; b[5000] = 1 }), "2 blocks of 4 KiB, first at byte 0"},
		{filepath.Join(dir, "none"), "no such file"},
	} {
		err := sameFiles(a, c.path)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", filepath.Base(c.path), err, c.want)
		}
	}
}
