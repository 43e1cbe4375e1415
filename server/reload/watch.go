package reload

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// The times of a Watcher.
const (
	quiet = 300 * time.Millisecond // the default of Watcher.Quiet
	// patience bounds the waiting for quiet.
	patience = 2 * time.Second
	// writerPatience bounds the waiting for a program that has a file open for
	// writing: half a file can be valid, and mean that devices are gone.
	writerPatience = 30 * time.Second
	// pollEvery is how often the files are looked at besides: where a folder
	// was removed, where notifications are lost, or are not to be had.
	pollEvery = 2 * time.Second
)

// Watcher calls Changed at the start and, with a pause after the last of many notifications,
// when files may have changed: written, replaced, touched, gone or back, or
// the links on the way to them led elsewhere. Whether they did change is for
// Changed to find out.
type Watcher struct {
	// Paths are the files; it is called anew after each change.
	Paths   func() []string
	Changed func(ctx context.Context)
	Logger  *slog.Logger
	// Quiet is how long nothing has to happen before a change counts; 0 is
	// longer than an editor takes to write, rename and touch.
	Quiet time.Duration

	written func(path string) bool // stands in for beingWritten in tests
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.Logger.Warn("changes of the configuration file are found by looking only", "err", err)
		w.loop(ctx, nil, nil, func([]string) {})
		return nil
	}
	defer notify.Close()
	names := make(chan string)
	done := make(chan struct{})
	go func() {
		defer close(done)
		forward(ctx, notify, names)
	}()
	defer func() { <-done }()
	w.loop(ctx, names, notify.Errors, func(folders []string) { w.follow(notify, folders) })
	return nil
}

// forward passes on the names of what changed.
func forward(ctx context.Context, notify *fsnotify.Watcher, names chan<- string) {
	for {
		select {
		case ev, ok := <-notify.Events:
			if !ok {
				return
			}
			select {
			case names <- ev.Name:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// follow makes the watched folders these.
func (w *Watcher) follow(notify *fsnotify.Watcher, folders []string) {
	for _, have := range notify.WatchList() {
		if !slices.Contains(folders, have) {
			_ = notify.Remove(have) // it may be gone already
		}
	}
	for _, f := range folders {
		if err := notify.Add(f); err != nil {
			w.Logger.Debug("a folder of the configuration cannot be watched", "folder", f, "err", err)
		}
	}
}

// loop waits for quiet after notifications and calls Changed.
func (w *Watcher) loop(ctx context.Context, names <-chan string, errs <-chan error, follow func(folders []string)) {
	watched := w.look(follow)
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	settle := time.NewTimer(time.Hour)
	settle.Stop()
	pause := w.Quiet
	if pause <= 0 {
		pause = quiet
	}
	var since time.Time // of the first notification that was not dealt with
	var began time.Time // when somebody was found writing
	arm := func() {
		now := time.Now()
		if since.IsZero() {
			since = now
		}
		settle.Reset(min(pause, max(0, since.Add(patience).Sub(now))))
	}
	arm() // for what changed before we watched
	for {
		select {
		case name := <-names:
			if watched.concerns(name) {
				arm()
			}
		case err := <-errs:
			w.Logger.Warn("notifications of the configuration file were lost; looking instead", "err", err)
			arm()
		case <-poll.C:
			if since.IsZero() && w.state() != watched.state {
				arm()
			}
		case <-settle.C:
			if w.unfinished() {
				if began.IsZero() {
					began = time.Now()
				}
				if time.Since(began) < writerPatience {
					settle.Reset(pause)
					continue
				}
				w.Logger.Warn("the configuration is read though a program has it open for writing", "for", writerPatience)
			}
			since, began = time.Time{}, time.Time{}
			watched = w.look(follow)
			w.Changed(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// unfinished reports whether a program is writing one of the files.
func (w *Watcher) unfinished() bool {
	written := w.written
	if written == nil {
		written = beingWritten
	}
	return slices.ContainsFunc(w.Paths(), written)
}

// watched is what a Watcher looks at: the names on the way to the files, and
// how they were.
type watched struct {
	names []string
	state string
}

func (x watched) concerns(name string) bool { return slices.Contains(x.names, filepath.Clean(name)) }

// look finds the names on the way to the files and watches their folders.
func (w *Watcher) look(follow func([]string)) watched {
	x := watched{state: w.state()}
	var folders []string
	for _, p := range w.Paths() {
		for _, name := range way(p) {
			x.names = append(x.names, name)
			folders = append(folders, filepath.Dir(name))
		}
	}
	slices.Sort(folders)
	follow(slices.Compact(folders))
	return x
}

// state is how the files are, as far as that shows without reading them.
func (w *Watcher) state() string {
	var b strings.Builder
	for _, p := range w.Paths() {
		st, err := os.Stat(p)
		if err != nil {
			fmt.Fprintln(&b, p, "is not there")
			continue
		}
		fmt.Fprintln(&b, p, st.Size(), st.ModTime().UnixNano(), inode(st))
	}
	return b.String()
}

// maxLinks bounds the links that are followed, as the kernel does.
const maxLinks = 40

// way lists every name whose change can change what path leads to: the path
// itself, and each symbolic link on the way, also of folders.
func way(path string) []string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return []string{filepath.Clean(path)}
	}
	var names []string
	at, todo := "/", strings.Split(abs, "/")
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		next := filepath.Join(at, part)
		target, err := os.Readlink(next)
		if err != nil || links == maxLinks {
			at = next
			continue
		}
		links++
		names = append(names, next)
		if filepath.IsAbs(target) {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return append(names, at)
}
