package config

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestASetValueFollowsTheRulesOfTheFile(t *testing.T) {
	c := decode(t, base)
	for _, tc := range []struct {
		key, value string
		want       string // the change, or the fault
	}{
		{"cluster.tick_time", "20s", "cluster.tick_time: 8s → 20s (live)"},
		{"cluster.tick_time", "8s", ""},
		{"cluster.tick_time", "10ms", "set at run time: cluster.tick_time: 10ms; from 100ms to 1h"},
		{"cluster.tick_time", "abc", `set at run time: cluster.tick_time: "abc"; a duration such as "8s" or "500ms"`},
		{"cluster.max_ping_count", "10", "cluster.max_ping_count: 4 → 10 (live)"},
		{"cluster.max_ping_count", "ten", `set at run time: cluster.max_ping_count: the string "ten"; a whole number`},
		{"cluster.max_ping_count", "3", "set at run time: cluster.max_ping_count: 3; from 4 to 1000"},
		{"device.r0.quorum", "off", "device.r0.quorum: majority → off (live)"},
		{"device.r0.quorum", "2", "device.r0.quorum: majority → 2 (live)"},
		{"device.r0.quorum", "3", "set at run time: device.r0.quorum: 3; "},
		{"device.r0.auto_promote", "false", "device.r0.auto_promote: true → false (live)"},
		{"device.r0.resync_rate", "200MiB/s", "device.r0.resync_rate: auto → 200MiB/s (live)"},
		{"device.r0.nbd", `["unix", "tcp:127.0.0.1:1"]`, `device.r0.nbd: ["unix"] → ["unix", "tcp:127.0.0.1:1"] (live)`},
		{"device.r0.nbd", `tcp:127.0.0.1:1`, `device.r0.nbd: ["unix"] → ["tcp:127.0.0.1:1"] (live)`},
		{"device.r0.nbd", `["unix"] x = 1`, `set at run time: device.r0.nbd: "[\"unix\"] x = 1" is neither`},
		{"device.r0.on.beta.diskless", "true", "device.r0.on.beta.diskless: added, true (restarts-service"},
		{"device.r0.on.delta.diskless", "true", "set at run time: device.r0.on.delta.diskless: unknown key; "},
		{"device.r1.size", "1MiB", "device.r1: added, 1MiB on alpha, beta (live)"},
		{"device.r1.quorum", "off", "set at run time: device.r1.size: 0B; a multiple of 4KiB"},
		{"device.r0.name", "r9", "set at run time: device.r0.name: a name cannot be set; a name is changed in the file"},
		{"device.-.size", "1MiB", "unknown key"},
		{"log.level", "debug", "log.level: info → debug (live)"},
		{"log.level", "loud", `set at run time: log.level: "loud"; one of "debug"`},
		{"log.colour", "red", "set at run time: log.colour: unknown key; a key of config show"},
		{"node.beta.address", "127.0.0.1:7001", `set at run time: node.beta.address: "127.0.0.1:7001" is taken`},
		{"a\nb", "1", `set at run time: "a\nb": unknown key`},
	} {
		before := c.Keys()
		next, err := c.With(env(), Setting{tc.key, tc.value})
		got := ""
		if err != nil {
			got = err.Error()
		} else if d := Diff(c, next); len(d) > 0 {
			got = d[0].String()
		}
		if !strings.HasPrefix(got, tc.want) && !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%s = %s gives\n\t%s, not\n\t%s", tc.key, tc.value, got, tc.want)
		}
		if diff := cmp.Diff(before, c.Keys()); diff != "" {
			t.Fatalf("%s = %s changed the configuration that it was made from:\n%s", tc.key, tc.value, diff)
		}
	}
}

func TestEditKeepsCommentsAndLayout(t *testing.T) {
	const file = `# top
[cluster]   # the cluster
name="demo"
secret_file = 'secret' # keep me
tick_time   =   "8s"     # how long
[[node]]
name = "alpha"
id = 0
address = "127.0.0.1:7001"

[[device]]
name = "r0"
size = "64MiB" # big
  nbd = [ # sockets
    "unix",   # first
  ]
[device.on.alpha]
disk = "a.img"`
	for _, tc := range []struct {
		name     string
		settings []Setting
		old, new string // what of the file changes
		err      string
	}{
		{"nothing", nil, "", "", ""},
		{"a value", []Setting{{"cluster.tick_time", "20s"}}, `"8s" `, `"20s" `, ""},
		{"a value without blanks", []Setting{{"cluster.name", "a b"}}, ``, ``, "cluster.name"},
		{"two values", []Setting{{"cluster.tick_time", "1m30s"}, {"device.r0.size", "65MiB"}}, `"8s"`, `"1m30s"`, "x"},
		{"a new key", []Setting{{"cluster.max_ping_count", "9"}}, "# how long\n", "# how long\nmax_ping_count = 9\n", ""},
		{"a new key of a device", []Setting{{"device.r0.quorum", "off"}}, "  ]\n", "  ]\nquorum = \"off\"\n", ""},
		{"a count", []Setting{{"device.r0.quorum", "1"}}, "  ]\n", "  ]\nquorum = 1\n", ""},
		{"two new keys", []Setting{{"device.r0.quorum", "off"}, {"device.r0.protocol", "A"}}, "  ]\n", "  ]\nquorum = \"off\"\nprotocol = \"A\"\n", ""},
		{"a list", []Setting{{"device.r0.nbd", `["tcp:127.0.0.1:1"]`}}, "[ # sockets\n    \"unix\",   # first\n  ]", `["tcp:127.0.0.1:1"]`, ""},
		{"an override", []Setting{{"device.r0.on.alpha.disk", "b \"q\".img"}}, `"a.img"`, `"b \"q\".img"`, ""},
		{"a new table", []Setting{{"log.level", "debug"}, {"log.format", "json"}}, `"a.img"`, "\"a.img\"\n\n[log]\nlevel = \"debug\"\nformat = \"json\"\n", ""},
		{"a new device", []Setting{{"device.r1.size", "1MiB"}, {"device.r1.protocol", "B"}}, `"a.img"`, "\"a.img\"\n\n[[device]]\nname = \"r1\"\nsize = \"1MiB\"\nprotocol = \"B\"\n", ""},
		{"a key twice", []Setting{{"cluster.max_ping_count", "9"}, {"cluster.max_ping_count", "10"}}, "# how long\n", "# how long\nmax_ping_count = 10\n", ""},
		{"not valid", []Setting{{"cluster.tick_time", "1ms"}}, "", "", "cluster.tick_time: 1ms"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, eol := range []string{"\n", "\r\n"} {
				text := strings.ReplaceAll(file, "\n", eol)
				out, err := Edit(path, []byte(text), env(), tc.settings...)
				if err != nil && tc.err != "" && strings.Contains(err.Error(), tc.err) {
					continue
				}
				if tc.name == "two values" {
					tc.old, tc.new = "", ""
					text = strings.Replace(strings.Replace(text, `"8s"`, `"1m30s"`, 1), `"64MiB"`, `"65MiB"`, 1)
				}
				if err != nil {
					t.Fatal(err)
				}
				want := strings.Replace(text, strings.ReplaceAll(tc.old, "\n", eol), strings.ReplaceAll(tc.new, "\n", eol), 1)
				if got := string(out); got != want {
					t.Errorf("edited to\n%s", got)
				}
			}
		})
	}
}

func TestEditRefusesWhereThereIsNoPlace(t *testing.T) {
	text := strings.Replace(base, "[cluster]\nname = \"demo\"\nsecret_file = \"secret\"\n", "cluster = { name = \"demo\", secret_file = \"secret\" }\n", 1)
	if _, err := Edit(path, []byte(text), env(), Setting{"cluster.tick_time", "9s"}); err == nil || !strings.Contains(err.Error(), "has no place for a new key; add it by hand") {
		t.Error(err)
	}
	out, err := Edit(path, []byte(text), env(), Setting{"cluster.name", "omed"})
	if err != nil || !strings.HasPrefix(string(out), `cluster = { name = "omed", secret_file = "secret" }`) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := Edit(path, []byte(base), env(), Setting{"device.r0.on.beta.disk", "x"}); err == nil || !strings.Contains(err.Error(), "it has no table for device.r0.on.beta.disk; add it by hand") {
		t.Error(err)
	}
}

// FuzzEdit wants of any file and setting: refused, or a file that differs
// from the old one in meaning only by the setting. Edit checks that itself,
// so what is wanted here is no panic and no refusal of its own making.
func FuzzEdit(f *testing.F) {
	example, err := os.ReadFile("example.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example, "cluster.tick_time", "20s")
	f.Add([]byte(base), "device.r0.nbd", `["unix"]`)
	f.Add([]byte(base), "device.r9.size", "1MiB")
	f.Add([]byte(base), "log.file", "/a\"\\\x01\u007f")
	f.Fuzz(func(t *testing.T, data []byte, key, value string) {
		out, err := Edit(path, data, env(), Setting{key, value})
		if err != nil {
			if strings.Contains(err.Error(), "the result") {
				t.Errorf("%v\n%s", err, out)
			}
			return
		}
		if _, err := Decode(path, out, env()); err != nil {
			t.Error(err)
		}
	})
}
