package torture_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/torture"
)

func TestOnlyWhatWasSaidIsPromised(t *testing.T) {
	kept := []torture.Kept{{}, {Files: []int{1, 2}, Gen: 7, Next: 3}}
	r, err := torture.Learn([]byte(`Linux says this and that
@torture checked 3
@torture writing
@torture begins 0 0
@torture begins 1 3
@torture synced 0 0
@torture replaced 1 1008
@torture removing 1 1
block nbd0: shutting down@torture synced 1 3
@torture begins 1 4
@torture lost
@torture again
@torture error writer 0: fsync: input/output error
@torture synced 1 4`), kept)
	if err != nil {
		t.Fatal(err)
	}
	if want := []torture.Kept{{Files: []int{0}, Next: 1}, {Files: []int{2, 3}, Gen: 1008, Next: 5}}; !reflect.DeepEqual(kept, want) {
		t.Errorf("kept %+v, want %+v", kept, want)
	}
	if want := (torture.Report{Checked: 3, Writing: true, Synced: 3, Errors: 1, Again: 1}); !reflect.DeepEqual(r, want) {
		t.Errorf("report %+v, want %+v", r, want)
	}
	for _, bad := range []string{"synced 9 1", "synced -1 1", "synced x", "says hello", "checked many"} {
		if _, err := torture.Learn([]byte(torture.Mark+bad+"\n"), kept); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}

func TestCheckFindsWhatIsLostOrDamaged(t *testing.T) {
	dir := t.TempDir()
	o := torture.Order{Seed: 5, Expect: []torture.Kept{{Files: []int{0, 4}, Gen: 2}}}
	write := func(path string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := func() {
		t.Helper()
		if err := os.MkdirAll(torture.Dir(dir, 0), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, n := range o.Expect[0].Files {
			write(torture.File(dir, 0, n), torture.Content(o.Seed, 0, n))
		}
		write(torture.Current(dir, 0), torture.Generation(o.Seed, 0, 3))
	}
	good()
	if n, err := o.Check(dir); n != 3 || err != nil {
		t.Fatalf("%d files are whole, %v", n, err)
	}
	for name, c := range map[string]struct {
		harm func()
		says string
	}{
		"lost":         {func() { _ = os.Remove(torture.File(dir, 0, 4)) }, "is lost"},
		"short":        {func() { _ = os.Truncate(torture.File(dir, 0, 0), 0) }, "is damaged"},
		"another's":    {func() { write(torture.File(dir, 0, 0), torture.Content(o.Seed, 0, 4)) }, "is damaged"},
		"no current":   {func() { _ = os.Remove(torture.Current(dir, 0)) }, "is lost"},
		"cut current":  {func() { _ = os.Truncate(torture.Current(dir, 0), 5) }, "is damaged"},
		"old current":  {func() { write(torture.Current(dir, 0), torture.Generation(o.Seed, 0, 1)) }, "generation 1; 2 was fsynced"},
		"torn current": {func() { write(torture.Current(dir, 0), append(torture.Generation(o.Seed, 0, 3), 0)) }, "is damaged"},
	} {
		good()
		c.harm()
		if n, err := o.Check(dir); err == nil || n != 2 || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d files are whole, %v", name, n, err)
		}
	}
}
