package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/service"
)

func (c *Control) serviceCommands() []rpc.Command {
	return []rpc.Command{
		{Name: "service/list", Doc: "list the parts of the daemon", Do: rpc.Typed(c.serviceList, servicesText)},
		{Name: "service/show", Usage: "SERVICE", MinArgs: 1, MaxArgs: 1, Doc: "show a part of the daemon and its figures", Do: rpc.Typed(c.serviceShow, nil)},
		{Name: "service/start", Usage: "SERVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: applying, Doc: "start a service that is stopped", Do: rpc.Typed(c.serviceDo("started", c.o.Services.Start), done)},
		{Name: "service/stop", Usage: "SERVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: applying, Doc: "stop a service that may be stopped while the rest runs", Do: rpc.Typed(c.serviceDo("stopped", c.o.Services.Stop), done)},
		{Name: "service/reload", Usage: "SERVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: applying, Doc: "let a service take its changed configuration", Do: rpc.Typed(c.serviceDo("reloaded", c.o.Services.Reload), done)},
		{Name: "service/restart", Usage: "SERVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: applying, Doc: "stop a service and start it again", Do: rpc.Typed(c.serviceDo("restarted", c.o.Services.Restart), done)},
	}
}

// ServiceDetail is the result of "service/show".
type ServiceDetail struct {
	api.Service
	NeededBy  []string       `json:"needed_by"`
	Stoppable bool           `json:"stoppable"`
	LastError string         `json:"last_error,omitempty"`
	Stats     map[string]any `json:"stats,omitempty"`
}

func serviceOf(i service.Info) api.Service {
	return api.Service{Name: i.Name, Version: i.Version, State: string(i.State), Since: i.Since, Health: i.Health,
		Restarts: i.Restarts, Needs: orEmpty(i.Needs)}
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (c *Control) serviceList(context.Context, rpc.Actor, none) ([]api.Service, error) {
	out := []api.Service{}
	for _, i := range c.o.Services.List() {
		out = append(out, serviceOf(i))
	}
	return out, nil
}

func (c *Control) serviceShow(_ context.Context, _ rpc.Actor, p api.ServiceParams) (ServiceDetail, error) {
	i, err := c.o.Services.Show(p.Service)
	if err != nil {
		return ServiceDetail{}, api.Errorf(api.CodeNotFound, "%s", err)
	}
	return ServiceDetail{serviceOf(i), orEmpty(i.NeededBy), i.Stoppable, i.LastError, i.Stats}, nil
}

func (c *Control) serviceDo(did string, do func(context.Context, string) error) func(context.Context, rpc.Actor, api.ServiceParams) (api.Done, error) {
	return func(ctx context.Context, _ rpc.Actor, p api.ServiceParams) (api.Done, error) {
		if _, err := c.o.Services.Show(p.Service); err != nil {
			return api.Done{}, api.Errorf(api.CodeNotFound, "%s", err)
		}
		if err := do(ctx, p.Service); err != nil {
			if _, ok := errors.AsType[*service.RefusedError](err); ok || errors.Is(err, service.ErrBusy) {
				return api.Done{}, api.Errorf(api.CodeInvalidState, "%s", err)
			}
			return api.Done{}, err
		}
		return text("%s %s", did, p.Service)
	}
}

func servicesText(list []api.Service) string {
	rows := [][]string{{"SERVICE", "VERSION", "STATE", "SINCE", "RESTARTS", "HEALTH", "NEEDS"}}
	for _, s := range list {
		rows = append(rows, []string{s.Name, fmt.Sprint(s.Version), s.State, since(s.Since), fmt.Sprint(s.Restarts), s.Health, strings.Join(s.Needs, " ")})
	}
	return table(rows...)
}
