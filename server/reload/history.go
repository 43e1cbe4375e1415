package reload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/server/config"
)

// HistoryFile keeps the last revisions over restarts of the daemon, usually in
// the state dir, so that a rollback reaches behind one. "" keeps none.
type HistoryFile string

// maxHistory bounds the file: of larger configurations fewer revisions are kept.
const maxHistory = 16 << 20

// kept is a revision in the file.
type kept struct {
	Number  uint64           `json:"number"`
	Time    time.Time        `json:"time"`
	Who     string           `json:"who"`
	Changes []config.Change  `json:"changes"`
	Text    []byte           `json:"text"` // of the configuration file
	Overlay []config.Setting `json:"overlay,omitempty"`
}

// load reads the revisions, the newest last; none where there is no file. What
// they had in effect is not among what is read.
func (f HistoryFile) load() ([]Revision, error) {
	if f == "" {
		return nil, nil
	}
	st, err := os.Stat(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && (!st.Mode().IsRegular() || st.Size() > 2*maxHistory) {
		err = errors.New("it is no regular file, or too large")
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(string(f))
	}
	var list []kept
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	var out []Revision
	for i, k := range list {
		if k.Number == 0 || i > 0 && k.Number <= list[i-1].Number {
			err = errors.New("the revisions are out of order")
			break
		}
		out = append(out, Revision{Number: k.Number, Time: k.Time, Who: k.Who, Changes: k.Changes, data: k.Text, overlay: k.Overlay})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the history in %s: %w", string(f), err)
	}
	return out[max(0, len(out)-HistorySize):], nil
}

// save writes the revisions.
func (f HistoryFile) save(list []Revision) error {
	if f == "" {
		return nil
	}
	var out []kept
	size := 0
	for _, r := range slices.Backward(list) {
		if size += len(r.data); size > maxHistory && len(out) > 0 {
			break
		}
		out = append(out, kept{r.Number, r.Time, r.Who, r.Changes, r.data, r.overlay})
	}
	slices.Reverse(out)
	data, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("cannot encode the history: %w", err)
	}
	s, err := stage(string(f), append(data, '\n'))
	if err != nil {
		return err
	}
	return s.commit()
}

// begin makes what the daemon starts with a revision: the last one again where
// nothing has changed since, or the one after it. Nothing is written yet: the
// daemon may find that another one runs.
func (e *Engine) begin(rev Revision) {
	past, err := e.opts.History.load()
	if err != nil {
		e.opts.Logger.Warn("earlier configurations are forgotten", "err", err)
	}
	if len(past) > 0 {
		last := &past[len(past)-1]
		if changes, ok := e.since(last, rev.held); ok && len(changes) == 0 {
			last.data, last.overlay, last.base, last.held = rev.data, rev.overlay, rev.base, rev.held
			e.now, e.history = *last, past
			return
		} else if ok {
			rev.Changes = changes
		}
		rev.Number = last.Number + 1
	}
	e.now, e.history = rev, append(past, rev)
	e.history = e.history[max(0, len(e.history)-HistorySize):]
}

// since is what has changed since a revision that an earlier daemon had, if
// that can still be read.
func (e *Engine) since(r *Revision, now *config.Config) ([]config.Change, bool) {
	was, err := config.Decode(e.opts.Path, r.data, e.opts.Env)
	if err == nil && len(r.overlay) > 0 {
		was, err = was.With(e.opts.Env, r.overlay...)
	}
	if err != nil {
		return nil, false
	}
	return config.Diff(was, now), true
}

// keepHistory writes the history. Its caller changes it: it has the engine for
// itself.
func (e *Engine) keepHistory() {
	if err := e.opts.History.save(e.history); err != nil {
		e.opts.Logger.Warn("a rollback will not reach behind a restart", "err", err)
	}
}
