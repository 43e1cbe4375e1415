package cmap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %q, not a %q with %q", err, kind, text)
	}
}

func parse(t *testing.T, typ Type, text string) Value {
	t.Helper()
	v, err := ParseValue(string(typ), text)
	must(t, err)
	return v
}

// dump is the database as text.
func dump(db *DB, prefix string) string {
	var b strings.Builder
	for _, e := range db.Dump(prefix) {
		b.WriteString(e.Line() + "\n")
	}
	return b.String()
}

func TestS5EveryTypeGoesRoundAndHasItsLimits(t *testing.T) {
	big := strings.Repeat("x", MaxValueBytes)
	for _, tc := range []struct {
		typ   Type
		good  []string
		bad   []string
		words string // of the error of the first bad one
	}{
		{I8, []string{"-128", "0", "127"}, []string{"128", "-129", "", "1.0", "0x1", "x"}, `"128" is out of range; i8 is from -128 to 127`},
		{U8, []string{"0", "255"}, []string{"256", "-1", "+1"}, `"256" is out of range; u8 is from 0 to 255`},
		{I16, []string{"-32768", "32767"}, []string{"32768", "-32769"}, "i16 is from -32768 to 32767"},
		{U16, []string{"0", "65535"}, []string{"65536"}, "u16 is from 0 to 65535"},
		{I32, []string{"-2147483648", "2147483647"}, []string{"2147483648"}, "i32 is from -2147483648 to 2147483647"},
		{U32, []string{"0", "4294967295"}, []string{"4294967296"}, "u32 is from 0 to 4294967295"},
		{I64, []string{"-9223372036854775808", "9223372036854775807"}, []string{"9223372036854775808"}, "i64 is from -9223372036854775808 to 9223372036854775807"},
		{U64, []string{"0", "18446744073709551615"}, []string{"18446744073709551616"}, "u64 is from 0 to 18446744073709551615"},
		{Flt, []string{"0", "-1.5", "3.4028235e+38", "NaN", "+Inf"}, []string{"1e39", "x"}, `"1e39" is not a number in range of type flt`},
		{Dbl, []string{"0", "0.1", "1.7976931348623157e+308"}, []string{"1e309", ""}, `is not a number in range of type dbl`},
		{Str, []string{"", "a b", " x ", "ü", big}, []string{big + "x", "\xff"}, "16385 bytes; a value has at most 16384"},
		{Bin, []string{"", "00ff", strings.Repeat("ab", MaxValueBytes)}, []string{strings.Repeat("ab", MaxValueBytes+1), "0", "zz"}, "16385 bytes; a value has at most 16384"},
	} {
		t.Run(string(tc.typ), func(t *testing.T) {
			db := New()
			for _, text := range tc.good {
				v := parse(t, tc.typ, text)
				must(t, db.Remove("test.key"))
				must(t, db.Set(t.Context(), "test.key", v))
				got, err := db.Get("test.key")
				if err != nil || got != v || got.Text() != text || got.Type() != tc.typ {
					t.Errorf("%.40q came back as %.40q (%v)", text, got.Text(), err)
				}
				if line := dump(db, ""); line != fmt.Sprintf("test.key (%s) = %s\n", tc.typ, text) {
					t.Errorf("dumped as %.60q", line)
				}
			}
			for i, text := range tc.bad {
				_, err := ParseValue(string(tc.typ), text)
				if i == 0 {
					wantErr(t, err, ErrBadValue, tc.words)
				} else if err == nil {
					t.Errorf("%.40q is a %s", text, tc.typ)
				}
			}
		})
	}
	_, err := ParseValue("u33", "1")
	wantErr(t, err, ErrBadValue, `there is no type "u33"; types are i8 u8 i16`)
}

func TestS5KeysHaveTheirLimitsAndTheirOwnErrors(t *testing.T) {
	db := New()
	for key, words := range map[string]string{
		"ab":                     "it is shorter than 3 characters",
		strings.Repeat("k", 256): "it is longer than 255 characters",
		"a b":                    "character 2 is not allowed; keys have letters, digits and ._-/: only",
		"abü":                    "character 3 is not allowed",
		"":                       "shorter than 3",
	} {
		wantErr(t, db.Set(t.Context(), key, Int(1)), ErrBadKey, words)
		_, err := db.Get(key)
		wantErr(t, err, ErrBadKey, words)
	}
	for _, key := range []string{"abc", strings.Repeat("k", 255), "a._-/:Z9"} {
		must(t, db.Set(t.Context(), key, Int(1)))
	}
	_, err := db.Get("nope")
	wantErr(t, err, ErrNotExist, "no such key: nope")
	wantErr(t, db.Delete(t.Context(), "nope"), ErrNotExist, "no such key: nope")
	must(t, db.Remove("nope"))
	if n := Name("r 0/ä.img"); n != "r_0/_.img" || CheckKey("devices."+n) != nil {
		t.Error(n)
	}
}

// next takes a change that must be there.
func next(t *testing.T, tr *Tracker) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, lost, err := tr.Next(ctx)
	switch {
	case lost != nil:
		return fmt.Sprintf("lost %d", lost.Count)
	case err != nil:
		return "nothing"
	}
	return fmt.Sprintf("%s %s→%s", c.Line(), c.Old.Text(), c.New.Text())
}

func track(t *testing.T, db *DB, key string, prefix bool) *Tracker {
	t.Helper()
	tr, err := db.Track(key, prefix)
	must(t, err)
	return tr
}

func TestS6SettingTheSameIsNoEventAndTypesStay(t *testing.T) {
	db, ctx := New(), t.Context()
	db.ReadOnly("runtime.")
	tr := track(t, db, "", true)
	must(t, db.Set(ctx, "user.a", Uint32(1)))
	must(t, db.Set(ctx, "user.a", Uint32(1)))
	wantErr(t, db.Set(ctx, "user.a", String("1")), ErrBadValue, "user.a is of type u32, not str; delete it first to change its type")
	must(t, db.Put("user.a", Uint32(1)))
	must(t, db.Put("user.a", Int(1))) // the engine knows what it does
	must(t, db.Put("runtime.b", parse(t, U8, "254")))
	wantErr(t, db.Set(ctx, "runtime.b", parse(t, U8, "0")), ErrReadOnly, "read-only key: runtime.b")
	wantErr(t, db.Delete(ctx, "runtime.b"), ErrReadOnly, "runtime.b")
	_, err := db.Add(ctx, "runtime.b", 1)
	wantErr(t, err, ErrReadOnly, "runtime.b")
	want := []string{"create> user.a (u32) = 1 0→1", "modify> user.a (i64) = 1 1→1", "create> runtime.b (u8) = 254 0→254", "nothing"}
	for _, w := range want {
		if got := next(t, tr); got != w {
			t.Errorf("event %q, not %q", got, w)
		}
	}
}

func TestS6CountingStopsAtTheLimitsOfTheType(t *testing.T) {
	for _, tc := range []struct {
		typ     Type
		from    string
		delta   int64
		want    string
		refused bool
	}{
		{U8, "254", 1, "255", false}, {U8, "255", 1, "", true}, {U8, "0", -1, "", true}, {U8, "5", -5, "0", false},
		{I8, "127", 1, "", true}, {I8, "-128", -1, "", true}, {I8, "-1", 1, "0", false},
		{I64, "9223372036854775807", 1, "", true}, {I64, "-9223372036854775808", -1, "", true}, {I64, "-9223372036854775808", math.MaxInt64, "-1", false},
		{U64, "18446744073709551615", 1, "", true}, {U64, "18446744073709551615", -1, "18446744073709551614", false}, {U64, "0", math.MinInt64, "", true},
		{U32, "7", 0, "7", false}, {Str, "7", 1, "", true}, {Dbl, "7", 1, "", true}, {I16, "0", math.MaxInt64, "", true},
	} {
		db := New()
		must(t, db.Set(t.Context(), "user.n", parse(t, tc.typ, tc.from)))
		v, err := db.Add(t.Context(), "user.n", tc.delta)
		if tc.refused {
			wantErr(t, err, ErrBadValue, "user.n: bad value")
			v, _ = db.Get("user.n")
			tc.want = tc.from
		}
		if v.Text() != tc.want {
			t.Errorf("%s %s%+d is %s, not %s", tc.typ, tc.from, tc.delta, v.Text(), tc.want)
		}
	}
	_, err := New().Add(t.Context(), "user.n", 1)
	wantErr(t, err, ErrNotExist, "user.n")
}

func TestS7TrackersSeeOldAndNewInOrderOfCommit(t *testing.T) {
	db, ctx := New(), t.Context()
	all, one, exact := track(t, db, "", true), track(t, db, "user.a", true), track(t, db, "user.a", false)
	must(t, db.Apply(ctx, SetOp("user.b", Int(1)), SetOp("user.a", Int(2)), SetOp("user.ab", Int(3)), SetOp("user.a", Int(4)), DeleteOp("user.b")))
	must(t, db.Delete(ctx, "user.a"))
	for _, tc := range []struct {
		tr   *Tracker
		want []string
	}{
		{all, []string{"create> user.b (i64) = 1 0→1", "create> user.a (i64) = 2 0→2", "create> user.ab (i64) = 3 0→3", "modify> user.a (i64) = 4 2→4", "delete> user.b (i64) = 1 1→0", "delete> user.a (i64) = 4 4→0", "nothing"}},
		{one, []string{"create> user.a (i64) = 2 0→2", "create> user.ab (i64) = 3 0→3", "modify> user.a (i64) = 4 2→4", "delete> user.a (i64) = 4 4→0", "nothing"}},
		{exact, []string{"create> user.a (i64) = 2 0→2", "modify> user.a (i64) = 4 2→4", "delete> user.a (i64) = 4 4→0", "nothing"}},
	} {
		for _, w := range tc.want {
			if got := next(t, tc.tr); got != w {
				t.Errorf("event %q, not %q", got, w)
			}
		}
	}
	if _, err := db.Track("x", false); !errors.Is(err, ErrBadKey) {
		t.Error(err)
	}
}

// TestS7AStoppedTrackerIsBoundedAndTold is the experiment that cost Corosync
// 143 MB: two trackers that are never read, 30,000 changes of 1 KiB.
func TestS7AStoppedTrackerIsBoundedAndTold(t *testing.T) {
	db := New()
	a, b := track(t, db, "user.", true), track(t, db, "user.", true)
	pad := strings.Repeat("x", 1000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 30_000
	for i := range n {
		must(t, db.Put("user.key", String(fmt.Sprint(i, pad))))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 12<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	for _, tr := range []*Tracker{a, b} {
		_, lost, err := tr.Next(t.Context())
		if err != nil || lost == nil || lost.From != 1 || lost.To != lost.Count {
			t.Fatalf("%+v, %v", lost, err)
		}
		seq := lost.To
		for ; seq < n; seq++ {
			c, l, err := tr.Next(t.Context())
			if err != nil || l != nil || c.Seq != seq+1 {
				t.Fatalf("after %d: %d, %+v, %v", seq, c.Seq, l, err)
			}
		}
	}
}

func TestS7NoneIsLostToAReaderThatReads(t *testing.T) {
	db := New()
	var wg sync.WaitGroup
	const writers, each = 4, 500
	for range 4 {
		tr := track(t, db, "user.", true)
		wg.Go(func() {
			last := map[string]Value{}
			for n := range writers * each {
				c, lost, err := tr.Next(t.Context())
				if err != nil || lost != nil || c.Seq != uint64(n+1) || c.Old != last[c.Key] {
					t.Errorf("%d: %+v, %+v, %v", n, c, lost, err)
					return
				}
				last[c.Key] = c.New
			}
		})
	}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := db.Set(t.Context(), fmt.Sprintf("user.%d", w), Int(int64(i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestS8DumpsWhileKeysChange(t *testing.T) {
	db := New()
	for i := range 200 {
		must(t, db.Put(fmt.Sprintf("stays.%03d", i), Int(int64(i))))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("flaps.%d.%d", w, i%17)
				_ = db.Put(key, Int(int64(i)))
				_ = db.Remove(fmt.Sprintf("flaps.%d.%d", w, (i+5)%17))
			}
		})
	}
	for range 100 {
		keys := db.Dump("")
		if !slices.IsSortedFunc(keys, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) }) {
			t.Fatal("not in order")
		}
		stays := 0
		for i, e := range keys {
			if i > 0 && keys[i-1].Key == e.Key {
				t.Fatalf("%s twice", e.Key)
			}
			if strings.HasPrefix(e.Key, "stays.") {
				stays++
			}
		}
		if stays != 200 {
			t.Fatalf("%d of 200 unchanged keys", stays)
		}
	}
	cancel()
	wg.Wait()
}

func TestABatchIsAllOrNothing(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       string // the dump afterwards, "" as before
		kind       error
		words      string
	}{
		{"all", "# a comment\n\n  user.a u32 7\nuser.s str two words \n^user.old\n^^user.pre.\nuser.e str\r\n", "user.a (u32) = 7\nuser.e (str) = \nuser.s (str) = two words \n", nil, ""},
		{"a bad type", "user.a u32 7\nuser.b u33 7\n", "", ErrBadValue, `line 2: bad value: there is no type "u33"`},
		{"a bad value", "user.a u32 7\n\nuser.b i8 700\n", "", ErrBadValue, "line 3: bad value: \"700\" is out of range"},
		{"a bad key", "user.a u32 7\nb u8 7\n", "", ErrBadKey, "line 2: bad key"},
		{"a read-only key", "user.a u32 7\nruntime.x u8 1\n", "", ErrReadOnly, "line 2: read-only key: runtime.x"},
		{"a key that is not there", "^user.old\n^user.old\n", "", ErrNotExist, "line 2: no such key: user.old"},
		{"a read-only prefix", "user.a u32 7\n^^r\n", "", ErrReadOnly, "line 2: read-only key: runtime.r"},
		{"half a line", "user.a u32\n", "", ErrBadValue, "line 1: bad value: a line is KEY TYPE VALUE, ^KEY or ^^PREFIX"},
		{"everything", "^^\n", "", ErrBadKey, "would delete everything"},
		{"what is set may be deleted again", "user.x u8 1\nuser.x u8 2\n^user.x\n^user.old\n^^user.pre\n", "", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := New()
			db.ReadOnly("runtime.")
			must(t, db.Put("runtime.r", Int(1)))
			for _, k := range []string{"user.old", "user.pre.1", "user.pre.2"} {
				must(t, db.Put(k, Int(1)))
			}
			before := dump(db, "user.")
			tr := track(t, db, "", true)
			ops, err := ParseBatch(tc.text)
			if err == nil {
				err = db.Apply(t.Context(), ops...)
			}
			if tc.kind == nil {
				must(t, err)
				if got := dump(db, "user."); got != tc.want {
					t.Errorf("the result is\n%s", got)
				}
				return
			}
			wantErr(t, err, tc.kind, tc.words)
			if got := dump(db, "user."); got != before {
				t.Errorf("a refused batch left\n%s", got)
			}
			if got := next(t, tr); got != "nothing" {
				t.Errorf("a refused batch told %s", got)
			}
		})
	}
}

func TestS10AGuardDecidesAboutAllItsKeysAtOnce(t *testing.T) {
	db, ctx := New(), t.Context()
	db.ReadOnly(EnginePrefixes()...)
	no := errors.New("tick_time: 10ms; from 100ms to 1h")
	var applied []string
	must(t, db.Guard("config.", Guard{
		Check: func(changes []Change) error {
			for _, c := range changes {
				if c.New.Text() == "10ms" {
					return no
				}
			}
			return nil
		},
		Apply: func(_ context.Context, changes []Change) error {
			for _, c := range changes {
				if c.New.Text() == "20s" {
					return errors.New("a device is open")
				}
				applied = append(applied, c.Key)
				must(t, db.Put(c.Key, c.New)) // as the engine that has done it
			}
			return nil
		},
	}))
	if err := db.Guard("config.x", Guard{}); err == nil {
		t.Error("two guards of one key")
	}
	must(t, db.Put("config.cluster.tick_time", String("8s")))
	before := dump(db, "")
	if err := db.Apply(ctx, SetOp("user.a", Int(1)), SetOp("config.cluster.tick_time", String("10ms"))); !errors.Is(err, no) {
		t.Error(err)
	}
	if err := db.Set(ctx, "config.cluster.tick_time", String("20s")); err == nil || err.Error() != "a device is open" {
		t.Error(err)
	}
	if got := dump(db, ""); got != before {
		t.Errorf("a refused set left\n%s", got)
	}
	tr := track(t, db, "", true)
	must(t, db.Apply(ctx, SetOp("user.a", Int(1)), SetOp("config.cluster.tick_time", String("9s"))))
	if fmt.Sprint(applied) != "[config.cluster.tick_time]" {
		t.Error(applied)
	}
	for _, w := range []string{"modify> config.cluster.tick_time (str) = 9s 8s→9s", "create> user.a (i64) = 1 0→1", "nothing"} {
		if got := next(t, tr); got != w {
			t.Errorf("event %q, not %q", got, w)
		}
	}
	must(t, db.Guard("other.", Guard{Apply: func(context.Context, []Change) error { t.Error("applied"); return nil }}))
	err := db.Apply(ctx, SetOp("other.a", Int(1)), SetOp("config.cluster.tick_time", String("7s")))
	wantErr(t, err, ErrBadKey, "one batch cannot change both config.* and other.*; make two of it")
}

// squares computes n² for n of 0..9, times a factor.
type squares struct {
	mu     sync.Mutex
	factor int64
	extra  bool
}

func (s *squares) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		s.mu.Lock()
		f, extra := s.factor, s.extra
		s.mu.Unlock()
		for n := range int64(10) {
			if !yield(fmt.Sprintf("stats.sq.%d", n), Int(n*n*f)) {
				return
			}
		}
		if extra {
			yield("stats.sq.x", Int(1))
		}
		yield("user.stolen", Int(1)) // not its prefix: left out
	}
}

func (s *squares) Get(key string) (Value, bool) {
	for k, v := range s.All() {
		if k == key {
			return v, true
		}
	}
	return Value{}, false
}

func TestComputedKeysAreReadOnlyAndComputedWhenRead(t *testing.T) {
	db := New()
	s := &squares{factor: 1}
	remove, err := db.Provide("stats.sq.", s)
	must(t, err)
	if _, err := db.Provide("stats.", s); err == nil {
		t.Error("provided twice")
	}
	must(t, db.Put("stats.a", Int(1)))
	must(t, db.Put("stats.z", Int(1)))
	s.factor = 2
	if v, err := db.Get("stats.sq.3"); err != nil || v != Int(18) {
		t.Error(v, err)
	}
	_, err = db.Get("stats.sq.nope")
	wantErr(t, err, ErrNotExist, "stats.sq.nope")
	wantErr(t, db.Set(t.Context(), "stats.sq.3", Int(1)), ErrReadOnly, "stats.sq.3")
	wantErr(t, db.Put("stats.sq.3", Int(1)), ErrReadOnly, "stats.sq.3")
	got := db.Dump("stats.")
	if len(got) != 12 || got[0].Key != "stats.a" || got[1].Key != "stats.sq.0" || !got[1].RO || got[11].Key != "stats.z" {
		t.Errorf("%+v", got)
	}
	if n := len(db.Dump("stats.sq.3")); n != 1 {
		t.Errorf("%d keys", n)
	}
	remove()
	if n := len(db.Dump("")); n != 2 {
		t.Errorf("%d keys without the provider", n)
	}
}

func TestTrackersLookAtComputedKeysOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := New()
		s := &squares{factor: 1}
		_, err := db.Provide("stats.sq.", s)
		must(t, err)
		tr := track(t, db, "stats.sq.2", false)
		all := track(t, db, "stats.", true)
		begin := time.Now()
		s.factor, s.extra = 3, true
		c, _, err := tr.Next(t.Context())
		if err != nil || c.Line() != "modify> stats.sq.2 (i64) = 12" || c.Old != Int(4) || time.Since(begin) != pollEvery {
			t.Errorf("%+v, %v after %v", c, err, time.Since(begin))
		}
		var got []string
		for range 10 {
			c, _, err := all.Next(t.Context())
			must(t, err)
			got = append(got, c.Line())
		}
		if got[0] != "modify> stats.sq.1 (i64) = 3" || got[9] != "create> stats.sq.x (i64) = 1" {
			t.Errorf("%q", got)
		}
		s.extra = false
		if c, _, err := all.Next(t.Context()); err != nil || c.Line() != "delete> stats.sq.x (i64) = 1" {
			t.Errorf("%+v, %v", c, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := tr.Next(t.Context()); !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
		synctest.Wait()
		db.Close()
		wg.Wait()
	})
}

func TestClientsCannotFillTheDatabase(t *testing.T) {
	db := New()
	big := String(strings.Repeat("x", MaxValueBytes))
	var err error
	n := 0
	for ; err == nil && n < 2*MaxBytes/MaxValueBytes; n++ {
		err = db.Set(t.Context(), fmt.Sprintf("user.%d", n), big)
	}
	wantErr(t, err, ErrFull, fmt.Sprintf("it holds %d bytes and no more", MaxBytes))
	must(t, db.Put("runtime.x", big)) // the engine is never refused
	must(t, db.Delete(t.Context(), "user.0"))
	must(t, db.Delete(t.Context(), "user.1"))
	must(t, db.Set(t.Context(), "user.0", Int(1)))
}

func TestAWaitingBatchGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := New()
		release := make(chan struct{})
		must(t, db.Guard("slow.", Guard{Apply: func(context.Context, []Change) error { <-release; return nil }}))
		var wg sync.WaitGroup
		wg.Go(func() { must(t, db.Set(t.Context(), "slow.a", Int(1))) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantErr(t, db.Set(ctx, "user.a", Int(1)), context.DeadlineExceeded, "another batch is being applied")
		must(t, db.Put("user.a", Int(1))) // the engine and readers do not wait
		db.Dump("")
		close(release)
		wg.Wait()
	})
}

func FuzzParseBatch(f *testing.F) {
	f.Add("user.a u32 7\n^user.a\n^^user.\n# x\n\nuser.s str  \x00\r\nuser.b bin 00ff\nuser.d dbl NaN")
	f.Add("a\tb\tc\n^^\n^\nuser.x i8 -128\nuser.y u64 18446744073709551616")
	f.Fuzz(func(t *testing.T, text string) {
		ops, err := ParseBatch(text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") {
				t.Errorf("no line in %q", err)
			}
			return
		}
		db := New()
		if err := db.Apply(t.Context(), ops...); err != nil {
			if len(db.Dump("")) != 0 {
				t.Errorf("half applied: %v", err)
			}
			return
		}
		// What was set can be dumped, parsed and set again.
		again := New()
		for _, e := range db.Dump("") {
			v, err := ParseValue(string(e.Value.Type()), e.Value.Text())
			if err != nil || v != e.Value {
				t.Errorf("%s does not go round: %v", e.Line(), err)
			}
			if err := again.Set(t.Context(), e.Key, v); err != nil {
				t.Error(err)
			}
		}
	})
}

// BenchmarkPut is what a change costs the engine with nobody tracking.
func BenchmarkPut(b *testing.B) {
	db := New()
	n := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		if err := db.Put("devices.r0.peers.beta.out_of_sync", Int(n)); err != nil {
			b.Fatal(err)
		}
	}
}
