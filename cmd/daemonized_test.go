package cmd_test

import "testing"

// asked is something that is asked of the daemon's start, supervision and end,
// and the tests that show it.
type asked struct {
	what  string
	tests []string
}

// daemonAt is what Open vSwitch's suite daemon.at checks, by its names.
var daemonAt = []asked{
	{"daemon", []string{"TestForeground", "TestModes"}},
	{"daemon --monitor", []string{"TestMonitorInForeground", "TestMonitorRestartsThePrimaryUnderLoad", "TestModes"}},
	{"daemon --detach", []string{"TestDetach", "TestModes"}},
	{"daemon --detach --monitor", []string{"TestDetachMonitor", "TestModes"}},
	{"daemon --detach startup errors", []string{"TestStartupErrors", "TestDaemonThatCannotStart"}},
	{"daemon --detach --monitor startup errors", []string{"TestStartupErrors"}},
	{"backtrace without monitor", []string{"TestCrashWithoutMonitorIsReportedByTheNextStart", "TestFatalErrorWithoutMonitor"}},
	{"backtrace with monitor", []string{"TestCrashReportGoesToLogAndFile", "TestFatalErrorsAreNamed", "TestModes"}},
}

// daemonPyAt is what daemon-py.at checks, by its names.
var daemonPyAt = []asked{
	{"daemon", []string{"TestForeground"}},
	{"daemon --monitor", []string{"TestMonitorInForeground"}},
	{"daemon --monitor restart exit code", []string{"TestRestartedDeaths", "TestTableWhileServing", "TestPlannedRestartKeepsConnections"}},
	{"daemon --detach", []string{"TestDetach"}},
	{"daemon --detach closes standard fds", []string{"TestDetach", "TestStandardErrorIsHeard"}},
	{"daemon --detach --monitor", []string{"TestDetachMonitor"}},
	{"daemon --detach --monitor closes standard fds", []string{"TestDetachMonitor", "TestModes"}},
	{"daemon --detach startup errors", []string{"TestStartupErrors"}},
	{"daemon --detach --monitor startup errors", []string{"TestStartupErrors"}},
}

// daemonized is what Open vSwitch's daemons were seen to do in each situation,
// and here: as there where that is good, and otherwise mended.
var daemonized = []asked{
	// The start.
	{"setsid, chdir /, descriptors on /dev/null, and without --detach none of that", []string{"TestDetach", "TestDetachMonitor", "TestNoChdir", "TestModes"}},
	{"a child that exits with 7 before it is ready: the same status in every mode, its words are seen", []string{"TestStartupErrors"}},
	{"a child that exits with 0, or dies by a signal, before it is ready: no success, and no second try", []string{"TestStartupErrors", "TestStartupCrashIsReported"}},
	{"mended: a crash at the start, whose report is not taken for readiness", []string{"TestStartupCrashIsReported", "TestVerdicts"}},
	{"mended: a start that never ends is bounded", []string{"TestStartupThatHangsIsBounded"}},
	{"mended: a child of the daemon's does not hold up the launcher", []string{"TestLauncherIsNotHeldUpByGrandchildren"}},
	{"mended: descriptors that were not meant are not inherited", []string{"TestStrangersAreNotInherited"}},

	// Restarts.
	{"a restarted child that exits with a status at the start: mended, it is tried again", []string{"TestFailedRestartIsRetried", "TestTable"}},
	{"a restarted child that dies by a signal at the start: tried again; mended, the title says of what", []string{"TestFailedRestartIsRetried"}},
	{"restarted: SEGV ABRT BUS FPE ILL ALRM XCPU XFSZ PIPE, a panic, a fatal error, status 5; mended: KILL", []string{"TestRestartedDeaths", "TestTableWhileServing", "TestTable", "TestCrashLoop"}},
	{"mended: a kill for lack of memory is followed by a restart, and named", []string{"TestKilledForLackOfMemory", "TestKillsForLackOfMemory", "TestTitles"}},
	{"not restarted: TERM INT QUIT, any other status, the command exit", []string{"TestDeathsThatAreFinal", "TestTableWhileServing"}},
	{"10 s between restarts, the first at once; mended: growing to a cap, forgotten after health", []string{"TestThrottle", "TestThrottleCountsFromTheLastRestart", "TestThrottleIsSaid", "TestHealthForgetsEarlierCrashes", "TestNothingStaysDown"}},
	{"one core file", []string{"TestCoreFilesAreLimitedToOne"}},
	{"the monitor's title, cut to the length of the command line", []string{"TestTitles", "TestDetachMonitor", "TestSet", "TestSetShortens"}},
	{"mended: log levels survive", []string{"TestLevelsSurvive", "TestSaveAndRestore"}},

	// Signals and ends.
	{"TERM and INT to the daemon: an orderly stop, pidfile and sockets gone; twice: at once", []string{"TestForeground", "TestSecondSignalStopsAtOnce", "TestServiceManagerIsTold"}},
	{"mended: HUP reloads", []string{"TestServiceManagerIsTold", "TestMonitorPassesSignalsOn", "TestReloadBySignalByHandInPartAndBack"}},
	{"mended: TERM to a monitor that never restarted anything orphans nobody", []string{"TestMonitorPassesSignalsOn", "TestMonitorInForeground", "TestDaemonThatDoesNotStopIsKilled"}},
	{"mended: TERM, INT, HUP to a monitor after a restart that waited are obeyed", []string{"TestSignalsAfterAThrottledRestart", "TestThrottleIsSaid"}},
	{"KILL of the monitor: the daemon lives on; mended: it notices, says so, and gets another by a planned restart", []string{"TestDaemonServesOnWithoutItsMonitor", "TestASecondMonitorRetries", "TestAMonitorThatIsKilledIsReplaced", "TestStandardErrorIsHeard"}},

	// Files.
	{"mended: no log file from nowhere after a crash", []string{"TestNoLogFileFromNowhere"}},
	{"the log file is let go while nothing runs, and opened again", []string{"TestTransientLogHoldsNoFile"}},
	{"mended: a log that can't be written stops nothing", []string{"TestUnwritableLogStopsNothing", "TestFileThatCannotBeOpenedIsAnErrorAndNoMore", "TestFullDiskIsReportedWhenItHasRoomAgain", "TestStuckDestinationCostsNobody"}},
	{"mended: a crash leaves no dead control socket", []string{"TestCrashLoop", "TestOvsAppctlFindsTheDaemon", "TestCleanStale", "TestKilledDaemonLeavesNothingInTheWay"}},
	{"the pidfile's content and its lock, by which ovs-appctl finds the daemon", []string{"TestCreateAndRemove", "TestOvsAppctlFindsTheDaemon"}},
	{"12 starts at once: one serves, the others name it", []string{"TestOneOfManyStarts", "TestOneOfMany", "TestAlreadyRunningNamesThePid"}},
	{"the pidfile of a killed instance is no obstacle", []string{"TestLeftovers", "TestKilledDaemonLeavesNothingInTheWay", "TestModes"}},
	{"mended: --overwrite-pidfile, the old one's end leaves the new one's pidfile", []string{"TestOverwrittenPidfileStays", "TestOverwriteIsNotLost"}},
	{"mended: a --unixctl path that is in use is not stolen", []string{"TestASocketIsNotStolen", "TestSocketOfALiveProcessIsNotStolen"}},
	{"mended: pidfiles of other pid namespaces are cleaned up", []string{"TestAnotherPIDNamespace", "TestLeftovers"}},
	{"--user: credentials, two capabilities, bounding set, no supplementary groups, whose the files are", []string{"TestUser", "TestBadUsers", "TestModes"}},
	{"mended: systemd is told of readiness, reloads, stops and health; watchdog; sockets; the unit", []string{"TestServiceManagerIsTold", "TestUnderAServiceManager", "TestSocketActivation", "TestUnitFile", "TestWatchdogIsFedByTheProbeAlone"}},

	// Clients.
	{"mended: clients wait while the daemon restarts after a crash, and see no error", []string{"TestCrashLoop", "TestMonitorRestartsThePrimaryUnderLoad", "TestQemuRidesOutALostServer", "TestTheKernelRidesOutCrashes"}},
	{"mended: a planned restart or an upgrade is noticed by no client, the kernel's included", []string{"TestPlannedRestartsUnderLoad", "TestARestartKeepsWhatWasNegotiated", "TestARestartThatWouldFailIsRefused", "TestUpgrade", "TestTorture"}},
	{"unixctl: exit, list-commands, arguments", []string{"TestStockClient", "TestStockClientListsCommands", "TestEveryCommandByOvsAppctl"}},
	{"unixctl: bad target, server errors", []string{"TestResolveWithoutADaemon", "TestDialSaysWhyItCannot", "TestUnixctlReplies"}},
}

// TestDaemonizedListIsCovered: all has tests, and these exist.
func TestDaemonizedListIsCovered(t *testing.T) {
	have := testsOfModule(t)
	for name, list := range map[string][]asked{"daemon.at": daemonAt, "daemon-py.at": daemonPyAt, "situations": daemonized} {
		for _, a := range list {
			if len(a.tests) == 0 {
				t.Errorf("%s: %s: no test", name, a.what)
			}
			for _, test := range a.tests {
				if !have[test] {
					t.Errorf("%s: %s: there is no %s", name, a.what, test)
				}
			}
		}
	}
	if len(daemonAt) != 8 || len(daemonPyAt) != 9 {
		t.Errorf("daemon.at has 8 tests, daemon-py.at 9, not %d and %d", len(daemonAt), len(daemonPyAt))
	}
}
