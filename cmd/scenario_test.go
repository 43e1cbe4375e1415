package cmd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// A scenario is one of the sixty by which replicated block devices are judged:
// what happens, the tests that show what becomes of it, and, where it does not
// apply or not wholly, why.
type scenario struct {
	what  string
	tests []string
	note  string
}

// scenarios are numbered from 1.
var scenarios = []scenario{
	1:  {"replicas are equal, one to thirty-two of them", []string{"TestScenario01ReplicasAreEqual", "TestWritesReachEveryReplica"}, ""},
	2:  {"mixed sizes; a part of a block clears no mark", []string{"TestScenario02MixedSizes", "TestScenario02APartOfABlockClearsNoMark"}, ""},
	3:  {"overlapping writes in flight", []string{"TestScenario03OverlappingWrites"}, ""},
	4:  {"flush and FUA, power cut of all", []string{"TestScenario04PowerCutOfAll", "TestScenario04DisksThatLoseTheirCaches", "TestAWholeClusterComesBackFromAPowerCut"}, ""},
	5:  {"the same blocks written, read and resynced", []string{"TestScenario05SameBlocksRacingAResync", "TestInvalidateFetchesEverythingUnderLoad", "TestWhatIsChangedDuringAReadStaysMarked", "TestAHotBlockIsResynced", "TestAResyncUnderManyWritesEnds", "TestAChangeThatFailsCoversNothing"}, ""},
	6:  {"discard and zeroes among writes and resync", []string{"TestScenario06ZeroesAmongWritesAndResync"}, ""},
	7:  {"slow, frozen, lossy, one-way, one link stuck", []string{"TestScenario07SlowAndStuckPeers", "TestScenario07WhatIsStuckIsNotAnswered", "TestScenario07LossyLinks", "TestSecondariesLostUnderLoad", "TestLinksCutUnderLoad", "TestBulkOnASlowPathIsNoSilence", "TestOneWaySilenceIsSeen"}, ""},
	8:  {"a replica dies around a write", []string{"TestScenario08AReplicaDiesAroundAWrite", "TestScenario08AChangeThatWaitedMissesAReplica", "TestCrashPoints", "TestAChangeThatIsOnlyOnItsWayToAMixtureIsSentToWhoIsBack"}, ""},
	9:  {"protocols A, B and C", []string{"TestScenario09ProtocolsAtTheLossOfThePrimary", "TestReconfiguredNodeByNode"}, "The protocol is the device's, not a peer's."},
	10: {"thousands in flight", []string{"TestScenario10ThousandsInFlight", "TestRequestsInFlightAreLimited"}, ""},
	11: {"a starved activity log", []string{"TestScenario11AStarvedActivityLog", "TestBusyHotSetDoesNotStarveNewcomers", "TestFullLogPressesTheOwnerAndServesInOrder", "TestScenario11ADisklessPrimaryFillsNoLog", "TestWhatWasHeldWhenADiskCameGoesFirst"}, ""},
	12: {"the primary killed under load and restarted", []string{"TestScenario12APrimaryKilledUnderLoad", "TestPrimaryKilledAndRestarted", "TestCrashLoop"}, ""},
	13: {"a torn transaction of the activity log", []string{"TestLogTornAtAnyByteIsOldOrNew", "TestTransactionOfManyBlocksIsAllOrNothing", "TestCrashPoints"}, ""},
	14: {"a replica killed and restarted", []string{"TestAKilledReplicaGetsOnlyWhatItMissed", "TestAPrimaryThatIsLostAsItBeginsAGenerationGetsOnlyWhatItMissed"}, ""},
	15: {"power cut of all, every order of coming back", []string{"TestScenario15PowerCutOfAllInEveryOrder", "TestScenario15WhatVotersHoldIsDurable"}, ""},
	16: {"survivors with different tails", []string{"TestScenario16SurvivorsWithDifferentTails", "TestTorture", "TestWhatAPrimaryDropsIsCompared"}, ""},
	17: {"the same, survivors apart", []string{"TestScenario17SurvivorsApart", "TestSurvivorsThatDoNotSeeEachOtherTakeNoTurns"}, ""},
	18: {"a crash while metadata is written, of every kind", []string{"TestCrashPoints", "TestEveryCrashLeavesDifferencesCovered", "TestCrashDuringRecoveryIsRecoveredFrom"}, ""},
	19: {"a primary that wrote nothing dies", []string{"TestScenario19APrimaryThatWroteNothing"}, ""},
	20: {"metadata torn, corrupt, lost", []string{"TestScenario20LostMetadata", "TestSuperblockTornAtAnyByteIsOldOrNew", "TestCorruptMetadataIsRefused", "TestRotIsNeverTakenForClean"}, ""},
	21: {"links flap a thousand times", []string{"TestScenario21LinksFlapUnderLoad", "TestManyCutsLeaveNothingBehind", "TestAFlappingPathIsNoNodedown"}, ""},
	22: {"the link lost at each step of an agreement", []string{"TestScenario22LinkLostAtEachStep", "TestResetsAtEveryByteOfTheHandshakeEndInOneSession", "TestAResyncBeginsWhicheverLinkIsFaster", "TestAResyncIsShorterThanAGeneration", "TestAGenerationThatIsInForceIsNotWaitedFor"}, ""},
	23: {"a resync interrupted again and again, and turned round", []string{"TestScenario23AResyncInterruptedAgainAndAgain"}, ""},
	24: {"the end of a resync is missed", []string{"TestScenario24TheEndOfAResyncIsMissed", "TestAResyncEndsAsThePrimaryLosesItsTarget"}, ""},
	25: {"a peer back before it is given up, or after", []string{"TestShortCutIsAPause", "TestAShortCutIsNoNodedown", "TestLinksCutUnderLoad"}, ""},
	26: {"crossed, doubled and half-open connections", []string{"TestOneSessionWhateverTheOrderOfStarts", "TestAStaleDialNeverReplacesALiveSession", "TestARestartedPeerSupersedesItsHalfOpenPredecessor"}, ""},
	27: {"split brain, and every policy", []string{"TestASplitBrainIsResolvedByHand", "TestScenario27BothConcede", "TestScenario27WhatIsDiscardedIsAllResynced", "TestScenario27WhatIsDiscardedWithAnotherIsResynced", "TestNothingIsDiscardedForAMixture", "TestADiscardedDiskHasASourceThatStays", "TestAReplicaGoesOverToAnotherPrimary", "TestQuorumOff", "TestSplitBrainPolicies", "TestSplitPolicies", "TestTwoPrimariesOneWithoutADisk"}, ""},
	28: {"apart, and one side wrote", []string{"TestScenario28OneSideWrote"}, ""},
	29: {"a third node bridges", []string{"TestScenario29AThirdNodeBridges", "TestADiskThatIsBehindIsNotCurrentByAnothersWord", "TestScenario29ATiebreakerBridges", "TestScenario29ATiebreakerSaysWhoIsBehind", "TestScenario29TheDiskThatWentOnFails"}, ""},
	30: {"back after many generations", []string{"TestScenario30AfterManyGenerations", "TestScenario30ByWayOfAThird"}, ""},
	31: {"equal generations with marks left", []string{"TestScenario31EqualGenerationsWithMarks", "TestDecide", "TestVerifyFindsWhatDiffers"}, ""},
	32: {"metadata cloned, swapped, of something else", []string{"TestScenario32MetadataOfSomethingElse", "TestScenario32AnotherDevicesMetadata", "TestScenario32ANewDeviceThatADisklessNodeBegins", "TestScenario32ADiskThatWasDetachedBeforeAnythingWasWritten", "TestMetaOfSomethingElseIsRefused", "TestDecide", "TestWhatADeviceIsAboutToBeginWithIsNotPassedOver", "TestADiskThatBeginsADeviceBearsThatFromThenOn"}, ""},
	33: {"a replaced disk under the old id", []string{"TestScenario33AReplacedDisk", "TestANewDiskIsNotTakenForOneThatWasPartlyResynced", "TestScenario33AReplacedDiskHasNoSay", "TestScenario33TwoOfOneOldGeneration", "TestScenario33TheSourceOfANewDiskDiesAtOnce", "TestWhoHasAGenerationIsToldByItsPrimary"}, ""},
	34: {"outdated or a mixture: not promoted", []string{"TestScenario34AMixtureIsNotPromoted", "TestWhoOnlyHearsOfANewerGenerationIsNotPromoted", "TestScenario34WhoHeardNothingOfAGeneration"}, ""},
	35: {"an isolated primary", []string{"TestAnIsolatedPrimarySuspendsAndAnotherTakesOver", "TestScenario35ADisklessPrimaryIsReplaced", "TestPrimaryCutOffAndReplaced", "TestScenario35AFlushThatWasCutOff", "TestScenario35NothingIsAnsweredByOneDiskAlone"}, ""},
	36: {"a tiebreaker keeps and never gives", []string{"TestScenario36ATiebreakerKeepsAndNeverGives", "TestQuorum", "TestAGenerationIsToldWhenItIsSaved"}, ""},
	37: {"the last one standing", []string{"TestScenario37CleanLeavesLeaveQuorumBehind", "TestScenario37TheLastOneStanding", "TestScenario37ThePrimaryLeaves", "TestScenario37AllStopAtOnce", "TestScenario37TwoOfThreeStopAtOnce", "TestScenario37ALeaveDuringAPromotion", "TestScenario37OneAfterTheOther", "TestScenario37APeerOfAnEarlierVersion", "TestScenario37TheOneThatStayedIsLost", "TestScenario37ACrashDuringALeave", "TestScenario37WhatWasNotSaidInOrder", "TestScenario37AVoteThatNotAllGaveBack", "TestScenario37AVoteThatCameBackUnheard", "TestNeverTwoQuorums", "TestQuorum", "TestScripts"}, ""},
	38: {"a diskless primary loses its peers in every order", []string{"TestScenario38ADisklessPrimary", "TestANodeWithoutADiskIsNotPromotedOnWhatIsPast", "TestScenario38ADisklessPrimaryKeepsQuorum", "TestScenario38ADisklessPrimaryUnderEveryProtocol", "TestDisklessPrimary", "TestScenario38WhatADisklessPrimaryWroteIsDurable", "TestAPrimaryWithoutADiskKnowsWhoIsBehind", "TestAGenerationThatNoDiskIsIn", "TestAGenerationIsNotOnAMixtureAlone", "TestWhatOnlyALostDiskTookBeforeIsAnsweredInAnotherGeneration", "TestAResyncUndoesNothingThatTheTargetConfirmed", "TestAResyncUndoesNothingOfAPrimaryThatItsSourceHasNotHeardOf", "TestWhatWasReadAfterAnErrorStays", "TestADisklessNodeIsNotPromotedOnDisksThatAreApart", "TestADisklessNodeIsNotPromotedBesideADiskThatMayBeNewer", "TestADiskThatComesIsNotTakenForWhatADisklessPrimaryServes", "TestADisklessPrimaryYieldsToWhoWentOn", "TestAnOldDiskDoesNotHideWhoWentOn", "TestAnOldDiskDoesNotHideWhoIsBehind", "TestADiskThatCaughtUpElsewhereIsCurrent", "TestOnlyItsOwnStintGivesAGenerationUp", "TestAnOwnOldDiskIsResyncedByWhoNotedTheGeneration", "TestAChangeThatFailedIsNotWhatADiskLacks", "TestScenario38TheOnlyDiskIsLostAndComesBack"}, ""},
	39: {"two nodes, every status of the fencing handler", []string{"TestFencing", "TestFencingBeforeAPromotion", "TestFencingWhoWasNotInSync", "TestTwoPrimariesUntilTheHandlerAnswers", "TestAHandlerMayTakeLongerThanAPromotion", "TestADetachedDiskIsNotPromotedByTheHandlersWord", "TestADiskIsNotOutdatedByThePrimaryThatItServes", "TestFenceStorm", "TestScripts", "TestWhoWasLeftBehindIsNotCurrentByAnothersWord", "TestAPrimaryThatYieldsGivesItsGenerationUp", "TestFenceStormsThatWentWrong", "TestALostPrimaryWithoutADiskIsFenced", "TestADiskThatIsServedIsNotBehindWhoWasLeft"}, ""},
	40: {"promotions at the same time; demoted under clients", []string{"TestScenario40ConcurrentPromotions", "TestASourceIsPromotedWhileItReads", "TestScenario40AVoteBindsUntilTheNewPrimaryIsKnown", "TestAVoteEndsWithItsAgreement", "TestAVoteIsNotCountedBeyondItsAgreement", "TestASecondPrimaryIsRefused"}, ""},
	41: {"what becomes of suspended I/O", []string{"TestScenario41SuspendedIOGoesOn", "TestRequestsThatWaitFollowTheNewPolicy", "TestAPrimaryThatWasGivenUpServesNothing"}, ""},
	42: {"quorum of several devices that differ", []string{"TestScenario42DevicesHaveQuorumsOfTheirOwn", "TestScenario42AGroupWaitsForAGeneration"}, "There are no volumes that share a quorum: a device is on its own."},
	43: {"errors of disk and metadata, everywhere", []string{"TestScenario43ErrorsOfEveryKind", "TestScenario43ErrorsInAResync", "TestScenario43ATargetsDiskFailsAndItsMetadataIsSlow", "TestAReadErrorIsMendedFromAPeer", "TestABadBlockIsHealedWhoeverReadsIt", "TestABlockThatCannotBeRewritten", "TestADiskThatKeepsNothingIsGivenUp", "TestABlockThatNobodyCanRead", "TestErrorsPassedOnAreMended", "TestDiskFull", "TestABlockThatIsReadAfterSomeErrors"}, ""},
	44: {"a disk that hangs", []string{"TestADiskThatHangsIsDetached", "TestScenario44AGenerationOnSlowMetadata", "TestASessionEndsWhateverADiskDoes"}, ""},
	45: {"detach and attach under load; a bad block; other sizes", []string{"TestDetachAndAttachUnderLoad", "TestADiskWhoseKeeperFailsIsNotInvalidated", "TestAttachResyncsWhatWasMissed", "TestScenario45ABadBlockOnTheSource", "TestScenario45TheOnlyDiskLeftCrashes", "TestScenario45OnlyMixturesTakeAWrite", "TestScenario45TheDiskGoesThatKnewWhoIsBehind", "TestScenario45AFailedChangeIsGivenUp", "TestAResyncGoesOnFromASourceThatCanRead", "TestBadBlocksUnderLoad", "TestAWriteDuringAHealingWins", "TestACrashDuringAHealing", "TestScenario45ADiskWithBadBlocks", "TestDiskThatCannotBeUsed", "TestScenario45DisksComeBackWithoutTheOneThatWentOn", "TestAPrimarysMixtureLosesACompletePeer", "TestADiskIsAttachedWithoutQuorum", "TestADetachThatWouldEndQuorumIsRefused"}, ""},
	46: {"a disk fails under a diskless client", []string{"TestScenario46APeersDiskFailsUnderADisklessPrimary", "TestScenario46WhatADiskHadThatWasResyncedSince", "TestANodeWhoseDiskIsDetachedLeavesItBehind", "TestDisklessPrimary"}, ""},
	47: {"a resync leaves room and always moves", []string{"TestTheResyncRateChangesWhileAResyncRuns", "TestScenario50AResyncEndsUnderFullLoad"}, ""},
	48: {"the source of a resync dies", []string{"TestScenario48TheSourceOfAResyncDies", "TestScenario48TheTargetIsReachedLate", "TestScenario48TheOnlyCompleteDiskIsLost", "TestNoCircleOfResyncs", "TestAResyncBesideThePrimarysIsOne"}, ""},
	49: {"two targets, and a chain", []string{"TestScenario49TwoTargetsAtOnce", "TestADiskThatAnotherResyncedDoesNotPassForWhatThePrimaryWrites", "TestScenario49ADisklessPrimaryKnowsWhoIsInSync"}, ""},
	50: {"a resync ends under full load", []string{"TestScenario50AResyncEndsUnderFullLoad"}, ""},
	51: {"verify", []string{"TestVerifyFindsWhatDiffers", "TestVerifyUnderLoadFindsNothingThatIsNot", "TestVerifyEndsWithItsPeer", "TestVerifyWithoutAPrimary"}, ""},
	52: {"resize, and a crash at each of its steps", []string{"TestResizeUnderLoad", "TestResizeIsAllOrNothing", "TestAMissedResizeIsLearnt", "TestRoomSurvivesACrash", "TestRoomThatIsNotUsedIsNotResynced", "TestScenario52ANodeIsLostBeforeItHasRoom", "TestScenario52TwoGrowAtOnce", "TestScenario52WhoGrewIsLostAtOnce", "TestScenario52NotAllHearOfIt", "TestScenario52NotWithoutADisk", "TestResizeStorm", "TestCrashPoints"}, "A device is never made smaller."},
	53: {"empty space stays empty; no first sync where none is needed", []string{"TestScenario53EmptySpaceStaysEmpty", "TestCreateFromExisting", "TestCreateBlank"}, ""},
	54: {"snapshots", nil, "Lockstep takes none: they are the file system's or the volume manager's below a disk, or the client's above."},
	55: {"reloads under load; nodes come, go and are replaced, also among those of a device", []string{"TestEveryLiveKeyUnderFio", "TestNodesJoinLeaveAndAreReplaced", "TestReconfiguredNodeByNode", "TestConfigurationsThatDiffer", "TestScenario55FewerDisks", "TestScenario55ALostDiskIsTakenAway", "TestScenario55ANewDiskIsNotTheOneThatStayed", "TestScenario55AMajorityIsLostForGood", "TestScenario55TheRestComesOneByOne", "TestScenario55WhoHadLeftComesFromAnotherSet", "TestScenario55AMixtureKnowsOfMore", "TestScenario55WhoStayedIsTakenAway", "TestScenario55ADiskIsTakenAwayAndGivenBack", "TestScripts"}, ""},
	56: {"rolling upgrade", []string{"TestWrongHandshakesAreRefusedWithTheReason", "TestMigrationsLeadUpToTheLevel", "TestFormatIsStillRead", "TestDeviceFramesOnTheWireNeverChange"}, "There is one version of the protocol: that another is refused, that this one stays as it is, and that what it wrote is read, is what can be shown."},
	57: {"thirty-two nodes, a hundred devices", []string{"TestScenario01ReplicasAreEqual", "TestScenario57AHundredDevices", "TestSoak", "TestNodesComeAndGo"}, ""},
	58: {"the clock, and a primary that slept", []string{"TestPrimaryThatSleptAnswersNothing", "TestPrimaryFrozenAndReplaced", "TestNothingIsAnsweredInDoubt", "TestAPrimaryThatWasGivenUpServesNothing", "TestASuspendedHostIsToldOf", "TestAPauseOfOurOwnIsNobodysSilence", "TestScenario58AZombieWithoutADisk", "TestScenario58AZombieThatATiebreakerToldFirst", "TestScenario58TheClockJumps"}, ""},
	59: {"clients that die; a flush for every connection", []string{"TestAClientKilledInMidWriteWritesNothing", "TestASuccessorWaitsForRequestsOfTheDead", "TestScenario04DisksThatLoseTheirCaches", "TestTorture"}, ""},
	60: {"garbage, wrong secrets, flipped bits", []string{"TestStrangersAtThePeerPort", "TestStrangersInTheCluster", "TestStrangersAtTheNBDPort", "TestFlippedBitsBetweenNodes", "TestADamagedByteAnywhereCutsTheLinkAndNothingElse", "TestAnImpostorIsNotBelieved"}, ""},
}

// TestScenariosHaveTests: every scenario has one, or a word on why not; every
// test that is named exists, and every one that bears a number is in the list.
func TestScenariosHaveTests(t *testing.T) {
	have := testsOfModule(t)
	if n := len(scenarios) - 1; n != 60 {
		t.Fatalf("there are %d scenarios", n)
	}
	listed := map[string]bool{}
	for i, s := range scenarios[1:] {
		if s.what == "" || len(s.tests) == 0 && s.note == "" {
			t.Errorf("scenario %d has neither tests nor a word on why not", i+1)
		}
		for _, name := range s.tests {
			listed[name] = true
			if !have[name] {
				t.Errorf("scenario %d: there is no %s", i+1, name)
			}
		}
	}
	for name := range have {
		if strings.HasPrefix(name, "TestScenario") && name != "TestScenariosHaveTests" && !listed[name] {
			t.Errorf("%s is in no scenario's list", name)
		}
	}
}

// testsOfModule is the names of all test functions.
func testsOfModule(t *testing.T) map[string]bool {
	t.Helper()
	have := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				have[f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}
