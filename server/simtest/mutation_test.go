//go:build mutate

package simtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/device/mutate"
)

var (
	fault  = flag.String("fault", "", "the deliberate fault to switch on")
	mutant = flag.Int("mutant-seeds", 400, "within how many histories a deliberate fault has to be caught")
)

func TestMain(m *testing.M) {
	flag.Parse()
	mutate.Set(mutate.Fault(*fault))
	os.Exit(m.Run())
}

// TestMutants shows that the torture can fail: with each of the deliberate
// faults it does, within a number of histories, and with none it does not.
func TestMutants(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		if out, err := mutated(t, "", 40); err != nil {
			t.Fatalf("the torture fails with no fault switched on: %v\n%s", err, out)
		}
	})
	for _, f := range mutate.All() {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			out, err := mutated(t, f, *mutant)
			if err == nil || strings.Contains(out, "panic: test timed out") && !lockedUp(out) {
				t.Fatalf("%s: %d histories have not caught it", f, *mutant)
			}
			t.Logf("%s: %s, after %v", f, caughtBy(out), time.Since(start).Round(time.Millisecond))
		})
	}
}

// mutated runs the torture with a fault until it fails, in a process of its own:
// the fault may well make it panic, or lock up.
func mutated(t *testing.T, f mutate.Fault, histories int) (out string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	kind := -1
	if f == mutate.ClearEarly {
		kind = 8 // it shows only where power is lost right after a resync
	}
	tests := "TestTorture|TestStorm|TestNothingIsMergedSilently"
	switch f {
	case mutate.PromoteApart:
		tests = "TestGroupIsAPrefix"
	case mutate.ReadTail, mutate.TrustNewcomers:
		tests = "TestTorture" // the storm has no clients that only read, and no new disks
	case mutate.BearUnmarked:
		tests = "TestScenario33TheSourceOfANewDiskDiesAtOnce" // it takes the right moment
	case mutate.VoteUnsynced:
		tests = "TestScenario15WhatVotersHoldIsDurable" // few histories come by it
	case mutate.FlushHere:
		tests = "TestScenario04PowerCutOfAll" // a random one may flush for ever, at no time
	case mutate.ZombieTold:
		tests = "TestScenario58AZombieThatATiebreakerToldFirst"
	case mutate.VoteTwice:
		tests = "TestScenario40AVoteBindsUntilTheNewPrimaryIsKnown"
	case mutate.ForgetFailed:
		tests = "TestWhatWasReadAfterAnErrorStays"
	case mutate.DeafToRoll:
		tests = "TestAResyncUndoesNothingOfAPrimaryThatItsSourceHasNotHeardOf"
	case mutate.TrustRegrouped:
		tests = "TestScenario55FewerDisks"
	case mutate.WriteOn:
		tests = "TestScenario55ADiskIsTakenAwayAndGivenBack"
	case mutate.ForgetStayed:
		tests = "TestScenario55WhoStayedIsTakenAway"
	case mutate.PullUnasked:
		tests = "TestADiscardedDiskHasASourceThatStays"
	case mutate.TrustStale:
		tests = "TestNothingIsAnsweredInDoubt|TestAPrimaryThatWasGivenUpServesNothing" // few random histories hit the moment
	case mutate.CoverFailed:
		tests = "TestAChangeThatFailsCoversNothing" // the primary marks it as well
	case mutate.LeaveOnWay:
		tests = "TestAChangeThatIsOnlyOnItsWayToAMixtureIsSentToWhoIsBack"
	case mutate.PassOver:
		tests = "TestWhatADeviceIsAboutToBeginWithIsNotPassedOver"
	case mutate.SpareClients:
		tests = "TestALostPrimaryWithoutADiskIsFenced"
	case mutate.GiveUpUnkept:
		tests = "TestADiskWhoseKeeperFailsIsNotInvalidated"
	case mutate.GiveUpOnce:
		tests = "TestScenario45AFailedChangeIsGivenUp"
	case mutate.VoidForeign:
		tests = "TestScenario27WhatIsDiscardedWithAnotherIsResynced"
	case mutate.AckEarly:
		tests = "TestScenario45AFailedChangeIsGivenUp" // few random histories hit the moment
	case mutate.BeginUnheard:
		tests = "TestADeviceBeginsWhereAMajorityKnows"
	case mutate.FenceInSync:
		tests = "TestFencingWhoWasNotInSync"
	case mutate.ServeApart:
		tests = "TestADiskThatComesIsNotTakenForWhatADisklessPrimaryServes"
	case mutate.DetachUnnoted:
		tests = "TestADetachedDiskIsNotPromotedByTheHandlersWord"
	case mutate.Unwitnessed:
		tests = "TestScenario29ATiebreakerBridges"
	case mutate.ServePast:
		tests = "TestANodeWithoutADiskIsNotPromotedOnWhatIsPast"
	case mutate.ServeUnnoted:
		tests = "TestANewDiskIsNotTakenForOneThatWasPartlyResynced"
	case mutate.EndUnheard:
		tests = "TestAResyncEndsAsThePrimaryLosesItsTarget"
	case mutate.EndUnreached:
		tests = "TestScenario48TheTargetIsReachedLate"
	case mutate.AnswerAlone:
		tests = "TestScenario35NothingIsAnsweredByOneDiskAlone"
	case mutate.DeafToFailed:
		tests = "TestScenario29TheDiskThatWentOnFails"
	case mutate.AnswerFailed:
		tests = "TestAnErrorThatNobodyMends"
	case mutate.ZombieDiskless:
		tests = "TestScenario58AZombieWithoutADisk"
	case mutate.NoAccount:
		tests = "TestScenario11ADisklessPrimaryFillsNoLog"
	case mutate.ClearBehind:
		tests = "TestWhatIsChangedDuringAReadStaysMarked"
	case mutate.TellUnsaved:
		tests = "TestAGenerationIsToldWhenItIsSaved"
	case mutate.ForgetServed:
		tests = "TestAnOldDiskDoesNotHideWhoWentOn"
	case mutate.YieldQuietly:
		tests = "TestWhatAPrimaryDropsIsCompared"
	case mutate.FlushAfterYield:
		tests = "TestScenario35AFlushThatWasCutOff" // what it says is so by then: who voted has synced
	}
	cmd := exec.CommandContext(ctx, self, "-strike", fmt.Sprint(kind), "-test.run=^("+tests+")$", "-test.failfast", "-test.timeout=3m",
		"-fault", string(f), "-seeds", fmt.Sprint(histories))
	raw, err := cmd.CombinedOutput()
	return string(raw), err
}

var (
	failed  = regexp.MustCompile(`--- FAIL: (Test\w+(?:/\d+)?)`)
	running = regexp.MustCompile(`Test\w+/\d+ \((\w+)\)`)
)

// lockedUp reports whether, when time ran out, one history had not moved on for
// most of it.
func lockedUp(out string) bool {
	for _, m := range running.FindAllStringSubmatch(out, -1) {
		if d, err := time.ParseDuration(m[1]); err == nil && d > 20*time.Second {
			return true
		}
	}
	return false
}

// caughtBy says which history has found a fault, and how.
func caughtBy(out string) string {
	m := failed.FindStringSubmatchIndex(out)
	if m == nil {
		first, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
		return "a panic: " + first
	}
	said := ""
	for line := range strings.Lines(out[m[1]:]) {
		if line = strings.TrimSpace(line); strings.Contains(line, "_test.go:") && !strings.Contains(line, ": strike ") {
			said = line
			break
		}
	}
	return out[m[2]:m[3]] + ": " + said
}
