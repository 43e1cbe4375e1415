package config

import (
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

// files is an Env in memory: its names are absolute paths.
type files fstest.MapFS

func (f files) Open(path string) (fs.File, error) {
	return fstest.MapFS(f).Open(strings.TrimPrefix(path, "/"))
}

const secretText = "0123456789abcdef"

func env() files {
	return files{
		"etc/secret":  {Data: []byte(secretText + "\n"), Mode: 0o600},
		"etc/open":    {Data: []byte(secretText), Mode: 0o640},
		"etc/short":   {Data: []byte("0123456789abcde\n"), Mode: 0o600},
		"etc/long":    {Data: make([]byte, MaxSecretBytes+1), Mode: 0o600},
		"etc/dir/x":   {Data: []byte("x"), Mode: 0o600},
		"etc/fifo":    {Mode: fs.ModeNamedPipe | 0o600},
		"etc/pem":     {Data: []byte("no PEM"), Mode: 0o644},
		"etc/openkey": {Data: []byte("no PEM"), Mode: 0o644},
	}
}

const path = "/etc/lockstep.toml"

func decode(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Decode(path, []byte(text), env())
	if err != nil {
		t.Fatalf("valid configuration refused:\n%v", err)
	}
	return c
}

// base is a valid configuration of two nodes and one device.
const base = `[cluster]
name = "demo"
secret_file = "secret"
[[node]]
name = "alpha"
id = 0
address = "127.0.0.1:7001"
[[node]]
name = "beta"
id = 1
address = "127.0.0.1:7002"
[[device]]
name = "r0"
size = "64MiB"
`

func TestTheExampleIsValid(t *testing.T) {
	data, err := os.ReadFile("example.toml")
	if err != nil {
		t.Fatal(err)
	}
	c := decode(t, string(data))
	if n := len(c.Keys()); n < 50 {
		t.Errorf("the flat view has %d keys", n)
	}
}

// TestTheExampleShowsEveryKey keeps the example complete: a key of the schema
// that it neither sets nor mentions in a comment is a key nobody finds.
func TestTheExampleShowsEveryKey(t *testing.T) {
	data, err := os.ReadFile("example.toml")
	if err != nil {
		t.Fatal(err)
	}
	c := decode(t, string(data))
	c.Cluster.TLS.CA = "x"
	for _, s := range c.slots() {
		if strings.HasPrefix(s.path, "handler.") && s.key == "device" {
			continue // as node is
		}
		if !strings.Contains(string(data), s.key) {
			t.Errorf("example.toml does not show %s", s.path)
		}
	}
}

func TestDefaults(t *testing.T) {
	c := decode(t, base)
	want := map[string]string{
		"cluster.tick_time":         "8s",
		"cluster.max_ping_count":    "4",
		"cluster.sign":              "false",
		"device.r0.disk":            "r0.img",
		"device.r0.nodes":           `["alpha", "beta"]`,
		"device.r0.protocol":        "C",
		"device.r0.quorum":          "majority",
		"device.r0.on_no_quorum":    "suspend-io",
		"device.r0.auto_promote":    "true",
		"device.r0.resync_rate":     "auto",
		"device.r0.nbd":             `["unix"]`,
		"device.r0.on_io_error":     "detach",
		"device.r0.al_extents":      "1237",
		"device.r0.al_extent_size":  "4MiB",
		"device.r0.after_sb_0pri":   "disconnect",
		"log.level":                 "info",
		"log.format":                "text",
		"metrics.listen":            "",
		"device.r0.fence_peer":      "[]",
		"device.r0.disk_timeout":    "0s",
		"control.admin_groups":      "[]",
		"node.alpha.bind":           "",
		"cluster.secret_file":       "secret",
		"device.r0.after_sb_2pri":   "disconnect",
		"device.r0.after_sb_1pri":   "disconnect",
		"device.r0.al_extents_nope": "",
	}
	for _, k := range c.Keys() {
		if v, ok := want[k.Path]; ok && v != k.Value {
			t.Errorf("%s is %s, not %s", k.Path, k.Value, v)
		}
		delete(want, k.Path)
	}
	if len(want) != 1 {
		t.Errorf("missing in the flat view: %v", want)
	}
	if got := string(c.Cluster.Secret.Reveal()); got != secretText {
		t.Errorf("the secret is %q: the line end is not part of it", got)
	}
}

// TestEveryFaultSaysWhereWhatAndWhatElse decodes base with one replacement
// and wants exactly these faults.
func TestEveryFaultSaysWhereWhatAndWhatElse(t *testing.T) {
	dev := base + "%" // what follows is appended to the device's table
	for _, tc := range []struct {
		name, old, new string // new replaces old in base; with old "" it is appended
		want           []string
	}{
		{"no name", `name = "demo"`, ``, []string{`1:2: cluster.name: missing; a name such as "demo"`}},
		{"bad cluster name", `"demo"`, `"-x"`, []string{`2:8: cluster.name: "-x"; 1 to 63 of letters, digits, . _ -, beginning with a letter or digit`}},
		{"empty cluster name", `"demo"`, `""`, []string{`2:8: cluster.name: ""; 1 to 63 of`}},
		{"long name", `"beta"`, `"` + strings.Repeat("b", 64) + `"`, []string{`9:8: node.2.name: "bbbb`}},
		{"unknown key", `name = "demo"`, "name = \"demo\"\ntik_time = \"8s\"", []string{`3:1: cluster.tik_time: unknown key; did you mean tick_time? known here: name, secret_file, tick_time, max_ping_count, sign, tls`}},
		{"unknown table", ``, "[clutser]\n", []string{`15:2: clutser: unknown key; did you mean cluster? known here: cluster, node, device, control, log, metrics, handler`}},
		{"unknown key at the top", `[cluster]`, "size = 1\n[cluster]", []string{`1:1: size: unknown key; known here`}},
		{"duplicate key", `id = 1`, "id = 1\nid = 1", []string{`11:1: node.id: given twice, first in line 10; once is allowed`}},
		{"duplicate table", ``, "[cluster]\n", []string{`15:2: cluster: given twice, first in line 1; once is allowed`}},
		{"wrong type int", `id = 1`, `id = "1"`, []string{`10:6: node.beta.id: the string "1"; a whole number`}},
		{"wrong type float", `id = 1`, `id = 1.5`, []string{`10:6: node.beta.id: the number 1.5; a whole number`}},
		{"wrong type string", `"beta"`, `7`, []string{`9:8: node.2.name: the number 7; a string`}},
		{"wrong type table", `name = "demo"`, `name = {a=1}`, []string{`2:8: cluster.name: a table; a string`}},
		{"date", `name = "demo"`, `name = 2026-01-01`, []string{`2:8: cluster.name: the date or time 2026-01-01; a string`}},
		{"overflow", `id = 1`, `id = 99999999999999999999`, []string{`10:6: node.id: 99999999999999999999; a whole number of 64 bits`}},
		{"id too large", `id = 1`, `id = 32`, []string{`10:6: node.beta.id: 32; from 0 to 31`}},
		{"id negative", `id = 1`, `id = -1`, []string{`10:6: node.beta.id: -1; from 0 to 31`}},
		{"id missing", "id = 1\n", ``, []string{`8:3: node.beta.id: missing; a number from 0 to 31 that no other node has`}},
		{"id twice", `id = 1`, `id = 0`, []string{`10:6: node.beta.id: 0 is taken in line 6; each once`}},
		{"name twice", `"beta"`, `"alpha"`, []string{`9:8: node.alpha.name: "alpha" is taken in line 5; each once`}},
		{"address twice", `:7002`, `:7001`, []string{`11:11: node.beta.address: "127.0.0.1:7001" is taken in line 7; each once`}},
		{"address without port", `127.0.0.1:7002`, `127.0.0.1`, []string{`11:11: node.beta.address: "127.0.0.1" is not HOST:PORT; "HOST:PORT", port 1 to 65535, such as "192.0.2.1:7799"`}},
		{"address without host", `127.0.0.1:7002`, `:7002`, []string{`11:11: node.beta.address: ":7002" has no host`}},
		{"port 0", `:7002`, `:0`, []string{`"127.0.0.1:0" has no such port`}},
		{"port 65536", `:7002`, `:65536`, []string{`has no such port`}},
		{"bad host", `127.0.0.1:7002`, `a b:7002`, []string{`has no valid host`}},
		{"bad bind", `id = 1`, "id = 1\nbind = \"x\"", []string{`11:8: node.beta.bind: "x" is not HOST:PORT; "HOST:PORT" or ":PORT" of this node`}},
		{"node is one table", `[[node]]
name = "alpha"
id = 0
address = "127.0.0.1:7001"
[[node]]`, `[node]`, []string{`4:2: node: [node]; tables [[node]]`}},
		{"cluster is an array", `[cluster]`, `[[cluster]]`, []string{`1:3: cluster: [[cluster]]; a table [cluster], once`}},
		{"log is a string", `[cluster]`, "log = \"x\"\n[cluster]", []string{`1:1: log: the string "x"; a table [log]`}},
		{"node is a string", `[cluster]`, "node = \"x\"\n[cluster]", []string{`1:1: node: the string "x"; tables [[node]]`, `5:3: node: given twice, first in line 1`, `9:3: node: given twice`}},
		{"tick time number", ``, "#", nil},
		{"tick time as number", `name = "demo"`, "name = \"demo\"\ntick_time = 8", []string{`3:13: cluster.tick_time: the number 8; a duration such as "8s" or "500ms"`}},
		{"tick time too short", `name = "demo"`, "name = \"demo\"\ntick_time = \"99ms\"", []string{`cluster.tick_time: 99ms; from 100ms to 1h`}},
		{"tick time too long", `name = "demo"`, "name = \"demo\"\ntick_time = \"61m\"", []string{`cluster.tick_time: 1h1m; from 100ms to 1h`}},
		{"max ping count", `name = "demo"`, "name = \"demo\"\nmax_ping_count = 3", []string{`cluster.max_ping_count: 3; from 4 to 1000`}},
		{"secret missing", `secret_file = "secret"`, ``, []string{`1:2: cluster.secret_file: missing; with more than one node, a file of at least 16 bytes with mode 0600`}},
		{"secret absent", `"secret"`, `"nope"`, []string{`3:15: cluster.secret_file: cannot open "/etc/nope": file does not exist; a file that lockstepd can read`}},
		{"secret readable by others", `"secret"`, `"open"`, []string{`3:15: cluster.secret_file: "/etc/open" has mode 0640, so others may read or change it; run: chmod 0600 /etc/open`}},
		{"secret short", `"secret"`, `"short"`, []string{`3:15: cluster.secret_file: "short" holds 15 bytes; at least 16; try: head -c 32`}},
		{"secret long", `"secret"`, `"long"`, []string{`"/etc/long" is too large; at most 4096 bytes`}},
		{"secret folder", `"secret"`, `"dir"`, []string{`"/etc/dir" is not a regular file; a regular file`}},
		{"secret fifo", `"secret"`, `"fifo"`, []string{`"/etc/fifo" is not a regular file; a regular file`}},
		{"secret empty", `"secret"`, `""`, []string{`3:15: cluster.secret_file: ""; a file of at least 16 bytes`}},
		{"tls incomplete", `name = "demo"`, "name = \"demo\"\ntls = {ca = \"pem\"}", []string{`3:7: cluster.tls.cert: missing; the file of this node's certificate, PEM`, `3:7: cluster.tls.key: missing`}},
		{"tls unknown", `name = "demo"`, "name = \"demo\"\ntls = {ca = \"pem\", cert=\"pem\", key=\"pem\", kay=1}", []string{`cluster.tls.ca: "pem" holds no certificate`, `cluster.tls.cert: "pem" holds no certificate`, `cluster.tls.key: "/etc/pem" has mode 0644`, `cluster.tls.kay: unknown key; did you mean key?`}},
		{"no nodes", base[strings.Index(base, "[[node]]"):strings.Index(base, "[[device]]")], ``, []string{`1:1: node: missing; at least one [[node]]`}},
		{"size missing", `size = "64MiB"`, ``, []string{`12:3: device.r0.size: missing; a size such as "1GiB"`}},
		{"size zero", `"64MiB"`, `0`, []string{`14:8: device.r0.size: 0B; a multiple of 4KiB, from 4KiB to 16TiB`}},
		{"size negative", `"64MiB"`, `-4096`, []string{`14:8: device.r0.size: -4096B; a multiple`}},
		{"size odd", `"64MiB"`, `"5kB"`, []string{`14:8: device.r0.size: 5000B is 904 bytes over a multiple; a multiple of 4KiB`}},
		{"size huge", `"64MiB"`, `"17TiB"`, []string{`device.r0.size: 17TiB; a multiple`}},
		{"size overflow", `"64MiB"`, `"99999999999TiB"`, []string{`device.r0.size: "99999999999TiB"; a size such as "1GiB" or a number of bytes`}},
		{"size unit", `"64MiB"`, `"64Mib"`, []string{`device.r0.size: "64Mib"; a size such as`}},
		{"device twice", ``, "[[device]]\nname=\"r0\"\nsize=4096\ndisk=\"x\"\n", []string{`16:6: device.r0.name: "r0" is taken in line 13; each once`}},
		{"unknown node", dev, `nodes = ["alpha", "delta"]`, []string{`15:9: device.r0.nodes: "delta" is no node; nodes are "alpha", "beta"`}},
		{"node twice in a device", dev, `nodes = ["alpha", "alpha"]`, []string{`15:9: device.r0.nodes: "alpha" twice; each once`}},
		{"no node in a device", dev, `nodes = []`, []string{`15:9: device.r0.nodes: []; at least one node; leave it out for all nodes`}},
		{"nodes of numbers", dev, `nodes = [1]`, []string{`15:9: device.r0.nodes: an array with the number 1; a string or an array of strings`}},
		{"protocol", dev, `protocol = "D"`, []string{`15:12: device.r0.protocol: "D"; one of "A", "B", "C"`}},
		{"protocol type", dev, `protocol = 3`, []string{`15:12: device.r0.protocol: the number 3; one of "A", "B", "C"`}},
		{"quorum word", dev, `quorum = "most"`, []string{`15:10: device.r0.quorum: "most"; "off", "majority", "all" or a number of nodes`}},
		{"quorum zero", dev, `quorum = 0`, []string{`15:10: device.r0.quorum: 0; "off"`}},
		{"quorum beyond", dev, `quorum = 3`, []string{`device.r0.quorum: 3; "off", "majority", "all" or a number of nodes; the device has 2 nodes`}},
		{"quorum type", dev, `quorum = true`, []string{`device.r0.quorum: true; "off"`}},
		{"on_no_quorum", dev, `on_no_quorum = "panic"`, []string{`device.r0.on_no_quorum: "panic"; one of "suspend-io", "io-error"`}},
		{"auto_promote", dev, `auto_promote = "yes"`, []string{`device.r0.auto_promote: the string "yes"; true or false`}},
		{"rate", dev, `resync_rate = "fast"`, []string{`device.r0.resync_rate: "fast"; "auto" or a rate such as "200MiB/s"`}},
		{"rate zero", dev, `resync_rate = "0/s"`, []string{`device.r0.resync_rate: "0/s"; "auto"`}},
		{"rate too slow", dev, `resync_rate = "1KiB/s"`, []string{`device.r0.resync_rate: 1KiB/s; "auto", or at least 4KiB/s`}},
		{"nbd", dev, `nbd = ["unix", "udp:1"]`, []string{`device.r0.nbd: "udp:1" is neither; "unix" and "tcp:HOST:PORT"`}},
		{"nbd port", dev, `nbd = "tcp:127.0.0.1"`, []string{`device.r0.nbd: "tcp:127.0.0.1" is not HOST:PORT`}},
		{"nbd twice", dev, `nbd = ["unix", "unix"]`, []string{`device.r0.nbd: "unix" twice; each once`}},
		{"nbd port of the peers", dev, `nbd = "tcp::7001"`, []string{`device.r0.nbd: ":7001" is taken on alpha by the peers' port; a port for each`}},
		{"nbd port of another device", dev, "nbd = \"tcp:127.0.0.1:9\"\n[[device]]\nname=\"r1\"\nsize=4096\nnbd=[\"tcp:0.0.0.0:9\"]", []string{`19:5: device.r1.nbd: "0.0.0.0:9" is taken on alpha by NBD of "r0"; a port for each`}},
		{"metrics port", dev, "[metrics]\nlisten = \":7002\"", []string{`metrics.listen: ":7002" is taken on beta by the peers' port`}},
		{"metrics address", dev, "[metrics]\nlisten = \"9799\"", []string{`16:10: metrics.listen: "9799" is not HOST:PORT; "HOST:PORT", such as`}},
		{"disk empty", dev, `disk = ""`, []string{`device.r0.disk: ""; a path in the state dir, or an absolute one`}},
		{"disk escapes", dev, `disk = "../x"`, []string{`device.r0.disk: "../x" leaves the state dir`}},
		{"disk shared", dev, "disk = \"x\"\n[[device]]\nname=\"r1\"\nsize=4096\ndisk=\"x\"", []string{`19:6: device.r1.disk: "x" is the disk of "r0" on alpha; a disk for each device`}},
		{"override of no node", dev, "[device.on.delta]\ndiskless = true", []string{`15:12: device.r0.on.delta: no such node; nodes are "alpha", "beta"`}},
		{"override elsewhere", dev, "nodes = [\"alpha\"]\n[device.on.beta]\ndiskless = true", []string{`device.r0.on: every node is diskless`, `device.r0.on.beta: the device is not on this node; one of the device's nodes ["alpha"]`}},
		{"override unknown key", dev, "[device.on.beta]\ndiskles = true", []string{`device.r0.on.beta.diskles: unknown key; did you mean diskless? known here: disk, diskless, nbd`}},
		{"override contradicts", dev, "[device.on.beta]\ndiskless = true\ndisk = \"x\"", []string{`17:8: device.r0.on.beta.disk: "x" together with diskless; the one or the other`}},
		{"override is no table", dev, "on = 3", []string{`15:1: device.r0.on: the number 3; tables [device.on.NODE]`}},
		{"override of a node is no table", dev, "on.beta = 3", []string{`device.r0.on.beta: the number 3; a table [device.r0.on.beta]`}},
		{"all diskless", dev, "[device.on.beta]\ndiskless = true\n[device.on.alpha]\ndiskless = true", []string{`device.r0.on: every node is diskless; at least one node with a disk`}},
		{"group on other nodes", dev, "group = \"g\"\n[[device]]\nname=\"r1\"\nsize=4096\ngroup=\"g\"\nnodes=[\"alpha\"]", []string{`device.r1.group: "r1" is on ["alpha"], "r0" on ["alpha", "beta"]; the devices of a group are on the same nodes`}},
		{"group of protocol B", dev, "protocol = \"B\"\ngroup = \"g\"", []string{`device.r0.protocol: "B" in a group; "C"`}},
		{"group with another quorum", dev, "group = \"g\"\n[[device]]\nname=\"r1\"\nsize=4096\ngroup=\"g\"\nquorum=\"all\"\non_no_quorum=\"io-error\"", []string{`device.r1.quorum: "r1" has "all", and "r0", of the same group, "majority"; the same for all devices of a group`, `device.r1.on_no_quorum: "r1" has "io-error"`}},
		{"group name", dev, `group = "-"`, []string{`device.r0.group: "-"; 1 to 63`}},
		{"io error", dev, `on_io_error = "call"`, []string{`one of "detach", "pass-on"`}},
		{"disk timeout", dev, `disk_timeout = "1ms"`, []string{`device.r0.disk_timeout: 1ms; from 100ms to 1h`}},
		{"al extents", dev, `al_extents = 6`, []string{`device.r0.al_extents: 6; from 7 to 65534`}},
		{"al extents for a short change", dev, "al_extents = 1024\nal_extent_size = \"64KiB\"", []string{`device.r0.al_extents: 1024; at least 1025 of 64KiB, so that the activity log covers 64MiB`}},
		{"al extent size", dev, `al_extent_size = "3MiB"`, []string{`device.r0.al_extent_size: 3MiB; a power of two from 64KiB to 1GiB`}},
		{"after split brain", dev, "after_sb_0pri = \"x\"\nafter_sb_1pri = \"x\"\nafter_sb_2pri = \"x\"", []string{`after_sb_0pri: "x"; one of "disconnect"`, `after_sb_1pri: "x"; one of`, `after_sb_2pri: "x"; one of`}},
		{"fence peer", dev, `fence_peer = "x y"`, []string{`device.r0.fence_peer: the string "x y"; an array of strings: the program, then its arguments; there is no shell`}},
		{"fence peer empty", dev, `fence_peer = []`, []string{`device.r0.fence_peer: []; an absolute path of a program`}},
		{"log", dev, "[log]\nlevel = \"loud\"\nformat = \"xml\"", []string{`log.level: "loud"; one of "debug", "info", "warn", "error"`, `log.format: "xml"; one of "text", "json"`}},
		{"control listen", dev, "[control]\nlisten = \"ptcp:1\"", []string{`control.listen: "ptcp:1" is no TLS stream; "pssl:PORT" or "pssl:PORT:IP"; only TLS is served to other hosts`}},
		{"control listen port", dev, "[control]\nlisten = \"pssl:0\"", []string{`control.listen: "pssl:0" has no such port; "pssl:PORT"`}},
		{"control listen address", dev, "[control]\nlisten = \"pssl:1:host\"", []string{`control.listen: "pssl:1:host" has no valid IP address; "pssl:PORT"`}},
		{"control name twice", dev, "[control]\nadmin_names = [\"a\", \"a\"]\nread_names = [\"\"]", []string{`control.admin_names: "a" twice; each once`, `control.read_names: ""; common names of certificates`}},
		{"control listen without tls", dev, "[control]\nlisten = \"pssl:1\"", []string{`control.listen: "pssl:1" without certificates; with [cluster] tls only`}},
		{"control group", dev, "[control]\nadmin_groups = [\"a\", \"\"]", []string{`control.admin_groups: ""; names of groups`}},
		{"handler event", dev, "[[handler]]\nevent=\"nodown\"\ncommand=[\"/x\"]", []string{`16:7: handler.1.event: "nodown"; did you mean "nodedown"? one of nodeup, `}},
		{"handler without command", dev, "[[handler]]\nevent=\"*\"", []string{`15:3: handler.1.command: missing; a program and its arguments`}},
		{"handler empty command", dev, "[[handler]]\nevent=\"*\"\ncommand=[]", []string{`handler.1.command: []; an absolute path`}},
		{"handler relative command", dev, "[[handler]]\nevent=\"*\"\ncommand=[\"x\"]", []string{`handler.1.command: "x"; an absolute path`}},
		{"handler limits", dev, "[[handler]]\nevent=\"*\"\ncommand=[\"/x\"]\ntimeout=\"2h\"\nmax_parallel=0\nretries=11", []string{`handler.1.timeout: 2h; from 100ms to 1h`, `handler.1.max_parallel: 0; from 1 to 64`, `handler.1.retries: 11; from 0 to 10`}},
		{"handler filters", dev, "[[handler]]\nevent=\"*\"\ncommand=[\"/x\"]\ndevice=\"r9\"\nnode=\"n9\"", []string{`handler.1.device: "r9"; names of devices of this file`, `handler.1.node: "n9"; names of nodes`}},
		{"syntax", `id = 1`, `id = = 1`, []string{`10:6: `}},
		{"syntax twice, and a wrong type between", base, "[cluster]\nname = \nmax_ping_count = \"x\"\n[[nod\nname = 3\n[log]\nlevel = 3\n", []string{`2:8: `, `3:18: cluster.max_ping_count: the string "x"; a whole number`, `4:6: `, `7:9: log.level: the number 3`}},
		{"control characters in a key", ``, "[log]\n\"a\\nb\" = 1", []string{`16:1: log."a\nb": unknown key`}},
		{"empty", base, ``, []string{`1:1: cluster: missing; a table [cluster] with a name and a secret_file`, `1:1: node: missing`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := base + tc.new
			switch {
			case tc.old == dev:
			case tc.old != "":
				if !strings.Contains(base, tc.old) {
					t.Fatalf("base has no %q", tc.old)
				}
				text = strings.Replace(base, tc.old, tc.new, 1)
			}
			checkFaults(t, text, tc.want)
		})
	}
}

func checkFaults(t *testing.T, text string, want []string) {
	t.Helper()
	_, err := Decode(path, []byte(text), env())
	var got []string
	if err != nil {
		faults, ok := err.(Faults)
		if !ok {
			t.Fatalf("not Faults: %v", err)
		}
		for _, f := range faults {
			got = append(got, f.String())
		}
	}
	bad := len(got) != len(want)
	for i := 0; !bad && i < len(want); i++ {
		bad = !strings.Contains(got[i], want[i]) || strings.Contains(got[i], "\n")
	}
	if bad {
		t.Errorf("faults are\n\t%s\nand should be\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestAFileFullOfFaultsIsCutShort(t *testing.T) {
	var b strings.Builder
	for i := range 5000 {
		b.WriteString("k" + strings.Repeat("x", i%50) + strings.Repeat("y", i/50) + " = 1\n")
	}
	_, err := Decode(path, []byte(b.String()), nil)
	faults, ok := err.(Faults)
	if !ok || len(faults) != maxFaults+1 {
		t.Fatalf("%d faults", len(faults))
	}
	if last := faults[maxFaults].String(); !strings.Contains(last, "more faults; mend these first") {
		t.Errorf("the last says %q", last)
	}
}

func TestTooLargeAFile(t *testing.T) {
	_, err := Decode(path, make([]byte, MaxFileBytes+1), nil)
	if err == nil || err.Error() != path+": larger than 4MiB; a configuration that a person can read" {
		t.Error(err)
	}
}

func TestLoadSaysWhatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir + "/nope.toml"); err == nil || !strings.Contains(err.Error(), "cannot read the configuration: open "+dir+"/nope.toml: no such file") {
		t.Error(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is a directory; give the file in it") {
		t.Error(err)
	}
	file := dir + "/lockstep.toml"
	if err := os.WriteFile(file, []byte(base), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/secret", []byte(secretText), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err != nil {
		t.Error(err)
	}
}

// TestOpeningAFifoDoesNotHang guards the check of files against waiting for
// somebody to write.
func TestOpeningAFifoDoesNotHang(t *testing.T) {
	dir := t.TempDir()
	if err := mkfifo(dir + "/secret"); err != nil {
		t.Fatal(err)
	}
	_, err := Decode(dir+"/lockstep.toml", []byte(base), OS())
	if err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Error(err)
	}
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }
