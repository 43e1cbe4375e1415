package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/reload"
)

// applying is how long a change of the configuration may take: devices may
// have to close and open.
const applying = 2 * time.Minute

func (c *Control) configCommands() []rpc.Command {
	return []rpc.Command{
		{Name: "config/show", Doc: "show the configuration that holds, with what was set by command", Do: rpc.Typed(c.configShow, configText)},
		{Name: "config/check", Usage: "[FILE]", MaxArgs: 1, Access: rpc.Admin, Doc: "say what is wrong with a configuration file", Do: rpc.Typed(c.configCheck, done)},
		{Name: "config/diff", Usage: "[FILE]", MaxArgs: 1, Access: rpc.Admin, Doc: "show what a configuration file would change, and how", Do: rpc.Typed(c.configDiff, changesText)},
		{Name: "config/reload", Usage: "[PARTIAL]", MaxArgs: 1, Access: rpc.Admin, Deadline: applying, Doc: "apply the configuration file, as a whole or not at all", Do: rpc.Typed(c.configReload, done)},
		{Name: "config/save", Access: rpc.Admin, Doc: "write what was set by command into the configuration file", Do: rpc.Typed(c.configSave, done)},
		{Name: "config/rollback", Usage: "REVISION", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: applying, Doc: "make an earlier configuration hold again", Do: rpc.Typed(c.configRollback, done)},
		{Name: "config/history", Doc: "show the last configurations: when, who, what", Do: rpc.Typed(c.configHistory, historyText)},
	}
}

// ConfigKey is one key of "config/show".
type ConfigKey struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Set     bool   `json:"set"`               // the file gives it
	Runtime bool   `json:"runtime,omitempty"` // a command set it
	File    string `json:"file,omitempty"`    // what the file says then
}

// ConfigShow is the result of "config/show".
type ConfigShow struct {
	Revision uint64             `json:"revision"`
	Since    time.Time          `json:"since"`
	Error    string             `json:"error,omitempty"`   // why the file as it is now does not hold
	Pending  []api.ConfigChange `json:"pending,omitempty"` // wait for a restart
	Keys     []ConfigKey        `json:"keys"`
}

func (c *Control) configShow(context.Context, rpc.Actor, none) (ConfigShow, error) {
	st := c.o.Reload.Status()
	out := ConfigShow{Revision: st.Revision, Since: st.Since, Pending: changesOf(st.Pending)}
	if st.Err != nil {
		out.Error = st.Err.Error()
	}
	for _, k := range c.o.Reload.Show() {
		row := ConfigKey{Key: k.Path, Value: k.Value, Set: k.Set, Runtime: k.Runtime}
		if k.Runtime {
			row.File = k.File
		}
		out.Keys = append(out.Keys, row)
	}
	return out, nil
}

func configText(s ConfigShow) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# revision %d since %s\n", s.Revision, since(s.Since))
	if s.Error != "" {
		fmt.Fprintf(&b, "# the file as it is now is not applied:\n#   %s\n", strings.ReplaceAll(s.Error, "\n", "\n#   "))
	}
	for _, p := range s.Pending {
		fmt.Fprintf(&b, "# waits for a restart: %s = %s\n", p.Key, p.New)
	}
	for _, k := range s.Keys {
		fmt.Fprintf(&b, "%s = %s", k.Key, k.Value)
		if k.Runtime {
			fmt.Fprintf(&b, " (file: %s)", k.File)
		}
		b.WriteByte('\n')
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func changesOf(list []config.Change) []api.ConfigChange {
	out := make([]api.ConfigChange, len(list))
	for i, c := range list {
		out[i] = api.ConfigChange{Key: c.Key, Old: c.Old, New: c.New, How: string(c.How), Why: c.Why, Where: c.Where()}
	}
	return out
}

func changesText(list []api.ConfigChange) string {
	if len(list) == 0 {
		return "no differences"
	}
	rows := [][]string{{"KEY", "OLD", "NEW", "APPLIES", "WHERE", "WHY"}}
	for _, c := range list {
		rows = append(rows, []string{c.Key, orDash(c.Old), orDash(c.New), c.How, c.Where, c.Why})
	}
	return table(rows...)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (c *Control) configCheck(_ context.Context, _ rpc.Actor, p api.ConfigFileParams) (api.Done, error) {
	if err := c.o.Reload.Check(p.File); err != nil {
		return api.Done{}, configError(err)
	}
	if p.File == "" {
		return text("the configuration file is valid")
	}
	return text("%s is valid", p.File)
}

func (c *Control) configDiff(ctx context.Context, _ rpc.Actor, p api.ConfigFileParams) ([]api.ConfigChange, error) {
	list, err := c.o.Reload.Diff(ctx, p.File)
	return changesOf(list), configError(err)
}

func (c *Control) configReload(ctx context.Context, by rpc.Actor, p api.ConfigReloadParams) (api.Done, error) {
	before := c.o.Reload.Status().Revision
	rev, err := c.o.Reload.Reload(ctx, reload.Request{Who: by.String(), Partial: p.Partial})
	switch {
	case err != nil:
		return api.Done{}, configError(err)
	case rev.Number == before:
		return text("nothing has changed; revision %d holds", rev.Number)
	case len(rev.Pending) > 0:
		return text("revision %d holds; %d changes wait for a restart of the daemon", rev.Number, len(rev.Pending))
	}
	return text("revision %d holds: %d changes", rev.Number, len(rev.Changes))
}

func (c *Control) configSave(ctx context.Context, by rpc.Actor, _ none) (api.Done, error) {
	n := len(c.o.Reload.Status().Overlay)
	if err := c.o.Reload.Save(ctx, reload.Request{Who: by.String()}); err != nil {
		return api.Done{}, configError(err)
	}
	if n == 0 {
		return text("nothing was set by command")
	}
	return text("saved %d settings", n)
}

func (c *Control) configRollback(ctx context.Context, by rpc.Actor, p api.ConfigRollbackParams) (api.Done, error) {
	rev, err := c.o.Reload.Rollback(ctx, reload.Request{Who: by.String()}, p.Revision)
	if err != nil {
		return api.Done{}, configError(err)
	}
	return text("revision %d holds, which is revision %d again", rev.Number, p.Revision)
}

// ConfigRevision is one row of "config/history".
type ConfigRevision struct {
	Revision uint64             `json:"revision"`
	Time     time.Time          `json:"time"`
	Who      string             `json:"who"`
	Changes  []api.ConfigChange `json:"changes"`
}

func (c *Control) configHistory(context.Context, rpc.Actor, none) ([]ConfigRevision, error) {
	out := []ConfigRevision{}
	for _, r := range c.o.Reload.History() {
		out = append(out, ConfigRevision{r.Number, r.Time, r.Who, changesOf(r.Changes)})
	}
	return out, nil
}

func historyText(list []ConfigRevision) string {
	rows := [][]string{{"REVISION", "TIME", "WHO", "CHANGES"}}
	for _, r := range list {
		rows = append(rows, []string{fmt.Sprint(r.Revision), since(r.Time), r.Who, fmt.Sprint(len(r.Changes))})
		for _, c := range r.Changes {
			rows = append(rows, []string{"", "", "", c.Key + ": " + orDash(c.Old) + " → " + orDash(c.New)})
		}
	}
	return table(rows...)
}

// configError is an error of the configuration with a code for scripts.
func configError(err error) error {
	if err == nil {
		return nil
	}
	if faults, ok := errors.AsType[config.Faults](err); ok {
		lines := make([]string, len(faults))
		for i, f := range faults {
			lines[i] = f.String()
		}
		return api.Errorf(api.CodeBadConfig, "%s", err).WithData(lines)
	}
	if r, ok := errors.AsType[*reload.RefusedError](err); ok {
		return api.Errorf(api.CodeInvalidState, "%s", err).WithData(changesOf(r.Changes))
	}
	return api.Errorf(api.CodeFailed, "%s", err)
}
