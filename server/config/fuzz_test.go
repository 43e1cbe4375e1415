package config

import (
	"os"
	"strings"
	"testing"
)

// FuzzDecode wants of any bytes: no panic; either a configuration or faults
// that stand in the file, one line each; and of a good one that its views
// work and that it equals itself.
func FuzzDecode(f *testing.F) {
	example, err := os.ReadFile("example.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte(base))
	for _, s := range []string{
		"", "[", "[[", "[[]]", "a", "a=", "a=[", "a={", "a.b.c=1\n[a]\n[a.b]", "[[a]]\n[a]", "[a]\n[[a]]", "node=[{name=\"x\"}]",
		"cluster={tls={}}", "[device]\non=1", "[[device]]\non.a.b=1", "a=0xffffffffffffffffff", "a=1e400", "a=\"\\u0000\"", "\xff", "a=''''", "[[a]]\nb={}\n[a.b]",
		"[cluster]\r\nname=\"a\"\r\n", "a = [[[[[[1]]]]]]", "a=1 b=2", "\"\"=1", "[a.\"\".b]",
	} {
		f.Add([]byte(s))
		f.Add([]byte(base + s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Decode(path, data, env())
		if err != nil {
			checkFuzzFaults(t, data, err)
			return
		}
		for _, n := range c.Nodes {
			if _, err := c.Local(n.Name); err != nil {
				t.Error(err)
			}
		}
		if d := Diff(c, c); len(d) != 0 {
			t.Errorf("differs from itself: %v", d)
		}
		if d := c.Agreement().Compare(c.Agreement()); len(d) != 0 {
			t.Errorf("disagrees with itself: %v", d)
		}
	})
}

func checkFuzzFaults(t *testing.T, data []byte, err error) {
	faults, ok := err.(Faults)
	if !ok || len(faults) == 0 {
		t.Fatalf("not faults: %v", err)
	}
	lines := strings.Count(string(data), "\n") + 1
	for _, f := range faults {
		if strings.Contains(f.String(), "\n") {
			t.Errorf("more than a line: %q", f)
		}
		if f.Line > lines || f.Line > 0 && f.Col < 1 || f.Line < 0 {
			t.Errorf("not in the file of %d lines: %s", lines, f)
		}
		if f.Line == 0 && f.Key != "" && len(data) > 0 {
			t.Errorf("a key without a place: %s", f)
		}
	}
}
