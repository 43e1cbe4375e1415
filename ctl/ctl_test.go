package ctl

import (
	"testing"
)

// TestWhatEachCommandSends holds fast which request each command line makes.
func TestWhatEachCommandSends(t *testing.T) {
	for _, c := range []struct{ line, request string }{
		{"status", `status {}`},
		{"status r0", `status {"device":"r0"}`},
		{"node list", `node/list null`},
		{"node show beta", `node/show {"node":"beta"}`},
		{"node why beta", `node/why {"node":"beta"}`},
		{"node connect", `node/connect {}`},
		{"node connect beta", `node/connect {"node":"beta"}`},
		{"node disconnect beta", `node/disconnect {"node":"beta"}`},
		{"node disconnect --persist beta", `node/disconnect {"node":"beta","persist":true}`},
		{"node reconnect beta", `node/reconnect {"node":"beta"}`},
		{"tick get", `tick/get null`},
		{"tick set 20", `tick/set {"seconds":20}`},
		{"tick set 0.5s 60", `tick/set {"seconds":0.5,"transition":60}`},
		{"tick set 20 --local", `tick/set {"seconds":20,"local":true}`},
		{"device list", `device/list null`},
		{"device show r0", `device/show {"device":"r0"}`},
		{"device why r0", `device/why {"device":"r0"}`},
		{"device create r0", `device/create {"device":"r0"}`},
		{"device create r0 --from-existing", `device/create {"device":"r0","from_existing":true}`},
		{"device promote r0", `device/promote {"device":"r0"}`},
		{"device promote --force --yes r0", `device/promote {"device":"r0","force":true}`},
		{"device demote r0", `device/demote {"device":"r0"}`},
		{"device attach r0", `device/attach {"device":"r0"}`},
		{"device detach r0", `device/detach {"device":"r0"}`},
		{"device verify r0 --no-wait", `device/verify {"device":"r0"}`},
		{"device verify r0 --no-wait --node beta", `device/verify {"device":"r0","node":"beta"}`},
		{"device resync r0 --no-wait", `device/resync {"device":"r0"}`},
		{"device invalidate r0 --yes", `device/invalidate {"device":"r0"}`},
		{"device resize r0 2GiB", `device/resize {"device":"r0","size":2147483648}`},
		{"device resize r0 4096", `device/resize {"device":"r0","size":4096}`},
		{"device wait r0", `device/wait {"device":"r0","for":"synced"}`},
		{"device wait r0 primary", `device/wait {"device":"r0","for":"primary"}`},
		{"device wait r0 --for uptodate", `device/wait {"device":"r0","for":"uptodate"}`},
		{"device resolve r0 --keep-local --yes", `device/resolve {"device":"r0","choice":"keep-local"}`},
		{"device resolve r0 --discard-local --yes", `device/resolve {"device":"r0","choice":"discard-local"}`},
		{"device handshake r0 beta", `device/handshake {"device":"r0","node":"beta"}`},
		{"device handshake r0 beta --dry-run", `device/handshake {"device":"r0","node":"beta"}`},
		{"config show", `config/show []`},
		{"config check", `config/check {}`},
		{"config check /etc/x.toml", `config/check {"file":"/etc/x.toml"}`},
		{"config diff", `config/diff {}`},
		{"config reload", `config/reload {}`},
		{"config reload --partial", `config/reload {"partial":true}`},
		{"config save", `config/save null`},
		{"config rollback 6", `config/rollback {"revision":6}`},
		{"service list", `service/list null`},
		{"service show metrics", `service/show {"service":"metrics"}`},
		{"service start metrics", `service/start {"service":"metrics"}`},
		{"service stop metrics", `service/stop {"service":"metrics"}`},
		{"service restart metrics", `service/restart {"service":"metrics"}`},
		{"cmap get user.site", `cmap/get {"key":"user.site"}`},
		{"cmap set user.n i8 -5", `cmap/set {"key":"user.n","type":"i8","value":"-5"}`},
		{"cmap delete user.site", `cmap/delete {"key":"user.site"}`},
		{"cmap dump", `cmap/dump {}`},
		{"cmap dump devices.", `cmap/dump {"prefix":"devices."}`},
		{"log list", `vlog/list []`},
		{"log set dbg messenger:file:info", `vlog/set ["dbg" "messenger:file:info"]`},
		{"log reopen", `vlog/reopen []`},
		{"coverage", `coverage/show []`},
		{"coverage frames", `coverage/read-counter ["frames"]`},
		{"memory", `memory/show []`},
		{"metrics", `metrics []`},
		{"call node/show beta", `node/show ["beta"]`},
		{"call vlog/set --x -f json", `vlog/set ["--x" "-f" "json"]`},
		{"list-commands", `list-commands []`},
		{"version", `version null`},
		{"restart", `restart null`},
		{"exit", `exit null`},
	} {
		d := &daemon{}
		run(t, d, c.line)
		if got := d.requests(); len(got) == 0 || got[0] != c.request {
			t.Errorf("%s\n asks %q\nwants %q", c.line, got, c.request)
		}
	}
}
