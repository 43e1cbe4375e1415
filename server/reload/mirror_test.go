package reload

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/lockstepd/lockstep/server/cmap"
)

func dump(db *cmap.DB) string {
	var b strings.Builder
	for _, e := range db.Dump("") {
		b.WriteString(e.Line() + "\n")
	}
	return b.String()
}

func TestS10TheObjectDatabaseShowsAndSetsTheConfiguration(t *testing.T) {
	b := newBed(t)
	db := cmap.New()
	db.ReadOnly(cmap.EnginePrefixes()...)
	m, err := NewMirror(b.Engine, db, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	b.opts.Observe = func(Outcome) { m.Sync() }
	get := func(key string) string {
		v, err := db.Get(key)
		if err != nil {
			return err.Error()
		}
		return v.Text()
	}
	set := func(key string, v cmap.Value) error { return db.Set(t.Context(), key, v) }
	if get("config.cluster.tick_time") != "8s" || get(RevisionKey) != "1" || get(ErrorKey) != "" {
		t.Errorf("it shows\n%s", dump(db))
	}
	if err := set("config.cluster.tick_time", cmap.String("20s")); err != nil {
		t.Fatal(err)
	}
	if get("config.cluster.tick_time") != "20s" || b.cluster.live["cluster.tick_time"] != "20s" || get(RevisionKey) != "2" {
		t.Errorf("it shows\n%s", dump(db))
	}
	before, state := dump(db), b.state()
	b.device.fail = func(Tx) error { return errors.New("boom") }
	for _, tc := range []struct {
		key   string
		value cmap.Value
		want  string
	}{
		{"config.cluster.tick_time", cmap.String("10ms"), "cluster.tick_time: 10ms; from 100ms to 1h"},
		{"config.cluster.tick_time", cmap.Int(10), "config.cluster.tick_time is of type str, not i64"},
		{"config.cluster.new", cmap.Int(10), "keys of the configuration are of type str"},
		{"config.cluster.new", cmap.String("x"), "cluster.new: unknown key"},
		{"config.cluster.name", cmap.String("x"), "needs-restart"},
		{"config.device.r0.quorum", cmap.String("off"), "devices: boom"},
		{RevisionKey, cmap.Uint(9), "read-only key"},
	} {
		b.wantErr(set(tc.key, tc.value), tc.want)
	}
	b.wantErr(db.Delete(t.Context(), "config.cluster.tick_time"), "a key of the configuration cannot be deleted")
	if diff := cmp.Diff(before, dump(db)) + cmp.Diff(state, b.state()); diff != "" {
		t.Errorf("refused, and yet\n%s", diff)
	}
	b.device.fail = nil
	ops := []cmap.Op{cmap.SetOp("config.cluster.max_ping_count", cmap.String("9")), cmap.SetOp("config.device.r0.quorum", cmap.String("off"))}
	if err := db.Apply(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
	if get(RevisionKey) != "3" || get("config.device.r0.quorum") != "off" || get("config.cluster.max_ping_count") != "9" {
		t.Errorf("a batch is one transaction:\n%s", dump(db))
	}
	b.edit(`id = 1`, `id = = 1`)
	_, err = b.Reload(t.Context(), everyone)
	if get(ErrorKey) != err.Error() {
		t.Errorf("the error is %q", get(ErrorKey))
	}
	b.write(base + "[[device]]\nname = \"r1\"\nsize = \"1MiB\"\n")
	b.must(b.Reload(t.Context(), everyone))
	if get("config.device.r1.size") != "1MiB" || get(ErrorKey) != "" {
		t.Errorf("it shows\n%s", dump(db))
	}
	b.write(base)
	b.must(b.Reload(t.Context(), everyone))
	if got := get("config.device.r1.size"); !strings.Contains(got, "no such key") {
		t.Errorf("r1 is still %s", got)
	}
	if err := os.Remove(b.file); err != nil {
		t.Fatal(err)
	}
	b.FileChanged(t.Context())
	if !strings.Contains(get(ErrorKey), "no such file") {
		t.Errorf("the error is %q", get(ErrorKey))
	}
}
