package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLocalAppliesTheNodesOverrides(t *testing.T) {
	c := decode(t, strings.Replace(base, `size = "64MiB"`, `size = "64MiB"
nbd = ["unix", "tcp:127.0.0.1:10809"]
[device.on.beta]
disk = "/dev/vg0/r0"
nbd = ["tcp:[::1]:10810"]
[[node]]
name = "gamma"
id = 7
address = "127.0.0.1:7003"
bind = ":7003"
[[device]]
name = "only-alpha"
size = "1MiB"
nodes = "alpha"
[[device]]
name = "r2"
size = "1MiB"
nodes = ["gamma", "alpha"]
[device.on.gamma]
diskless = true`, 1))
	type view struct {
		Name, Disk string
		Diskless   bool
		Listeners  []Listener
		Members    []Member
	}
	unix := Listener{Network: "unix"}
	r0 := []Member{{"alpha", 0, "r0.img", false}, {"beta", 1, "/dev/vg0/r0", false}, {"gamma", 7, "r0.img", false}}
	r2 := []Member{{"alpha", 0, "r2.img", false}, {"gamma", 7, "", true}}
	tcp := Listener{"tcp", "127.0.0.1:10809"}
	for node, want := range map[string][]view{
		"alpha": {
			{"r0", "r0.img", false, []Listener{unix, tcp}, r0},
			{"only-alpha", "only-alpha.img", false, []Listener{unix}, []Member{{"alpha", 0, "only-alpha.img", false}}},
			{"r2", "r2.img", false, []Listener{unix}, r2},
		},
		"beta":  {{"r0", "/dev/vg0/r0", false, []Listener{{"tcp", "[::1]:10810"}}, r0}},
		"gamma": {{"r0", "r0.img", false, []Listener{unix, tcp}, r0}, {"r2", "", true, []Listener{unix}, r2}},
	} {
		l, err := c.Local(node)
		if err != nil {
			t.Fatal(err)
		}
		var got []view
		for _, d := range l.Devices {
			got = append(got, view{d.Name, d.Disk, d.Diskless, d.Listeners, d.Members})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s sees (-want +got):\n%s", node, diff)
		}
		if len(l.Peers) != 2 || l.Node.Name != node {
			t.Errorf("%s has %d peers", node, len(l.Peers))
		}
	}
	if a := c.Node("gamma").ListenAddress(); a != ":7003" {
		t.Errorf("gamma listens on %s", a)
	}
}

func TestLocalOfNoNodeSaysWhichThereAre(t *testing.T) {
	_, err := decode(t, base).Local("delta")
	if err == nil || err.Error() != path+` has no node "delta"; it has alpha, beta: give --node NAME, or add a [[node]]` {
		t.Error(err)
	}
}

func TestDiffSaysHowEachChangeApplies(t *testing.T) {
	for _, tc := range []struct {
		name, old, new string
		want           []string
	}{
		{"nothing", "", "", nil},
		{"a comment", `id = 1`, "id = 1 # one", nil},
		{"a default written down", `name = "demo"`, "name = \"demo\"\ntick_time = \"8s\"", nil},
		{"the same nodes", `size = "64MiB"`, "size = \"64MiB\"\nnodes = [\"beta\", \"alpha\"]", nil},
		{"the same size", `"64MiB"`, `67108864`, nil},
		{"tick time", `name = "demo"`, "name = \"demo\"\ntick_time = \"20s\"", []string{"cluster.tick_time: 8s → 20s (live) 3:13"}},
		{"cluster name", `"demo"`, `"omed"`, []string{"cluster.name: demo → omed (needs-restart: peers would refuse this node until every one of them has it) 2:8"}},
		{"sign", `name = "demo"`, "name = \"demo\"\nsign = true", []string{"cluster.sign: false → true (needs-restart: peers would refuse this node until every one of them has it) 3:8"}},
		{"secret file", `"secret"`, `"secret2"`, []string{"cluster.secret_file: secret → secret2 (live) 3:15"}},
		{"node moved", `:7002`, `:7003`, []string{"node.beta.address: 127.0.0.1:7002 → 127.0.0.1:7003 (live) 11:11"}},
		{"node id", `id = 1`, `id = 2`, []string{"node.beta.id: 1 → 2 (needs-restart: disks know their peers by id) 10:6"}},
		{"node renamed", `"beta"`, `"delta"`, []string{"node.delta: added, id 1 at 127.0.0.1:7002 (live) 8:3", `device.r0.nodes: ["alpha", "beta"] → ["alpha", "delta"] (restarts-service: the device closes and opens again) 12:3`, "node.beta: removed, was id 1 at 127.0.0.1:7002 (live) 0:0"}},
		{"grown", `"64MiB"`, `"65MiB"`, []string{"device.r0.size: 64MiB → 65MiB (live) 14:8"}},
		{"shrunk", `"64MiB"`, `"63MiB"`, []string{"device.r0.size: 64MiB → 63MiB (refused: a device does not shrink; make a smaller one and copy) 14:8"}},
		{"device added", `size = "64MiB"`, "size = \"64MiB\"\n[[device]]\nname = \"r1\"\nsize = \"1MiB\"", []string{"device.r1: added, 1MiB on alpha, beta (live) 15:3"}},
		{"device renamed", `"r0"`, `"r1"`, []string{"device.r1: added, 64MiB on alpha, beta (live) 12:3", "device.r0: removed, was 64MiB on alpha, beta (live) 0:0"}},
		{"protocol, quorum, rate", `size = "64MiB"`, "size = \"64MiB\"\nprotocol = \"A\"\nquorum = \"off\"\nresync_rate = \"1MiB/s\"", []string{"device.r0.protocol: C → A (live) 15:12", "device.r0.quorum: majority → off (live) 16:10", "device.r0.resync_rate: auto → 1MiB/s (live) 17:15"}},
		{"override", `size = "64MiB"`, "size = \"64MiB\"\n[device.on.beta]\ndiskless = true", []string{"device.r0.on.beta.diskless: added, true (restarts-service: the device closes and opens again) 16:12"}},
		{"metrics", `size = "64MiB"`, "size = \"64MiB\"\n[metrics]\nlisten = \"127.0.0.1:1\"", []string{`metrics.listen: "" → 127.0.0.1:1 (restarts-service: metrics) 16:10`}},
		{"handler", `size = "64MiB"`, "size = \"64MiB\"\n[[handler]]\nevent = \"*\"\ncommand = [\"/x\", \"y z\"]", []string{`handler.1: added, ["/x", "y z"] on * (live) 15:3`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := env()
			e["etc/secret2"] = e["etc/secret"]
			text := strings.Replace(base, tc.old, tc.new, 1)
			next, err := Decode(path, []byte(text), e)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range Diff(decode(t, base), next) {
				got = append(got, fmt.Sprintf("%s %d:%d", c, c.Pos.Line, c.Pos.Col))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDiffSeesANewSecretUnderTheSameName(t *testing.T) {
	e := env()
	e["etc/secret"].Data = []byte("fedcba9876543210")
	next, err := Decode(path, []byte(base), e)
	if err != nil {
		t.Fatal(err)
	}
	d := Diff(decode(t, base), next)
	if len(d) != 1 || d[0].String() != "cluster.secret_file: secret → secret (new content) (live)" || d[0].Where() != path+":3:15" {
		t.Errorf("%v", d)
	}
}

func TestAgreementNamesWhatDiffers(t *testing.T) {
	mine := decode(t, base)
	for _, tc := range []struct {
		name, old, new string
		want           []string
	}{
		{"local matters", `name = "demo"`, "name = \"demo\"\ntick_time = \"20s\"\nmax_ping_count = 9", nil},
		{"addresses", `:7002`, `:7009`, nil},
		{"size", `"64MiB"`, `"65MiB"`, []string{"device.r0.size: 64MiB here, 65MiB there"}},
		{"nodes", `size = "64MiB"`, "size = \"64MiB\"\nnodes = \"alpha\"", []string{`device.r0.nodes: ["alpha", "beta"] here, ["alpha"] there`}},
		{"order of nodes", `size = "64MiB"`, "size = \"64MiB\"\nnodes = [\"beta\", \"alpha\"]", nil},
		{"ids", `id = 1`, `id = 3`, []string{"node.beta.id: 1 here, 3 there"}},
		{"diskless", `size = "64MiB"`, "size = \"64MiB\"\n[device.on.beta]\ndiskless = true", []string{"device.r0.on.beta.diskless: nothing here, true there"}},
		{"device", `"r0"`, `"r1"`, []string{"device.r0: the device here, nothing there", "device.r1: nothing here, the device there"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			theirs := decode(t, strings.Replace(base, tc.old, tc.new, 1))
			var got []string
			for _, d := range mine.Agreement().Compare(theirs.Agreement()) {
				got = append(got, d.String())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			same := cmp.Equal(mine.Fingerprint(), theirs.Fingerprint())
			if same != (len(tc.want) == 0) {
				t.Errorf("fingerprints equal: %v", same)
			}
		})
	}
}

// TestTheSchemaListsEveryKey that a configuration can show.
func TestTheSchemaListsEveryKey(t *testing.T) {
	data, err := os.ReadFile("example.toml")
	if err != nil {
		t.Fatal(err)
	}
	c := decode(t, string(data))
	c.Cluster.TLS.CA = "x"
	all := map[string]bool{}
	for _, k := range Schema() {
		all[k.Path] = true
	}
	names := regexp.MustCompile(`^(node|device|handler)\.[^.]+|\.on\.[^.]+`)
	for _, k := range c.Keys() {
		path := names.ReplaceAllStringFunc(k.Path, func(s string) string { return s[:strings.LastIndex(s, ".")] })
		if !all[path] {
			t.Errorf("the schema has no %s (%s)", path, k.Path)
		}
	}
}

// TestADevicesFingerprintIsThatOfTheAgreement: the same of all devices and of one.
func TestADevicesFingerprintIsThatOfTheAgreement(t *testing.T) {
	data, err := os.ReadFile("example.toml")
	if err != nil {
		t.Fatal(err)
	}
	c := decode(t, string(data))
	for _, d := range c.Devices {
		if want := c.Fingerprint().Devices[d.Name]; d.Fingerprint() != want || d.Fingerprint("size") == want {
			t.Errorf("%s: %s, and %s without its size; the agreement has %s", d.Name, d.Fingerprint(), d.Fingerprint("size"), want)
		}
	}
}
