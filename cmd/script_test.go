package cmd_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
)

// TestScripts runs what users type, with the real programs. Beside
// testscript's own commands there are
//
//	cluster NODE... KEY=VALUE... start a cluster with the device r0, in whose table
//	                            those keys are set; for each node
//	                            $NODE is its control socket, $NODE_nbd the URI of r0,
//	                            $NODE_run its rundir and $NODE_state its state dir;
//	                            $config is the configuration of all
//	node kill|term|stop|cont|ended|start NODE
//	await NODE in-sync|serving|down PEER|up PEER|role ROLE|sees PEER ROLE
//	appctl NODE COMMAND ARG...  run ovs-appctl on a node
//	appctl-covers NODE          fail if the node has a command that appctl has not run
//	exits STATUS PROGRAM ARG... run a program that ends with that status
//	recipe NODE HEADING [N [DEVICE]]
//	                            run a script of ctl/docs/recipes.md, the Nth (of 1)
//	                            below that heading, on that node, for that device (of r0)
func TestScripts(t *testing.T) {
	t.Parallel()
	bin := real.build(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("NO_COLOR", "1")
			env.Values[clusterKey{}] = &scripted{called: map[string]bool{}}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"cluster": scriptCluster, "node": scriptNode, "await": scriptAwait, "exits": scriptExits, "recipe": scriptRecipe,
			"appctl": scriptAppctl, "appctl-covers": scriptAppctlCovers,
		},
		Condition: func(cond string) (bool, error) {
			name, ok := strings.CutPrefix(cond, "has:")
			if !ok {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			_, err := exec.LookPath(name)
			if err != nil && os.Getenv("CI") == "true" {
				return false, err
			}
			return err == nil, nil
		},
		RequireUniqueNames: true,
	})
}

// clusterKey is where a script's cluster is kept.
type clusterKey struct{}

type scripted struct {
	*cluster.Cluster
	called map[string]bool // commands that appctl has run
}

func clusterOf(ts *testscript.TestScript) *cluster.Cluster {
	s := ts.Value(clusterKey{}).(*scripted)
	if s.Cluster == nil {
		ts.Fatalf("no cluster was started")
	}
	return s.Cluster
}

func scriptCluster(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: cluster NODE... KEY=VALUE...")
	}
	cfg := quick()
	cfg.Nodes = nil
	for _, a := range args {
		key, value, set := strings.Cut(a, "=")
		switch {
		case !set:
			cfg.Nodes = append(cfg.Nodes, a)
		case key == "quorum":
			cfg.Devices[0].Quorum = value
		case strings.HasPrefix(value, "["):
			cfg.Devices[0].Extra += key + " = " + value + "\n"
		default:
			cfg.Devices[0].Extra += fmt.Sprintf("%s = %q\n", key, value)
		}
	}
	c, err := cluster.New(cluster.Options{Bin: real.dir}, cfg)
	ts.Check(err)
	ts.Defer(func() { ts.Check(c.Close()) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(c.Start(ctx))
	ts.Check(c.Until(ctx, "r0 is in sync", cluster.InSync("r0")))
	ts.Value(clusterKey{}).(*scripted).Cluster = c
	ts.Setenv("config", c.Config)
	for _, n := range c.Nodes {
		ts.Setenv(n.Name, n.Socket())
		ts.Setenv(n.Name+"_nbd", n.URI("r0"))
		ts.Setenv(n.Name+"_run", n.Run)
		ts.Setenv(n.Name+"_state", n.State)
	}
}

func scriptNode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: node kill|term|stop|cont|ended|start NODE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n := clusterOf(ts).Node(args[1])
	switch args[0] {
	case "kill":
		n.Kill9()
	case "term":
		ts.Check(n.Term(ctx))
	case "ended": // by itself, or by a command: its peers may have seen it go before
		ts.Check(n.Ended(ctx))
	case "stop":
		n.Stop()
	case "cont":
		n.Cont()
	case "start":
		ts.Check(n.Start(ctx))
	default:
		ts.Fatalf("node %s?", args[0])
	}
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || args[1] == "sees" && len(args) != 4 {
		ts.Fatalf("usage: await NODE in-sync|serving|down PEER|up PEER|role ROLE|sees PEER ROLE")
	}
	arg := ""
	if len(args) > 2 {
		arg = args[2]
	}
	cond, ok := map[string]func(cluster.Status) bool{
		"in-sync": cluster.InSync("r0"),
		"serving": func(cluster.Status) bool { return true },
		"down":    cluster.PeerDown(arg),
		"up":      func(s cluster.Status) bool { return s.Peer(arg).State == "up" },
		"role":    func(s cluster.Status) bool { return s.Device("r0").Role == arg },
		"sees": func(s cluster.Status) bool {
			return slices.ContainsFunc(s.Device("r0").Peers, func(p cluster.DevicePeer) bool { return p.Node == arg && p.Role == args[3] })
		},
	}[args[1]]
	if !ok {
		ts.Fatalf("await %s?", args[1])
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(clusterOf(ts).Node(args[0]).Until(ctx, strings.Join(args[1:], " "), cond))
}

func scriptAppctl(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: appctl NODE COMMAND ARG...")
	}
	n := clusterOf(ts).Node(args[0])
	err := ts.Exec("ovs-appctl", append([]string{"-T", "60", "-t", n.Socket()}, args[1:]...)...)
	ts.Value(clusterKey{}).(*scripted).called[args[1]] = true
	switch exit, ok := errors.AsType[*exec.ExitError](err); {
	case !neg:
		ts.Check(err)
	case err == nil:
		ts.Fatalf("%s should have been refused", args[1])
	case !ok || exit.ExitCode() != 2:
		ts.Fatalf("%s: %v, and no error of the server's", args[1], err)
	}
}

func scriptAppctlCovers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appctl-covers NODE")
	}
	ts.Check(ts.Exec("ovs-appctl", "-t", clusterOf(ts).Node(args[0]).Socket(), "list-commands"))
	names := 0
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		line, indented := strings.CutPrefix(line, "  ") // the heading is not
		if !indented {
			continue
		}
		names++
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !ts.Value(clusterKey{}).(*scripted).called[name] {
			ts.Fatalf("%s was not run", name)
		}
	}
	if names == 0 {
		ts.Fatalf("no commands are listed")
	}
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	start := time.Now()
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%q ended with %d after %v, not with %d", slices.Clone(args[1:]), got, time.Since(start), want)
	}
}

// recipes are the scripts of ctl/docs/recipes.md, by the heading above them.
func recipes() (map[string][]string, error) {
	text, err := os.ReadFile(filepath.Join("..", "ctl", "docs", "recipes.md"))
	if err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		heading, rest, _ := strings.Cut(section, "\n")
		for _, block := range strings.Split(rest, "```sh\n")[1:] {
			script, _, _ := strings.Cut(block, "```")
			all[heading] = append(all[heading], script)
		}
	}
	return all, nil
}

// TestEveryRecipeIsRun by some script.
func TestEveryRecipeIsRun(t *testing.T) {
	elsewhere := map[string]string{
		"Administrate from another host 1": "TestRemoteAdministration",
	}
	all, err := recipes()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("there are no recipes")
	}
	run := map[string]bool{}
	files, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`(?m)^(?:\[[^]]*\] )?(?:! )?recipe \w+ '([^']+)'(?: (\d+))?`)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			run[m[1]+" "+cmp.Or(m[2], "1")] = true
		}
	}
	for heading, scripts := range all {
		for i := range scripts {
			if which := fmt.Sprint(heading, " ", i+1); !run[which] && elsewhere[which] == "" {
				t.Errorf("no script runs %q", which)
			}
		}
	}
}

// scriptRecipe runs what the documentation tells people to, on a node: there
// the daemon is where lockstepctl looks first.
func scriptRecipe(ts *testscript.TestScript, neg bool, args []string) {
	nth := 1
	if len(args) > 2 {
		var err error
		nth, err = strconv.Atoi(args[2])
		ts.Check(err)
	}
	if len(args) < 2 || len(args) > 4 || nth < 1 {
		ts.Fatalf("usage: recipe NODE HEADING [N [DEVICE]]")
	}
	c := clusterOf(ts)
	n := c.Node(args[0])
	all, err := recipes()
	ts.Check(err)
	scripts := all[args[1]]
	if nth > len(scripts) {
		ts.Fatalf("recipes.md has no script %d below %q", nth, args[1])
	}
	script := scripts[nth-1]
	if len(args) == 4 {
		script = strings.ReplaceAll(script, " r0", " "+args[3])
	}
	script = strings.NewReplacer("/etc/lockstep/lockstep.toml", c.Config, "/run/lockstep/lockstepd.ctl", n.Socket()).Replace(script)
	ts.Setenv("LOCKSTEP_TARGET", n.Socket())
	switch err := ts.Exec("sh", "-e", "-c", script); {
	case err != nil && !neg:
		ts.Fatalf("%s%v", script, err)
	case err == nil && neg:
		ts.Fatalf("%sit should have failed", script)
	}
}
