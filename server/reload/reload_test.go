package reload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lockstepd/lockstep/server/config"
)

const base = `[cluster]
name = "demo"
secret_file = "secret"
tick_time = "8s" # how long
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

// part is an applier that keeps what it has applied, as an engine would.
type part struct {
	name   string
	wants  []string
	live   map[string]string
	plan   func(Tx) ([]Verdict, error)
	fail   func(Tx) error // of Apply, after half the changes
	verify func() error
	undo   func() error
	before map[string]string
}

func (p *part) Name() string { return p.name }

func (p *part) Wants(key string) bool {
	return slices.ContainsFunc(p.wants, func(w string) bool { return strings.HasPrefix(key, w) })
}

func (p *part) Plan(_ context.Context, tx Tx) ([]Verdict, error) {
	if p.plan != nil {
		return p.plan(tx)
	}
	return nil, nil
}

func (p *part) Apply(_ context.Context, tx Tx) error {
	p.before = maps.Clone(p.live)
	for i, c := range tx.Changes {
		if p.fail != nil && i >= len(tx.Changes)/2 {
			if err := p.fail(tx); err != nil {
				return err
			}
		}
		if c.Op == config.Removed {
			delete(p.live, c.Key)
		} else {
			p.live[c.Key] = c.New
		}
	}
	return nil
}

func (p *part) Undo(context.Context, Tx) error {
	p.live = p.before
	if p.undo != nil {
		return p.undo()
	}
	return nil
}

func (p *part) Verify(context.Context, Tx) error {
	if p.verify != nil {
		return p.verify()
	}
	return nil
}

// bed is an engine over a real file, with two appliers.
type bed struct {
	*Engine
	t               *testing.T
	file            string
	cluster, device *part
	outcomes        []Outcome
}

func newBed(t *testing.T) *bed {
	b := &bed{t: t, file: filepath.Join(t.TempDir(), "lockstep.toml")}
	b.write(base)
	if err := os.WriteFile(filepath.Join(filepath.Dir(b.file), "secret"), []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.cluster = &part{name: "cluster", wants: []string{"cluster.tick_time", "cluster.max_ping_count", "cluster.secret_file", "node."}, live: map[string]string{}}
	b.device = &part{name: "devices", wants: []string{"device."}, live: map[string]string{}}
	b.start()
	return b
}

// start makes a new engine, as a restart of the daemon does.
func (b *bed) start() {
	b.t.Helper()
	e, err := New(Options{
		Path: b.file, Node: "alpha", Env: config.OS(), Appliers: []Applier{b.cluster, b.device},
		Logger:  slog.New(slog.NewTextHandler(b.t.Output(), nil)),
		Store:   FileStore(b.file + ".settings"),
		History: HistoryFile(b.file + ".revisions"),
		Observe: func(o Outcome) { b.outcomes = append(b.outcomes, o) },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.Engine = e
}

func (b *bed) write(text string) {
	b.t.Helper()
	if err := os.WriteFile(b.file, []byte(text), 0o640); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) read1() string {
	b.t.Helper()
	data, err := os.ReadFile(b.file)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// edit replaces something in base and writes it.
func (b *bed) edit(pairs ...string) { b.write(strings.NewReplacer(pairs...).Replace(base)) }

func (b *bed) must(_ Revision, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) wantErr(err error, texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			b.t.Errorf("error is\n%v\nwithout %q", err, text)
		}
	}
}

// state is everything that a refused change must leave as it was.
func (b *bed) state() string {
	var out strings.Builder
	for _, s := range b.Show() {
		fmt.Fprintln(&out, s.Text())
	}
	st := b.Status()
	fmt.Fprintln(&out, st.Revision, st.Overlay, st.Pending)
	for _, p := range []*part{b.cluster, b.device} {
		for _, k := range slices.Sorted(maps.Keys(p.live)) {
			fmt.Fprintln(&out, p.name, k, p.live[k])
		}
	}
	return out.String()
}

var everyone = Request{Who: "test"}

func TestS9ARefusedFileChangesNothing(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name  string
		edit  []string
		setup func(b *bed)
		want  []string
	}{
		{"syntax", []string{`id = 1`, `id = = 1`}, nil, []string{"lockstep.toml:11:6: "}},
		{"rule", []string{`"8s" #`, `"10ms" #`}, nil, []string{"lockstep.toml:4:13: cluster.tick_time: 10ms; from 100ms to 1h"}},
		{"unknown key", []string{`id = 1`, "id = 1\nidd = 1"}, nil, []string{"lockstep.toml:12:1: node.beta.idd: unknown key"}},
		{"this node is gone", []string{`"alpha"`, `"delta"`}, nil, []string{"this node cannot leave the cluster while it runs", `has no node "alpha"`}},
		{"shrinks", []string{`64MiB`, `32MiB`, `"8s" #`, `"9s" #`}, nil, []string{"the configuration was not applied\n", "lockstep.toml:15:8: device.r0.size: 64MiB → 32MiB (refused: a device does not shrink"}},
		{"needs a restart", []string{`"demo"`, `"omed"`, `"8s" #`, `"9s" #`}, nil, []string{"lockstep.toml:2:8: cluster.name: demo → omed (needs-restart: ", "or apply the rest with --partial"}},
		{"nobody takes it", []string{`[cluster]`, "[log]\nlevel = \"debug\"\n[cluster]"}, nil, []string{"log.level: info → debug (needs-restart: nothing in the running daemon takes it)"}},
		{"an applier refuses", []string{"[[device]]\nname = \"r0\"\nsize = \"64MiB\"\n", ""}, func(b *bed) {
			b.device.plan = func(tx Tx) ([]Verdict, error) { return []Verdict{Refuse("device.r0", "2 clients have it open")}, nil }
		}, []string{"lockstep.toml: device.r0: removed, was 64MiB on alpha, beta (refused: 2 clients have it open)"}},
		{"an applier cannot plan", []string{`64MiB`, `65MiB`}, func(b *bed) {
			b.device.plan = func(tx Tx) ([]Verdict, error) { return nil, boom }
		}, []string{"devices: cannot plan the change: boom"}},
		{"the second applier fails", []string{`64MiB`, `65MiB`, `"8s" #`, `"9s" #`}, func(b *bed) {
			b.device.fail = func(Tx) error { return &KeyError{"device.r0.size", boom} }
		}, []string{"lockstep.toml:15:8: devices: device.r0.size: boom\nall is as it was before"}},
		{"the first applier fails half way", []string{`:7002`, `:7003`, `"8s" #`, `"9s" #`, `64MiB`, `65MiB`}, func(b *bed) {
			b.cluster.fail = func(Tx) error { return boom }
		}, []string{"cluster: boom\nall is as it was before"}},
		{"it has no effect", []string{`64MiB`, `65MiB`, `"8s" #`, `"9s" #`}, func(b *bed) {
			b.cluster.verify = func() error { return boom }
		}, []string{"cluster: it was applied and has not the effect: boom"}},
		{"going back fails", []string{`64MiB`, `65MiB`, `"8s" #`, `"9s" #`}, func(b *bed) {
			b.device.fail = func(Tx) error { return boom }
			b.cluster.undo = func() error { return errors.New("no way back") }
		}, []string{"and going back failed too", "cluster: no way back", "restart the daemon"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			if tc.setup != nil {
				tc.setup(b)
			}
			before := b.state()
			b.edit(tc.edit...)
			_, err := b.Reload(t.Context(), everyone)
			b.wantErr(err, tc.want...)
			if diff := cmp.Diff(before, b.state()); diff != "" {
				t.Errorf("changed all the same:\n%s", diff)
			}
			if st := b.Status(); !errors.Is(st.Err, err) && st.Err.Error() != err.Error() || st.ErrSince.IsZero() {
				t.Errorf("the status says %v", st.Err)
			}
			if n := len(b.outcomes); n != 1 || b.outcomes[0].Err == nil {
				t.Errorf("%d outcomes", n)
			}
			// What was wrong is mended.
			b.cluster.plan, b.cluster.fail, b.cluster.verify, b.cluster.undo = nil, nil, nil, nil
			b.device.plan, b.device.fail = nil, nil
			b.edit(`"8s" #`, `"10s" #`)
			rev, err := b.Reload(t.Context(), everyone)
			b.must(rev, err)
			if st := b.Status(); st.Err != nil || rev.Number != 2 || b.cluster.live["cluster.tick_time"] != "10s" {
				t.Errorf("after mending: %+v", st)
			}
		})
	}
}

func TestAReloadAppliesAndCommits(t *testing.T) {
	b := newBed(t)
	b.edit(`"8s" #`, `"20s" #`, `64MiB`, `65MiB`, `:7002`, `:7003`)
	changes, err := b.Diff(t.Context(), "")
	if err != nil || len(changes) != 3 || len(b.cluster.live) != 0 {
		t.Errorf("%v, %v", changes, err)
	}
	rev, err := b.Reload(t.Context(), everyone)
	b.must(rev, err)
	if rev.Number != 2 || len(rev.Changes) != 3 || rev.Who != "test" || rev.Config() != b.Current() || b.Current().Cluster.TickTime != 20*time.Second {
		t.Errorf("%+v", rev)
	}
	want := map[string]string{"cluster.tick_time": "20s", "node.beta.address": "127.0.0.1:7003"}
	if !maps.Equal(b.cluster.live, want) || b.device.live["device.r0.size"] != "65MiB" {
		t.Errorf("%v, %v", b.cluster.live, b.device.live)
	}
	// The same again, and with another comment, is no new revision.
	for _, comment := range []string{"# how long", "# another"} {
		b.edit(`"8s" # how long`, `"20s" `+comment, `64MiB`, `65MiB`, `:7002`, `:7003`)
		rev, err = b.Reload(t.Context(), everyone)
		b.must(rev, err)
		if rev.Number != 2 || len(b.outcomes) != 1 {
			t.Errorf("revision %d, %d outcomes", rev.Number, len(b.outcomes))
		}
	}
}

func TestANewSecretUnderTheSameNameIsAChange(t *testing.T) {
	b := newBed(t)
	if err := os.WriteFile(filepath.Join(filepath.Dir(b.file), "secret"), []byte("fedcba9876543210"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.FileChanged(t.Context())
	b.FileChanged(t.Context())
	if len(b.outcomes) != 1 || b.cluster.live["cluster.secret_file"] != "secret (new content)" {
		t.Errorf("%d outcomes, %v", len(b.outcomes), b.cluster.live)
	}
	if got := string(b.Current().Cluster.Secret.Reveal()); got != "fedcba9876543210" {
		t.Errorf("the secret is still %q", got)
	}
}

func TestPartialLeavesWhatNeedsARestart(t *testing.T) {
	b := newBed(t)
	b.edit(`"demo"`, `"omed"`, `"8s" #`, `"20s" #`)
	rev, err := b.Reload(t.Context(), Request{"test", true})
	b.must(rev, err)
	name := func() string { return b.Current().Cluster.Name }
	if name() != "demo" || b.Current().Cluster.TickTime != 20*time.Second || len(rev.Changes) != 1 {
		t.Errorf("%s, %v", name(), rev.Changes)
	}
	if len(rev.Pending) != 1 || rev.Pending[0].String() != "cluster.name: demo → omed (needs-restart: peers would refuse this node until every one of them has it)" {
		t.Errorf("pending %v", rev.Pending)
	}
	// A command, and another change of the file, go on leaving it.
	b.must(b.Set(t.Context(), everyone, config.Setting{Key: "device.r0.quorum", Value: "off"}))
	b.edit(`"demo"`, `"omed"`, `"8s" #`, `"30s" #`)
	b.must(b.Reload(t.Context(), everyone))
	if st := b.Status(); name() != "demo" || len(st.Pending) != 1 || b.Current().Cluster.TickTime != 30*time.Second {
		t.Errorf("%s, %v", name(), st.Pending)
	}
	// Taken back, nothing is pending; a restart takes it.
	b.edit(`"8s" #`, `"30s" #`)
	b.must(b.Reload(t.Context(), everyone))
	if st := b.Status(); len(st.Pending) != 0 {
		t.Errorf("%v", st.Pending)
	}
	b.edit(`"demo"`, `"omed"`)
	b.start()
	if name() != "omed" || len(b.Status().Pending) != 0 {
		t.Errorf("after a restart %s", name())
	}
	// What was refused stays refused in part, too.
	b.edit(`"demo"`, `"omed"`, `64MiB`, `32MiB`)
	_, err = b.Reload(t.Context(), Request{"test", true})
	b.wantErr(err, "a device does not shrink")
}

func TestS10WhatACommandSetsPassesTheRulesOfTheFile(t *testing.T) {
	b := newBed(t)
	before := b.state()
	for _, tc := range [][3]string{
		{"cluster.tick_time", "10ms", "set at run time: cluster.tick_time: 10ms; from 100ms to 1h"},
		{"cluster.tick_time", "abc", `cluster.tick_time: "abc"; a duration such as`},
		{"cluster.nope", "1", "cluster.nope: unknown key"},
		{"cluster.name", "omed", "cluster.name: demo → omed (needs-restart"},
		{"device.r0.size", "32MiB", "a device does not shrink"},
	} {
		_, err := b.Set(t.Context(), everyone, config.Setting{Key: tc[0], Value: tc[1]})
		b.wantErr(err, tc[2])
		if _, fault := errors.AsType[config.Faults](err); !IsRefused(err) || fault == strings.Contains(err.Error(), "not applied") {
			t.Errorf("the wrong kind of refusal: %v", err)
		}
	}
	if diff := cmp.Diff(before, b.state()); diff != "" || b.Status().Err != nil {
		t.Errorf("changed all the same: %s %v", diff, b.Status().Err)
	}
}

func TestS11CheckStartAndReloadSayTheSame(t *testing.T) {
	for _, edit := range [][]string{
		{}, {`"8s" #`, `"9s" #`}, {`id = 1`, `id = 0`}, {`id = 1`, `id = `}, {`size`, `sice`}, {`"alpha"`, `"delta"`},
		{`"secret"`, `"absent"`}, {`[cluster]`, ``}, {`64MiB`, `64`},
	} {
		b := newBed(t)
		b.edit(edit...)
		check := b.Check("")
		_, reload := b.Reload(t.Context(), everyone)
		_, start := New(Options{Path: b.file, Node: "alpha", Env: config.OS()})
		if (check == nil) != (reload == nil) || (check == nil) != (start == nil) || check != nil && check.Error() != start.Error() {
			t.Errorf("%q:\ncheck:  %v\nreload: %v\nstart:  %v", edit, check, reload, start)
		}
	}
}

func TestCommandsWinUntilTheFileChangesTheKey(t *testing.T) {
	b := newBed(t)
	set := func(key, value string) {
		t.Helper()
		b.must(b.Set(t.Context(), everyone, config.Setting{Key: key, Value: value}))
	}
	shown := func(key string) string {
		for _, s := range b.Show() {
			if s.Path == key {
				return s.Text()
			}
		}
		return ""
	}
	set("cluster.tick_time", "20s")
	set("device.r0.quorum", "off")
	if got := shown("cluster.tick_time"); got != "cluster.tick_time = 20s (file: 8s)" {
		t.Error(got)
	}
	// Another key of the file leaves it; the same key of the file wins.
	b.edit(`:7002`, `:7003`)
	b.must(b.Reload(t.Context(), everyone))
	if got := shown("cluster.tick_time"); got != "cluster.tick_time = 20s (file: 8s)" {
		t.Error(got)
	}
	b.start() // kept over a restart
	if got := shown("cluster.tick_time"); got != "cluster.tick_time = 20s (file: 8s)" {
		t.Error(got)
	}
	b.edit(`:7002`, `:7003`, `"8s" #`, `"30s" #`)
	b.must(b.Reload(t.Context(), everyone))
	if got := shown("cluster.tick_time"); got != "cluster.tick_time = 30s" {
		t.Error(got)
	}
	// Setting what the file says is no setting.
	set("device.r0.quorum", "majority")
	if st := b.Status(); len(st.Overlay) != 0 {
		t.Errorf("%v", st.Overlay)
	}
	if _, err := os.Stat(b.file + ".settings"); !errors.Is(err, os.ErrNotExist) {
		t.Error("the settings' file stays behind")
	}
	// A device made by command, then taken over by the file, then gone.
	b.must(b.Set(t.Context(), everyone, config.Setting{Key: "device.r1.size", Value: "1MiB"}, config.Setting{Key: "device.r1.protocol", Value: "B"}))
	b.start()
	if d := b.Current().Device("r1"); d == nil || d.Protocol != "B" {
		t.Errorf("r1 is %+v", d)
	}
	b.write(base + "[[device]]\nname = \"r1\"\nsize = \"2MiB\"\n")
	b.must(b.Reload(t.Context(), everyone))
	if d := b.Current().Device("r1"); d == nil || d.Size != 2<<20 || d.Protocol != "C" {
		t.Errorf("r1 is %+v", d)
	}
	set("device.r1.size", "3MiB")
	b.write(base)
	b.must(b.Reload(t.Context(), everyone))
	if b.Current().Device("r1") != nil || len(b.Status().Overlay) != 0 {
		t.Errorf("r1 is back: %v", b.Status().Overlay)
	}
}

func TestSaveKeepsTheFilesLayout(t *testing.T) {
	b := newBed(t)
	if err := b.Save(t.Context(), everyone); err != nil || b.read1() != base {
		t.Errorf("saving nothing: %v", err)
	}
	b.must(b.Set(t.Context(), everyone, config.Setting{Key: "cluster.tick_time", Value: "20s"}, config.Setting{Key: "device.r0.quorum", Value: "off"}))
	b.write(base + "# mine\n")
	b.wantErr(b.Save(t.Context(), everyone), "has changes that are not applied; reload or take them back first")
	b.must(b.Reload(t.Context(), everyone))
	if err := b.Save(t.Context(), everyone); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(base, `"8s"`, `"20s"`, 1) + "quorum = \"off\"\n# mine\n"
	if got := b.read1(); got != want {
		t.Errorf("saved\n%s", got)
	}
	if st, _ := os.Stat(b.file); st.Mode().Perm() != 0o640 {
		t.Errorf("the mode is %v", st.Mode())
	}
	n := len(b.outcomes)
	b.FileChanged(t.Context())
	if st := b.Status(); len(st.Overlay) != 0 || len(b.outcomes) != n || st.Revision != 2 {
		t.Errorf("saving was a change: %+v", st)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(b.file), ".*")); len(left) != 0 {
		t.Errorf("left behind %v", left)
	}
}

func TestSaveFollowsALinkAndSaysWhatItCannotWrite(t *testing.T) {
	b := newBed(t)
	real := filepath.Join(t.TempDir(), "real.toml")
	if err := os.Rename(b.file, real); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, b.file); err != nil {
		t.Fatal(err)
	}
	b.must(b.Set(t.Context(), everyone, config.Setting{Key: "cluster.tick_time", Value: "20s"}))
	if err := b.Save(t.Context(), everyone); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(b.file); err != nil || st.Mode()&os.ModeSymlink == 0 || !strings.Contains(b.read1(), `"20s"`) {
		t.Error("the link is replaced by a file")
	}
}

func TestHistoryKeepsTenAndRollsBack(t *testing.T) {
	b := newBed(t)
	for i := range 14 {
		b.edit(`"8s" #`, fmt.Sprintf(`"%ds" #`, 20+i))
		b.must(b.Reload(t.Context(), everyone))
	}
	h := b.History()
	if len(h) != HistorySize || h[0].Number != 15 || h[9].Number != 6 || h[0].Changes[0].String() != "cluster.tick_time: 32s → 33s (live)" {
		t.Fatalf("%d revisions, %+v", len(h), h[0])
	}
	_, err := b.Rollback(t.Context(), everyone, 5)
	b.wantErr(err, "there is no revision 5; revisions 6 to 15 are kept")
	_, err = b.Rollback(t.Context(), everyone, 15)
	b.wantErr(err, "revision 15 is the one that holds")
	b.must(b.Set(t.Context(), everyone, config.Setting{Key: "device.r0.quorum", Value: "off"}))
	rev, err := b.Rollback(t.Context(), everyone, 10)
	b.must(rev, err)
	if rev.Number != 17 || b.Current().Cluster.TickTime != 28*time.Second || b.cluster.live["cluster.tick_time"] != "28s" || b.device.live["device.r0.quorum"] != "majority" {
		t.Errorf("%+v", rev)
	}
	if !strings.Contains(b.read1(), `"28s"`) {
		t.Error("the file is not rolled back")
	}
	n := len(b.outcomes)
	if b.FileChanged(t.Context()); len(b.outcomes) != n {
		t.Error("the watcher finds the rollback to be a change")
	}
	b.cluster.fail = func(Tx) error { return errors.New("boom") }
	before, text := b.state(), b.read1()
	_, err = b.Rollback(t.Context(), everyone, 12)
	b.wantErr(err, "cluster: boom\nall is as it was before")
	if b.state() != before || b.read1() != text {
		t.Error("a failed rollback changed something")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(b.file), ".*")); len(left) != 0 {
		t.Errorf("left behind %v", left)
	}
}

// TestARollbackReachesBehindARestart: revisions go on counting over restarts,
// one that changes nothing is none.
func TestARollbackReachesBehindARestart(t *testing.T) {
	b := newBed(t)
	b.edit(`"8s" #`, `"9s" #`)
	b.must(b.Reload(t.Context(), everyone))
	b.must(b.Set(t.Context(), everyone, config.Setting{Key: "device.r0.quorum", Value: "off"}))
	b.start()
	if h := b.History(); len(h) != 3 || h[0].Number != 3 || h[0].Changes[0].Key != "device.r0.quorum" || h[0].Who != everyone.Who {
		t.Fatalf("%+v", h)
	}
	b.edit(`"8s" #`, `"10s" #`) // while nobody runs
	b.start()
	if h := b.History(); len(h) != 4 || h[0].Number != 4 || h[0].Who != "start" || h[0].Changes[0].String() != "cluster.tick_time: 9s → 10s (live)" {
		t.Fatalf("%+v", h)
	}
	rev, err := b.Rollback(t.Context(), everyone, 1)
	b.must(rev, err)
	if rev.Number != 5 || b.Current().Cluster.TickTime != 8*time.Second || b.read1() != base {
		t.Errorf("%+v, and the file is\n%s", rev, b.read1())
	}
	if err := os.WriteFile(b.file+".revisions", []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	if h := b.History(); len(h) != 1 || h[0].Number != 1 {
		t.Errorf("%+v", h)
	}
}

func TestOneTransactionAtATime(t *testing.T) {
	b := newBed(t)
	release, begun := make(chan struct{}), make(chan struct{})
	b.cluster.fail = func(Tx) error { close(begun); <-release; return nil }
	b.edit(`"8s" #`, `"9s" #`)
	var wg sync.WaitGroup
	gone, leave := context.WithCancel(t.Context())
	wg.Go(func() { b.must(b.Reload(gone, everyone)) })
	<-begun
	leave() // a client that goes away does not stop what has begun
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := b.Reload(ctx, everyone)
	b.wantErr(err, "the configuration is being changed")
	if b.Current().Cluster.TickTime != 8*time.Second || b.Status().Revision != 1 || len(b.Show()) == 0 {
		t.Error("readers wait, or see what is not committed")
	}
	close(release)
	wg.Wait()
	if b.Current().Cluster.TickTime != 9*time.Second {
		t.Error("what had begun did not end")
	}
}

func TestSettingsThatAreNoLongerValidAreDroppedAtTheStart(t *testing.T) {
	b := newBed(t)
	b.must(b.Set(t.Context(), everyone, config.Setting{Key: "device.r0.quorum", Value: "2"}, config.Setting{Key: "cluster.tick_time", Value: "20s"}))
	b.edit(`size = "64MiB"`, "size = \"64MiB\"\nnodes = \"alpha\"")
	_, err := b.Reload(t.Context(), everyone)
	b.wantErr(err, "the file does not go with what was set by command: set at run time: device.r0.quorum: 2")
	b.start()
	if st := b.Status(); len(st.Overlay) != 1 || st.Overlay[0].Key != "cluster.tick_time" {
		t.Errorf("%v", st.Overlay)
	}
	if err := os.WriteFile(b.file+".settings", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	if st := b.Status(); len(st.Overlay) != 0 {
		t.Errorf("%v", st.Overlay)
	}
}

// TestRandomEditsAreNeverHalfApplied throws valid and invalid edits, failing
// appliers and commands at one engine: what is refused leaves everything as
// it was, what is applied is what the file and the commands say.
func TestRandomEditsAreNeverHalfApplied(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := newBed(t)
	for _, k := range b.Show() {
		for _, p := range []*part{b.cluster, b.device} {
			if p.Wants(k.Path) {
				p.live[k.Path] = k.Value
			}
		}
	}
	fault := func(Tx) error {
		if rnd.IntN(6) == 0 {
			return errors.New("boom")
		}
		return nil
	}
	b.cluster.fail, b.device.fail = fault, fault
	applied := 0
	for range 400 {
		before := b.state()
		err := randomChange(t.Context(), b, rnd)
		if err != nil {
			if diff := cmp.Diff(before, b.state()); diff != "" {
				t.Fatalf("refused (%v), and yet\n%s", err, diff)
			}
			continue
		}
		applied++
		for _, k := range b.Show() {
			for _, p := range []*part{b.cluster, b.device} {
				if v, ok := p.live[k.Path]; ok && v != k.Value {
					t.Fatalf("%s is %s and should be %s", k.Path, v, k.Value)
				}
			}
		}
	}
	if applied == 0 {
		t.Error("none of 400 edits was applied")
	}
}

func randomChange(ctx context.Context, b *bed, rnd *rand.Rand) error {
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	if rnd.IntN(4) == 0 {
		key := pick("cluster.tick_time", "device.r0.quorum", "device.r0.protocol", "cluster.max_ping_count", "device.r9.quorum")
		_, err := b.Set(ctx, everyone, config.Setting{Key: key, Value: pick("9s", "off", "A", "12", "2", "1ms")})
		return err
	}
	b.edit(`"8s" #`, pick(`"8s" #`, `"9s" #`, `"10s" #`, `"1ms" #`, `8 #`, `"8s`), `:7002`, pick(`:7002`, `:7003`, `:7001`, `:x`),
		`size = "64MiB"`, pick(`size = "64MiB"`, "size = \"64MiB\"\nquorum = \"off\"", "size = \"64MiB\"\nprotocol = \"B\"", "size = \"64MiB\"\nprotocl = \"B\"", ``))
	_, err := b.Reload(ctx, everyone)
	return err
}

func TestTheWatcherWaitsForQuiet(t *testing.T) {
	for _, tc := range []struct {
		name  string
		every time.Duration
		times int
		calls []time.Duration // when Changed is called
	}{
		{"one", 0, 1, []time.Duration{quiet}},
		{"a burst", 10 * time.Millisecond, 20, []time.Duration{190*time.Millisecond + quiet}},
		{"a storm", 130 * time.Millisecond, 34, []time.Duration{patience, 2080*time.Millisecond + patience, 4290*time.Millisecond + quiet}},
		{"two apart", 1500 * time.Millisecond, 2, []time.Duration{quiet, 1500*time.Millisecond + quiet}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "f")
			synctest.Test(t, func(t *testing.T) {
				var got []time.Duration
				begin := time.Now()
				w := &Watcher{Paths: func() []string { return []string{file} }, Changed: func(context.Context) { got = append(got, time.Since(begin)) }}
				names := make(chan string)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { w.loop(ctx, names, nil, func([]string) {}) })
				for i := range tc.times {
					if i > 0 {
						time.Sleep(tc.every)
					}
					names <- file
					names <- file + ".other" // is not ours
				}
				time.Sleep(time.Minute)
				cancel()
				wg.Wait()
				if !slices.Equal(got, tc.calls) {
					t.Errorf("called after %v, not %v", got, tc.calls)
				}
			})
		})
	}
}

// TestTheWatcherWaitsForWriters: what has a file open is waited for, though not
// for ever.
func TestTheWatcherWaitsForWriters(t *testing.T) {
	for _, tc := range []struct {
		name  string
		until time.Duration // somebody has the file open
		calls []time.Duration
	}{
		{"a slow writer", 5 * time.Second, []time.Duration{5100 * time.Millisecond}},
		{"one that never ends", time.Hour, []time.Duration{quiet + writerPatience}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "f")
			synctest.Test(t, func(t *testing.T) {
				var got []time.Duration
				begin := time.Now()
				w := &Watcher{
					Paths: func() []string { return []string{file} }, Logger: slog.New(slog.DiscardHandler),
					Changed: func(context.Context) { got = append(got, time.Since(begin)) },
					written: func(string) bool { return time.Since(begin) < tc.until },
				}
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { w.loop(ctx, nil, nil, func([]string) {}) })
				time.Sleep(time.Minute)
				cancel()
				wg.Wait()
				if !slices.Equal(got, tc.calls) {
					t.Errorf("called after %v, not %v", got, tc.calls)
				}
			})
		})
	}
}

func TestAFileThatIsBeingWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if beingWritten(path) {
		t.Error("a file that is not there is being written")
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !beingWritten(path) {
		t.Skip("this file system gives no leases")
	}
	for range 100 {
		r, err := os.Open(path)
		if err != nil || !beingWritten(path) {
			t.Fatalf("the writer is not seen beside a reader: %v", err)
		}
		r.Close()
	}
	f.Close()
	if beingWritten(path) || beingWritten(filepath.Dir(path)) {
		t.Error("a file that nobody has open is being written")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Errorf("it cannot be written now: %v", err)
	}
}

// TestEditorsSavesAreOneReload saves a file as editors and tools do, under a
// real watcher, and wants exactly one outcome for each.
func TestEditorsSavesAreOneReload(t *testing.T) {
	next := strings.Replace(base, `"8s"`, `"20s"`, 1)
	bad := strings.Replace(base, `"8s"`, `8`, 1)
	for _, tc := range []struct {
		name string
		save func(b *bed, dir string) error
		err  bool
	}{
		{"in place (nano)", func(b *bed, _ string) error { return os.WriteFile(b.file, []byte(next), 0o644) }, false},
		{"backup and new (vim)", func(b *bed, dir string) error {
			return errors.Join(os.WriteFile(dir+"/4913", nil, 0o644), os.Remove(dir+"/4913"), os.Rename(b.file, b.file+"~"),
				os.WriteFile(b.file, []byte(next), 0o644), os.Chmod(b.file, 0o640), os.Remove(b.file+"~"))
		}, false},
		{"rename over (sed -i)", func(b *bed, dir string) error {
			return errors.Join(os.WriteFile(dir+"/sedx", []byte(next), 0o644), os.Rename(dir+"/sedx", b.file))
		}, false},
		{"two halves", func(b *bed, _ string) error {
			f, err := os.OpenFile(b.file, os.O_WRONLY|os.O_TRUNC, 0o644)
			if err != nil {
				return err
			}
			_, err1 := f.WriteString(next[:40])
			_, err2 := f.WriteString(next[40:])
			return errors.Join(err1, err2, f.Close())
		}, false},
		{"gone and back", func(b *bed, _ string) error {
			return errors.Join(os.Remove(b.file), os.WriteFile(b.file, []byte(next), 0o644))
		}, false},
		{"a link that swaps (ConfigMap)", func(b *bed, dir string) error {
			return errors.Join(os.Mkdir(dir+"/..2", 0o755), os.WriteFile(dir+"/..2/lockstep.toml", []byte(next), 0o644),
				os.WriteFile(dir+"/..2/secret", []byte("0123456789abcdef"), 0o600),
				os.Symlink("..2", dir+"/..data_tmp"), os.Rename(dir+"/..data_tmp", dir+"/..data"))
		}, false},
		{"not valid", func(b *bed, _ string) error { return os.WriteFile(b.file, []byte(bad), 0o644) }, true},
		{"a storm of touches, then the save", func(b *bed, _ string) error {
			for range 200 {
				if err := os.Chtimes(b.file, time.Time{}, time.Now()); err != nil {
					return err
				}
			}
			return os.WriteFile(b.file, []byte(next), 0o644)
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			dir := filepath.Dir(b.file)
			if strings.Contains(tc.name, "ConfigMap") {
				asConfigMap(t, b, dir)
			}
			outcomes := make(chan Outcome, 100)
			b.opts.Observe = func(o Outcome) { outcomes <- o }
			ready := make(chan struct{}, 100)
			paths := func() []string { return b.Files() }
			w := &Watcher{Paths: paths, Changed: func(ctx context.Context) { b.FileChanged(ctx); ready <- struct{}{} }, Logger: b.opts.Logger, Quiet: 500 * time.Millisecond}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := w.Run(ctx); err != nil {
					t.Error(err)
				}
			})
			defer wg.Wait()
			defer cancel()
			wait(t, ready) // the watcher has looked once
			if err := tc.save(b, dir); err != nil {
				t.Fatal(err)
			}
			if o := wait(t, outcomes); (o.Err != nil) != tc.err {
				t.Errorf("ended with %v", o.Err)
			}
			// Whatever else comes of the save has come when a later touch has.
			wait(t, ready)
			if err := os.Chtimes(b.file, time.Time{}, time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			wait(t, ready)
			if len(outcomes) != 0 {
				t.Errorf("%d more outcomes: %+v", len(outcomes), <-outcomes)
			}
			if want := map[bool]time.Duration{false: 20 * time.Second, true: 8 * time.Second}[tc.err]; b.Current().Cluster.TickTime != want {
				t.Errorf("tick_time is %v", b.Current().Cluster.TickTime)
			}
		})
	}
}

// asConfigMap makes the folder look as a mounted ConfigMap does.
func asConfigMap(t *testing.T, b *bed, dir string) {
	err := errors.Join(os.Mkdir(dir+"/..1", 0o755), os.Rename(b.file, dir+"/..1/lockstep.toml"), os.Rename(dir+"/secret", dir+"/..1/secret"),
		os.Symlink("..1", dir+"/..data"), os.Symlink("..data/lockstep.toml", b.file), os.Symlink("..data/secret", dir+"/secret"))
	if err != nil {
		t.Fatal(err)
	}
	b.start()
}

func wait[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing happened for 30 seconds")
		panic("unreachable")
	}
}

func TestTheWayToAFile(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.MkdirAll(dir+"/a/..1", 0o755), os.Symlink("..1", dir+"/a/..data"), os.Symlink("..data/f", dir+"/a/f"),
		os.Symlink(dir+"/a", dir+"/b"), os.Symlink("loop", dir+"/loop"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{dir + "/b", dir + "/a/f", dir + "/a/..data", dir + "/a/..1/f"}
	if got := way(dir + "/b/f"); !slices.Equal(got, want) {
		t.Errorf("the way is %q", got)
	}
	if got := way(dir + "/loop/x"); len(got) != maxLinks+1 {
		t.Errorf("%d links of a loop", len(got))
	}
}
