package cmd_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
)

// acceptance says which tests show what is asked of services, the object
// database and the configuration. The first of each is named after it.
var acceptance = map[string][]string{
	"S1 start order, a failure undone":          {"TestS1StartFollowsNeedsAndAFailureIsUndone", "TestS1AStartSideBySideIsGivenUpWhenAnotherFails", "TestS1AStartThatDoesNotComeBackIsBounded", "TestDaemonThatCannotStart"},
	"S2 stop in reverse, busy, TERM twice":      {"TestS2BusyIsRetriedWithABound", "TestS2StopsAtTheSameTimeAreOne", "TestS2AStopThatHangsDoesNotKeepTheOthers", "TestS2TheDaemonStopsInTheReverse"},
	"S3 look-up by name and version":            {"TestS3LookupIsByExactNameAndVersion"},
	"S4 members join and leave, in order":       {"TestS4MembersJoinLeaveAndReturnInOrder", "TestTableTransitions", "TestUnackedFramesAreToldBeforeTheNewSession", "TestARestartedPeerIsANewSession", "TestNodesComeAndGo"},
	"S5 types and limits of keys":               {"TestS5EveryTypeGoesRoundAndHasItsLimits", "TestS5KeysHaveTheirLimitsAndTheirOwnErrors"},
	"S6 equal sets, types, read-only, overflow": {"TestS6SettingTheSameIsNoEventAndTypesStay", "TestS6CountingStopsAtTheLimitsOfTheType", "TestComputedKeysAreReadOnlyAndComputedWhenRead"},
	"S7 tracking":                                {"TestS7TrackersSeeOldAndNewInOrderOfCommit", "TestS7AStoppedTrackerIsBoundedAndTold", "TestS7NoneIsLostToAReaderThatReads", "TestKeysAreTracked"},
	"S8 iteration while keys change":             {"TestS8DumpsWhileKeysChange"},
	"S9 reload: all or nothing":                  {"TestS9ARefusedFileChangesNothing", "TestARefusedConfigurationChangesNothing", "TestRandomEditsNeverHalfApply", "TestEditorsSaves", "TestEditorsSavesAreOneReload"},
	"S10 run-time sets pass the same rules":      {"TestS10WhatACommandSetsPassesTheRulesOfTheFile", "TestS10TheObjectDatabaseShowsAndSetsTheConfiguration", "TestS10AGuardDecidesAboutAllItsKeysAtOnce"},
	"S11 check, start and reload say the same":   {"TestS11CheckStartAndReloadSayTheSame"},
	"S12 stable output, exit codes":              {"TestS12OutputIsStableAndExitCodesTell", "TestOutcomes", "TestScripts", "TestGolden"},
	"S13 who may, granted and revoked; isolated": {"TestS13GroupsAreGrantedAndRevokedWhileItRuns", "TestRemoteAdministration", "TestManyClients", "TestClientThatDoesNotReadIsCutOff", "TestStoppedSubscribersCostNothing"},
	"S14 two daemons":                            {"TestS14ASecondDaemonLeavesTheFirstAlone"},
}

// TestAcceptanceListIsCovered: the tests of the list exist.
func TestAcceptanceListIsCovered(t *testing.T) {
	have := testsOfModule(t)
	for what, tests := range acceptance {
		if id, _, _ := strings.Cut(what, " "); !strings.HasPrefix(tests[0], "Test"+id) {
			t.Errorf("%s: %s is not named after it", what, tests[0])
		}
		for _, test := range tests {
			if !have[test] {
				t.Errorf("%s: there is no %s", what, test)
			}
		}
	}
}

// ctlAs runs lockstepctl as a user that is in one group.
func ctlAs(t *testing.T, n *cluster.Node, gid uint32, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(within(t, patience), filepath.Join(real.dir, "lockstepctl"), append([]string{"-t", n.Socket()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: gid}}
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

// TestS13GroupsAreGrantedAndRevokedWhileItRuns: members of a group get in and
// may what the file says, from the next connection on.
func TestS13GroupsAreGrantedAndRevokedWhileItRuns(t *testing.T) {
	needRoot(t, "to be somebody else")
	t.Parallel()
	n := startConfigured(t, "\n[control]\nread_groups = [\"4001\"]\n")
	for _, dir := range []string{real.dir, n.c.Dir, filepath.Dir(n.Run), n.Run} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(gid uint32, line string, status int, says string) {
		t.Helper()
		if out, got := ctlAs(t, n.Node, gid, strings.Fields(line)...); got != status || !strings.Contains(out, says) {
			t.Errorf("group %d, %s: status %d, want %d and %q:\n%s", gid, line, got, status, says, out)
		}
	}
	check(4001, "status", 0, "r0")
	check(4001, "device promote r0", 1, `needs the admin role`)
	check(4002, "status", 3, "permission denied")
	n.edit(t, `read_groups = ["4001"]`, "read_groups = []\nadmin_groups = [\"4002\"]")
	n.untilKey(t, "runtime.config.revision", "2")
	check(4001, "status", 3, "permission denied")
	check(4002, "device promote r0", 0, "")
	// The grant outlives the daemon: the next one makes the socket anew.
	if err := n.Restart(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	check(4001, "status", 3, "permission denied")
	check(4002, "status", 0, "r0")
}

// TestS14ASecondDaemonLeavesTheFirstAlone: it says who runs, exits with 3, and
// the first goes on serving, its socket and pidfile where they were.
func TestS14ASecondDaemonLeavesTheFirstAlone(t *testing.T) {
	t.Parallel()
	c := start(t, one())
	n := c.Nodes[0]
	conn := open(t, n)
	defer conn.Close()
	args := n.Args()
	for _, more := range [][]string{nil, {"--detach"}, {"--detach", "--monitor"}} {
		out, err := exec.CommandContext(within(t, patience), args[0], append(args[1:], more...)...).CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != 3 || !strings.Contains(string(out), "already running") {
			t.Errorf("%q: %v:\n%s", more, err, out)
		}
		if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Errorf("%q: the first daemon's client: %v", more, err)
		}
		if pid, err := n.DaemonPid(); err != nil || pid != n.Pid() {
			t.Errorf("%q: the pidfile names %d, %v", more, pid, err)
		}
		if out, err := n.Lockstepctl(within(t, patience), "status"); err != nil {
			t.Errorf("%q: %v:\n%s", more, err, out)
		}
	}
}
