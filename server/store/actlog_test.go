package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// extentNo is the n-th extent of the activity log of testOptions.
func extentNo(n int64) block.Extent { return ext(n*64*kib, 64*kib) }

func activate(t testing.TB, l *store.ActivityLog, ns ...int64) {
	t.Helper()
	var es []block.Extent
	for _, n := range ns {
		es = append(es, extentNo(n))
	}
	must(t, l.Activate(t.Context(), es))
}

func hotNumbers(l *store.ActivityLog) []int64 {
	var out []int64
	for _, e := range l.Hot() {
		out = append(out, e.Off/(64*kib))
	}
	return out
}

func TestWarmWriteCostsNoIO(t *testing.T) {
	m, im := newMeta(t, testOptions())
	activate(t, m.AL(), 0, 1)
	im.KeepLog()
	for range 100 {
		e := ext(60*kib, 8*kib) // in both
		if !m.AL().TryBegin(e) {
			t.Fatal("not hot")
		}
		m.AL().End(e, 0)
	}
	if log := im.Log(); len(log) > 0 {
		t.Errorf("it did %v", log)
	}
	e := ext(60*kib, 8*kib)
	if n := testing.AllocsPerRun(100, func() { m.AL().TryBegin(e); m.AL().End(e, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLongestIdleIsEvictedAndNothingInUse(t *testing.T) {
	m, _ := newMeta(t, testOptions())
	l := m.AL()
	for n := range int64(8) {
		activate(t, l, n)
	}
	l.SetStable(5)
	l.End(extentNo(2), 5)
	l.End(extentNo(1), 6) // not stable
	l.End(extentNo(3), 5)
	if !l.TryBegin(extentNo(2)) { // in use again
		t.Fatal("not hot")
	}
	activate(t, l, 20)
	if got, want := hotNumbers(l), []int64{0, 1, 2, 4, 5, 6, 7, 20}; !slices.Equal(got, want) {
		t.Errorf("hot: %v, want %v", got, want)
	}
	l.End(extentNo(2), 0)
	l.End(extentNo(4), 0)
	activate(t, l, 21)
	if got, want := hotNumbers(l), []int64{0, 1, 4, 5, 6, 7, 20, 21}; !slices.Equal(got, want) {
		t.Errorf("hot: %v, want %v", got, want)
	}
	st := l.Stats()
	if st.Hot != 8 || st.Unstable != 1 || st.Referenced != 6 || st.Evictions != 2 || st.HotBytes != 512*kib {
		t.Errorf("stats %+v", st)
	}
}

func TestFullLogPressesTheOwnerAndServesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := testOptions()
		pressed := make(chan uint64, 10)
		opts.Pressure = func(epoch uint64) { pressed <- epoch }
		m, _ := newMeta(t, opts)
		l := m.AL()
		for n := range int64(8) {
			activate(t, l, n)
			l.End(extentNo(n), 7)
		}
		var order []int64
		var mu sync.Mutex
		var wg sync.WaitGroup
		start := func(n int64) {
			wg.Go(func() {
				activate(t, l, n)
				mu.Lock()
				defer mu.Unlock()
				order = append(order, n)
			})
			synctest.Wait()
		}
		start(20)
		if epoch := <-pressed; epoch != 7 {
			t.Errorf("pressed for epoch %d", epoch)
		}
		if l.TryBegin(extentNo(0)) {
			t.Error("a newcomer passed those who wait")
		}
		start(0) // hot, but behind the other
		if len(order) > 0 {
			t.Errorf("served: %v", order)
		}
		l.SetStable(6)
		synctest.Wait()
		if len(order) > 0 {
			t.Errorf("served before its time: %v", order)
		}
		l.SetStable(7)
		wg.Wait()
		if !l.TryBegin(extentNo(0)) {
			t.Error("held back for ever")
		}
		if st := l.Stats(); st.Starved != 1 {
			t.Errorf("stats %+v", st)
		}
	})
}

func TestBusyHotSetDoesNotStarveNewcomers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newMeta(t, testOptions())
		l := m.AL()
		activate(t, l, 0, 1, 2, 3, 4, 5, 6, 7)
		done := make(chan bool)
		go func() {
			activate(t, l, 30)
			close(done)
		}()
		synctest.Wait()
		// Each extent is given back only when the next write in it has begun,
		// if it may begin.
		waiting := 0
		for n := range int64(8) {
			if !l.TryBegin(extentNo(n)) {
				waiting++
			}
			l.End(extentNo(n), 0)
			synctest.Wait()
		}
		<-done
		if waiting == 0 {
			t.Error("nobody was held back")
		}
	})
}

func TestOneTransactionServesAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, im := newMeta(t, testOptions())
		l := m.AL()
		activate(t, l, 0)
		slow := im.Inject(storetest.Fault{Ops: storetest.OpSync, Hang: true})
		var wg sync.WaitGroup
		for n := range int64(5) {
			wg.Go(func() { activate(t, l, n, n+1) })
			synctest.Wait()
		}
		slow.Await(1)
		slow.Release()
		wg.Wait()
		if n := l.Stats().Transactions; n != 3 { // the first, the one that hung, the rest
			t.Errorf("%d transactions", n)
		}
		if got, want := hotNumbers(l), []int64{0, 1, 2, 3, 4, 5}; !slices.Equal(got, want) {
			t.Errorf("hot: %v", got)
		}
	})
}

func TestGivingUpWaitingTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newMeta(t, testOptions())
		l := m.AL()
		activate(t, l, 0, 1, 2, 3, 4, 5, 6, 7)
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		errs := make(chan error, 3)
		start := func(ctx context.Context, n int64) {
			go func() { errs <- l.Activate(ctx, []block.Extent{extentNo(n)}) }()
			synctest.Wait()
		}
		start(ctx, 20)         // has the turn, and waits for a slot
		start(ctx, 21)         // waits for the turn
		start(t.Context(), 22) // stays
		cancel(gone)
		for range 2 {
			if err := <-errs; !errors.Is(err, gone) {
				t.Errorf("got %v", err)
			}
		}
		l.End(extentNo(0), 0)
		must(t, <-errs)
		if got, want := hotNumbers(l), []int64{1, 2, 3, 4, 5, 6, 7, 22}; !slices.Equal(got, want) {
			t.Errorf("hot: %v, want %v", got, want)
		}
	})
}

func TestEvictionSavesBitsFirst(t *testing.T) {
	m, im := newMeta(t, testOptions())
	l := m.AL()
	for n := range int64(8) {
		activate(t, l, n)
		l.End(extentNo(n), 0)
	}
	m.Bitmap(1).Set(extentNo(0))
	im.KeepLog()
	activate(t, l, 9)
	activate(t, l, 10) // evicts an extent without bits to save
	want := []string{
		"write 1310720+4096", // the bitmap's page
		"sync 0+0",
		"write 16384+4096", // the log's ninth block, in a ring of three
		"sync 0+0",
		"write 20480+4096",
		"sync 0+0",
	}
	var got []string
	for _, r := range im.Log() {
		got = append(got, fmt.Sprintf("%v %d+%d", r.Op, r.Off, r.Len))
	}
	if !slices.Equal(got, want) {
		t.Errorf("did %q, want %q", got, want)
	}
}

func TestFailedTransactions(t *testing.T) {
	const ringEnd = mib
	tests := []struct {
		name  string
		fault storetest.Fault
		dirty bool // the evicted extent has bits to save
		hot   []int64
		heals bool
	}{
		{"bitmap page: as if nothing had been tried",
			storetest.Fault{Ops: storetest.OpWrite, Range: ext(ringEnd, gib), Err: syscall.ENOSPC, Count: 1}, true,
			[]int64{0, 1, 2, 3, 4, 5, 6, 7}, true},
		{"log block: nothing becomes hot any more",
			storetest.Fault{Ops: storetest.OpWrite, Range: ext(16*kib, ringEnd-16*kib), Err: syscall.EIO, Count: 1, Done: 2048}, false,
			[]int64{1, 2, 3, 4, 5, 6, 7}, false},
		{"sync: nothing becomes hot any more",
			storetest.Fault{Ops: storetest.OpSync, Err: syscall.EIO, Count: 1}, false,
			[]int64{1, 2, 3, 4, 5, 6, 7}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, im := newMeta(t, testOptions())
			l := m.AL()
			for n := range int64(8) {
				activate(t, l, n)
				l.End(extentNo(n), 0)
			}
			if tt.dirty {
				m.Bitmap(1).Set(extentNo(0))
			}
			im.Inject(tt.fault)
			err := l.Activate(t.Context(), []block.Extent{extentNo(20), extentNo(3)})
			if !errors.Is(err, tt.fault.Err) {
				t.Fatalf("got %v", err)
			}
			if got := hotNumbers(l); !slices.Equal(got, tt.hot) {
				t.Errorf("hot: %v, want %v", got, tt.hot)
			}
			if n := l.Stats().Referenced; n != 0 {
				t.Errorf("%d references are left", n)
			}
			err = l.Activate(t.Context(), []block.Extent{extentNo(20)})
			if (err == nil) != tt.heals {
				t.Errorf("afterwards: %v", err)
			}
			left := im.CrashClone(storetest.Crash{})
			m = openMeta(t, left, testOptions())
			if _, err := m.Recover(); err != nil {
				t.Fatal(err)
			}
			for _, n := range tt.hot {
				if !tt.heals && !m.Bitmap(1).Test(extentNo(n)) {
					t.Errorf("extent %d was hot in memory only", n)
				}
			}
		})
	}
}

func TestCoolLeavesWhatIsInUse(t *testing.T) {
	m, im := newMeta(t, testOptions())
	l := m.AL()
	activate(t, l, 0, 1, 2, 3)
	l.End(extentNo(0), 0)
	l.End(extentNo(1), 3)
	l.End(extentNo(2), 0)
	must(t, l.Cool(t.Context()))
	if got, want := hotNumbers(l), []int64{1, 3}; !slices.Equal(got, want) {
		t.Errorf("hot: %v, want %v", got, want)
	}
	r, err := openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), testOptions()).Recover()
	must(t, err)
	if r.Extents != 2 || r.Full {
		t.Errorf("recovered %+v", r)
	}
	activate(t, l, 10, 11, 12, 13, 14, 15) // all slots are there again
	l.SetStable(3)
	activate(t, l, 16)
}

func TestDisabledLogCoversNothingAndSaysSo(t *testing.T) {
	m, im := newMeta(t, testOptions())
	l := m.AL()
	activate(t, l, 0)
	if err := l.Disable(); err == nil {
		t.Fatal("switched off under a write")
	}
	l.End(extentNo(0), 0)
	must(t, l.Disable())
	if !l.TryBegin(extentNo(50)) {
		t.Error("a write was held up")
	}
	activate(t, l, 51)
	l.End(extentNo(50), 0)
	r, err := openMeta(t, im.CrashClone(storetest.Crash{}), testOptions()).Recover()
	must(t, err)
	if !r.Full {
		t.Errorf("recovered %+v", r)
	}
	must(t, l.Enable())
	if l.TryBegin(extentNo(50)) {
		t.Error("a cold extent was begun")
	}
	must(t, m.Close())
	if openMeta(t, im, testOptions()).Unclean() {
		t.Error("unclean after Close")
	}
}

func TestTooManyExtentsAreRefusedAtOnce(t *testing.T) {
	m, _ := newMeta(t, testOptions())
	l := m.AL()
	if err := l.Activate(t.Context(), []block.Extent{ext(1, 8*64*kib)}); !errors.Is(err, store.ErrTooManyExtents) {
		t.Errorf("got %v", err)
	}
	must(t, l.Activate(t.Context(), []block.Extent{ext(1, l.MaxSpan())}))
	l.End(ext(1, l.MaxSpan()), 0)
	if st := l.Stats(); st.Referenced != 0 || st.Hot != 8 {
		t.Errorf("stats %+v", st)
	}
}

func TestManyExtentsInOneTransaction(t *testing.T) {
	opts := testOptions()
	opts.Extents = 1500 // more than a block's window, and than the device has
	m, im := newMeta(t, opts)
	for n := int64(0); n < 1000; n += 250 {
		must(t, m.AL().Activate(t.Context(), []block.Extent{ext(n*64*kib, 250*64*kib)}))
	}
	r, err := openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), opts).Recover()
	must(t, err)
	if r.Extents != 1000 || r.Full {
		t.Errorf("recovered %+v", r)
	}
}

// TestLogKeepsItsStoryOverManyTransactions goes around the ring often, with
// transactions of one block and of many, and crashes after each.
func TestLogKeepsItsStoryOverManyTransactions(t *testing.T) {
	opts := testOptions()
	opts.Size, opts.Extents = gib, 2000
	m, im := newMeta(t, opts)
	l := m.AL()
	for i := range int64(200) {
		e := ext((i*7919%16000)*64*kib, (1+i*37%300)*64*kib)
		must(t, l.Activate(t.Context(), []block.Extent{e}))
		l.End(e, 0)
		if i%10 != 0 {
			continue
		}
		m2 := openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), opts)
		r, err := m2.Recover()
		must(t, err)
		if r.Full || r.Extents != len(l.Hot()) {
			t.Fatalf("transaction %d: recovered %+v, hot are %d", i, r, len(l.Hot()))
		}
		for _, e := range l.Hot() {
			if !m2.Bitmap(1).Test(e) {
				t.Fatalf("transaction %d: %v is forgotten", i, e)
			}
		}
	}
}

func TestLogUnderConcurrency(t *testing.T) {
	opts := testOptions()
	var l *store.ActivityLog
	opts.Pressure = func(epoch uint64) { l.SetStable(epoch) }
	m, _ := newMeta(t, opts)
	l = m.AL()
	var wg sync.WaitGroup
	for w := range int64(8) {
		wg.Go(func() {
			for i := range int64(300) {
				e := ext((w*31+i*17)%500*64*kib+4*kib, 64*kib)
				if !l.TryBegin(e) {
					must(t, l.Activate(t.Context(), []block.Extent{e}))
				}
				if i%5 == 0 {
					m.Bitmap(int(1 + w%2)).Set(e)
				}
				l.End(e, uint64(i))
			}
		})
	}
	wg.Wait()
	must(t, m.Close())
	if st := l.Stats(); st.Referenced != 0 || st.Hot > 8 {
		t.Errorf("stats %+v", st)
	}
}

func BenchmarkLogWarm(b *testing.B) {
	opts := optionsOf(1 << 40)
	opts.Extents = 0
	m, _ := newMeta(b, opts)
	l := m.AL()
	for n := range int64(1000) {
		e := ext(n*64*mib, 1)
		must(b, l.Activate(b.Context(), []block.Extent{e}))
		l.End(e, 0)
	}
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		e := ext(i*7919%1000*64*mib+8*kib, 4*kib)
		if !l.TryBegin(e) {
			b.Fatal("not hot")
		}
		l.End(e, uint64(i))
	}
}

func BenchmarkLogCold(b *testing.B) {
	opts := optionsOf(1 << 40)
	opts.Extents = 0
	m, im := newMeta(b, opts)
	_ = im
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		e := ext(i*7919%16000*64*mib, 4*kib)
		must(b, m.AL().Activate(b.Context(), []block.Extent{e}))
		m.AL().End(e, 0)
	}
}
