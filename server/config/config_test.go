package config

import (
	"io/fs"
	"os"
	"strings"
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
	return files{"etc/secret": {Data: []byte(secretText + "\n"), Mode: 0o600}}
}

func decode(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Decode("/etc/lockstep.toml", []byte(text), env())
	if err != nil {
		t.Fatalf("valid configuration refused:\n%v", err)
	}
	return c
}

func TestTheExampleIsValid(t *testing.T) {
	data, err := os.ReadFile("example.toml")
	if err != nil {
		t.Fatal(err)
	}
	c := decode(t, string(data))
	l, err := c.Local("gamma")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Devices) != 1 || !l.Devices[0].Diskless || len(l.Peers) != 2 {
		t.Errorf("gamma sees %+v", l)
	}
	for _, k := range c.Keys() {
		t.Log(k.Path, "=", k.Value, k.Set, k.Pos)
	}
	bad := strings.NewReplacer(`id      = 1`, `id      = 0`, `"8s"`, "8", "retries", "retires", `"1GiB"`, `"1Gi"`).Replace(string(data))
	_, err = Decode("/etc/lockstep.toml", []byte(bad), env())
	t.Log("\n" + err.Error())
}
