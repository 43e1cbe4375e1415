package ctl

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

const argService = "a service's name, as service list shows it"

func (a *app) serviceCommands() *cobra.Command {
	return a.group("service", "look at and command the daemon's services",
		a.command(verb{
			use: "list", short: "list the services",
			long: "Lists the services that make up the daemon: state, health, restarts, what each needs.",
			do:   "list the services", example: "lockstepctl service list",
			run: a.ask("service/list", nil, as(render.Services)),
		}),
		a.command(verb{
			use: "show SERVICE", short: "show a service and its figures",
			long: "Shows a service in full, with the figures that it keeps.",
			args: []string{"SERVICE", argService},
			do:   "show service %s", example: "lockstepctl service show metrics", complete: completeServices,
			run: a.ask("service/show", serviceParams, showService),
		}),
		a.serviceVerb("start", "start a service that is stopped"),
		a.serviceVerb("stop", "stop a service that may be stopped while running"),
		a.serviceVerb("reload", "let a service take its changed configuration"),
		a.serviceVerb("restart", "stop a service and start it again"),
	)
}

func (a *app) serviceVerb(name, short string) *cobra.Command {
	long, example := "Refused, with the reason, where other services need it.", "metrics"
	if name == "reload" {
		long, example = "The service goes on running. Refused where it has nothing to reload.", "config"
	}
	return a.command(verb{
		use: name + " SERVICE", short: short,
		long: long,
		args: []string{"SERVICE", argService},
		do:   name + " service %s", example: "lockstepctl service " + name + " " + example, complete: completeServices,
		run: a.act("service/"+name, serviceParams),
	})
}

// showService shows the fields that every service has and, below, its own.
func showService(o render.Options, raw json.RawMessage) (string, error) {
	head, err := as(render.Service)(o, raw)
	var fields map[string]json.RawMessage
	if err != nil || json.Unmarshal(raw, &fields) != nil {
		return head, err
	}
	common, err := json.Marshal(api.Service{})
	if err != nil {
		return "", err
	}
	var known map[string]json.RawMessage
	if err := json.Unmarshal(common, &known); err != nil {
		return "", err
	}
	for k := range known {
		delete(fields, k)
	}
	own, err := json.Marshal(fields)
	if err != nil || len(fields) == 0 {
		return head, err
	}
	return head + "\n" + render.Answer(o, own), nil
}
