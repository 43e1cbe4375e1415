package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSizes(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Size
		text string
	}{
		{"4096", 4096, "4KiB"},
		{"1GiB", 1 << 30, "1GiB"},
		{"512 MiB", 512 << 20, "512MiB"},
		{"1536MiB", 1536 << 20, "1536MiB"},
		{"1TB", 1e12, "976562500KiB"},
		{"7B", 7, "7B"},
		{"3kB", 3000, "3000B"},
		{"8191PiB", 8191 << 50, "8191PiB"},
		{"9223372036854775807", 1<<63 - 1, "9223372036854775807B"},
	} {
		got, err := ParseSize(tc.in)
		if err != nil || got != tc.want || got.String() != tc.text {
			t.Errorf("%q is %d, %q (%v)", tc.in, got, got, err)
		}
	}
	for _, in := range []string{"", "GiB", "-1", "1.5GiB", "1gib", "0x10", "1_000", "8192PiB", "9223372036854775808", "1 GiB x", "+1"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q is %d", in, got)
		}
	}
}

func TestRates(t *testing.T) {
	for in, want := range map[string]Rate{"auto": RateAuto, "200MiB/s": 200 << 20, "4096/s": 4096} {
		if got, err := ParseRate(in); err != nil || got != want {
			t.Errorf("%q is %d (%v)", in, got, err)
		}
	}
	if s := Rate(200 << 20).String(); s != "200MiB/s" {
		t.Error(s)
	}
}

func TestQuorumNeeded(t *testing.T) {
	for _, tc := range []struct {
		q           string
		nodes, want int
	}{
		{"off", 3, 0}, {"majority", 1, 1}, {"majority", 2, 2}, {"majority", 3, 2}, {"majority", 4, 3}, {"all", 3, 3}, {"2", 3, 2},
	} {
		q, err := ParseQuorum(tc.q)
		if err != nil || q.Needed(tc.nodes) != tc.want || q.String() != tc.q {
			t.Errorf("quorum %s of %d: %d (%v)", tc.q, tc.nodes, q.Needed(tc.nodes), err)
		}
	}
}

// TestTheSecretShowsNowhere prints a configuration in every way there is.
func TestTheSecretShowsNowhere(t *testing.T) {
	c := decode(t, base)
	var out strings.Builder
	fmt.Fprintf(&out, "%v %+v %#v %x %q %d\n", c, c, c, c.Cluster.Secret, c.Cluster.Secret, c.Cluster.Secret)
	fmt.Fprintf(&out, "%v %+v %#v\n", c.Cluster, c.Cluster, c.Cluster)
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "config", c, "secret", c.Cluster.Secret)
	for _, k := range c.Keys() {
		out.WriteString(k.Value)
	}
	for _, leak := range []string{secretText, fmt.Sprintf("%x", secretText), "48 49 50 51", "0x30, 0x31, 0x32"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the secret shows as %q", leak)
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing says that there is a secret")
	}
}
