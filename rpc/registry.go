package rpc

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lockstepd/lockstep/rpc/api"
)

// A Registry is the table of commands. Rows may come and go while it is in
// use: services bring theirs along. It always holds list-commands, help,
// version and set-options.
type Registry struct {
	mu sync.Mutex // held by writers, who replace rows as a whole

	// rows is never changed once stored, so that readers need no lock.
	rows atomic.Pointer[map[string]*Command]
}

// NewRegistry returns a registry of the built-in commands and cmds. A row
// without doc or handler, with a bad name or arity, or with a name that is
// taken is an error; all of them are reported at once.
func NewRegistry(cmds ...Command) (*Registry, error) {
	r := new(Registry)
	r.rows.Store(new(map[string]*Command))
	if _, err := r.Add(append(builtins(r), cmds...)...); err != nil {
		return nil, err
	}
	return r, nil
}

// Add adds rows, all or none of them. The function it returns removes them
// again; calls that are in progress then run to their end.
func (r *Registry) Add(cmds ...Command) (remove func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := maps.Clone(*r.rows.Load())
	if rows == nil {
		rows = make(map[string]*Command)
	}
	var faults []error
	added := make([]*Command, 0, len(cmds))
	for _, c := range cmds {
		if err := c.validate(); err != nil {
			faults = append(faults, err)
		}
		if rows[c.Name] != nil {
			faults = append(faults, fmt.Errorf("command %q: the name is taken", c.Name))
		}
		row := &c
		rows[c.Name] = row
		added = append(added, row)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	r.rows.Store(&rows)
	return sync.OnceFunc(func() { r.remove(added) }), nil
}

func (r *Registry) remove(added []*Command) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := maps.Clone(*r.rows.Load())
	for _, c := range added {
		if rows[c.Name] == c {
			delete(rows, c.Name)
		}
	}
	r.rows.Store(&rows)
}

// lookup returns the command called name. The words of its error are Open
// vSwitch's.
func (r *Registry) lookup(name string) (*Command, error) {
	if c := (*r.rows.Load())[name]; c != nil {
		return c, nil
	}
	return nil, api.Errorf(api.CodeMethodNotFound,
		"%q is not a valid command (use \"list-commands\" to see a list of valid commands)", name)
}

// Commands returns the rows that are not hidden, sorted by name.
func (r *Registry) Commands() []Command {
	rows := *r.rows.Load()
	list := make([]Command, 0, len(rows))
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		if !rows[name].Hidden {
			list = append(list, *rows[name])
		}
	}
	return list
}

// Describe returns the visible commands as "help" answers them.
func (r *Registry) Describe() []api.Command {
	var list []api.Command
	for _, c := range r.Commands() {
		list = append(list, c.describe())
	}
	return list
}
