// Package mutate is deliberate faults of the write path, for a test of the
// tests: each is switched on by itself, and the simulator has to catch it. They
// exist only in a build with the tag "mutate"; in any other Is is false at
// compile time, and nothing is left of them.
package mutate

// A Fault is one deliberate fault, by its name.
type Fault string

// The faults.
const (
	SkipLog         Fault = "skip-log"                 // changes do not wait for the activity log
	SkipReplicaLog  Fault = "skip-replica-log"         // replicas of three or more keep none
	CoolEarly       Fault = "cool-early"               // extents leave the activity log before their changes are durable
	AnswerEarly     Fault = "answer-before-generation" // what missed a lost peer is answered before the new generation is durable
	Unsaved         Fault = "unsaved"                  // the superblock is confirmed without being written
	ForgetMissed    Fault = "forget-missed"            // what is in flight when a peer is lost is not marked
	ForgetUnflushed Fault = "forget-unflushed"         // what a lost peer has acknowledged and not flushed is not marked
	ForgetAway      Fault = "forget-away"              // what is written while a peer is away is not marked
	KeepMarks       Fault = "keep-marks"               // the replicas are not told what a lost one may lack
	SkipReconcile   Fault = "skip-reconcile"           // survivors of a primary do not compare their tails
	DropEqual       Fault = "drop-on-equal"            // marks are dropped where both sides are in one generation
	CountAbsent     Fault = "count-absent"             // a peer out of reach counts for quorum
	OutdatedCurrent Fault = "outdated-is-current"      // an outdated disk passes for a current one
	PromoteUnasked  Fault = "promote-unasked"          // nobody votes on a promotion
	VoteUnsynced    Fault = "vote-unsynced"            // a replica votes and agrees before its disk is durable
	TrustStale      Fault = "trust-stale-quorum"       // answers do not wait for the word of the peers that make quorum
	FlushHere       Fault = "flush-here"               // a flush is answered without the peers
	FlushUnsynced   Fault = "flush-unsynced"           // a replica answers a flush without syncing
	AckEarly        Fault = "ack-early"                // a replica acknowledges a change before its disk has it
	ReadStale       Fault = "read-stale"               // reads are served from a disk that is not up to date
	Unordered       Fault = "unordered"                // overlapping changes do not wait for each other
	PullOvertaken   Fault = "pull-overtaken"           // a piece of a resync lands on what is newer
	ClearEarly      Fault = "clear-early"              // a resync's marks are taken off before the pieces are durable
	ClearBehind     Fault = "clear-behind"             // a source takes a piece's marks off after it has read it, with those that came meanwhile
	CoverFailed     Fault = "cover-failed"             // a change that failed stands for the piece of a resync that it covers
	PromoteApart    Fault = "promote-apart"            // a device is promoted without the others of its group
	KeepVote        Fault = "keep-vote"                // a node that leaves in order keeps the vote that others know it has given up
	CountLeft       Fault = "count-left"               // those that left in order make quorum by themselves
	ReturnUnasked   Fault = "return-unasked"           // a node that left takes its vote back without asking who stayed
	TrustNewcomers  Fault = "trust-newcomers"          // disks that were made anew make majorities with stale ones
	ReadTail        Fault = "read-tail"                // a primary answers reads before it has left behind who may lack what it holds
	BearUnmarked    Fault = "bear-unmarked"            // a disk bears the generation of its source before it has marked what it lacks
	YieldQuietly    Fault = "yield-quietly"            // a primary that yields passes for one that was demoted in order
	TellUnsaved     Fault = "tell-unsaved"             // a primary says that a generation is in force before it has saved it
	ForgetServed    Fault = "forget-served"            // a primary that is given an old disk forgets what it serves
	SpareClients    Fault = "spare-clients"            // a lost primary without a disk is not fenced before a promotion
	GiveUpUnkept    Fault = "give-up-unkept"           // a disk is invalidated though the one that was to keep the data has failed
	GiveUpOnce      Fault = "give-up-once"             // a change that fails after the primary has given it up is waited for
	VoidForeign     Fault = "void-foreign"             // a log's marks are void against its primary though the disk was resynced from another
	FlushAfterYield Fault = "flush-after-yield"        // a primary that has yielded answers the flushes under way
	Unwitnessed     Fault = "unwitnessed"              // tiebreakers do not note which half of the disks goes on
	NoAccount       Fault = "no-account"               // a primary without a disk does not bound what its replicas log
	ServePast       Fault = "serve-past"               // a node without a disk is promoted on a disk that is behind what it has seen
	ServeUnnoted    Fault = "serve-unnoted"            // a source does not note that its bitmap is of the target's new generation
	EndUnheard      Fault = "end-unheard"              // a disk that another resyncs is taken for a mixture when it is lost
	EndUnreached    Fault = "end-unreached"            // a resync ends before its target gets what another primary writes
	AnswerAlone     Fault = "answer-alone"             // a change is answered although those that lack it would make quorum
	DeafToFailed    Fault = "deaf-to-failed"           // nobody learns what came into force from a node whose disk has failed
	AnswerFailed    Fault = "answer-failed"            // what the only current disk failed is answered for others that took it
	ZombieDiskless  Fault = "zombie-diskless"          // a primary without a disk does not yield to another
	ZombieTold      Fault = "zombie-told"              // nor to disks, where a tiebreaker has told it of what they know
	VoteTwice       Fault = "vote-twice"               // a vote binds until the promotion is done, and not until who is primary is known
	ForgetFailed    Fault = "forget-failed"            // who missed a change whose client was told of an error passes for current
	TrustRegrouped  Fault = "trust-regrouped"          // disks make majorities among others before they have met those that they were among
	WriteOn         Fault = "write-on"                 // when the disks have changed it is written on in the generation that there was
	ForgetStayed    Fault = "forget-stayed"            // a vote is given back without those that held one before the disks have changed
	PullUnasked     Fault = "pull-unasked"             // a disk becomes a mixture without a word from its source that it stays complete
	BeginUnheard    Fault = "begin-unheard"            // a disk that was there before begins the device, and nobody is told
	FenceInSync     Fault = "fence-in-sync"            // who is lost and was not in sync is not fenced
	ServeApart      Fault = "serve-apart"              // a primary without a disk, and without quorum, takes any disk for what it serves
	DetachUnnoted   Fault = "detach-unnoted"           // a disk that is detached does not know that the others go on
	DeafToRoll      Fault = "deaf-to-roll"             // a source does not hear from its target of a primary that it is not in contact with
	LeaveOnWay      Fault = "leave-on-way"             // a change that is on its way to a mixture is not sent to who came back meanwhile
	PassOver        Fault = "pass-over"                // a disk that is about to begin the device counts as one that has nothing
)

// All is every fault.
func All() []Fault {
	return []Fault{
		SkipLog, SkipReplicaLog, CoolEarly, AnswerEarly, Unsaved, ForgetMissed, ForgetUnflushed, ForgetAway, KeepMarks,
		SkipReconcile, DropEqual, CountAbsent, OutdatedCurrent, PromoteUnasked, VoteUnsynced, TrustStale, FlushHere, FlushUnsynced,
		AckEarly, ReadStale, Unordered, PullOvertaken, ClearEarly, ClearBehind, CoverFailed, YieldQuietly, TellUnsaved, VoidForeign, GiveUpOnce, GiveUpUnkept, SpareClients, ForgetServed, FlushAfterYield, PromoteApart,
		KeepVote, CountLeft, ReturnUnasked, ReadTail, TrustNewcomers, BearUnmarked,
		Unwitnessed, NoAccount, ServePast, ServeUnnoted, EndUnheard, EndUnreached, ZombieDiskless,
		AnswerAlone, DeafToFailed, AnswerFailed, ZombieTold, VoteTwice, ForgetFailed, TrustRegrouped, WriteOn, ForgetStayed, PullUnasked, BeginUnheard, FenceInSync, DetachUnnoted, ServeApart, DeafToRoll, LeaveOnWay, PassOver,
	}
}
