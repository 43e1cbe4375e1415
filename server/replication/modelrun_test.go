package replication

import (
	options "flag" // flag is a function of the package
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

var (
	modelDepth = options.Int("model.depth", 0, "how many steps the search of the model goes beyond what is usual")
	modelWalks = options.Int("model.walks", 84, "how many histories of the model are made at random, of each kind")
	modelSeed  = options.Uint64("model.seed", 1, "of these")
)

func newModel(n int, kind QuorumKind, f fault) *model {
	m := &model{n: n, policy: QuorumPolicy{Kind: kind}, fault: f, rules: map[string]int{}, highest: 12}
	if kind == QuorumCount {
		m.policy.N = n / 2 // of which two need not share a node
	}
	return m
}

func report(t *testing.T, lines []string, bad, format string, args ...any) {
	t.Helper()
	t.Errorf(format+": %s\n%s", append(args, bad, strings.Join(lines, "\n"))...)
}

// TestModel goes through every history of ten steps of two nodes, and of seven of
// three: 660,000 states in all. -model.depth goes deeper; each step further takes two
// to four times as long. What is in reach of so few steps is less than it seems, as
// each counts as one that a message takes, or a disk: TestModelWalk goes far, and
// this one leaves nothing out.
func TestModel(t *testing.T) {
	depth := [most]int{2: 10, 3: 7}
	for _, kind := range []QuorumKind{QuorumMajority, QuorumOff} {
		for n := 2; n <= 3; n++ {
			m := newModel(n, kind, noFault)
			for k, first := range m.firsts() {
				d := depth[n] + *modelDepth
				if testing.Short() {
					d -= 2
				}
				states, lines, bad := m.search(first, d)
				if bad != "" {
					report(t, lines, bad, "%d nodes, quorum %v, beginning %d", n, m.policy, k)
				}
				t.Logf("%d nodes, quorum %v, beginning %d: %d states within %d steps", n, m.policy, k, states, d)
			}
		}
	}
}

// beyond is the rules that no history of the model comes to, and why.
var beyond = map[string]string{
	"no-disk":  "every node has a disk",
	"size":     "of one size",
	RuleOrigin: "of one origin",
	"discard":  "no administrator discards anything",
	"crossed":  "no generation comes before itself",
}

// rivals is a history of four nodes in which a primary that has lost quorum meets
// one that follows another, which is too rare to be come to at random.
const rivals = `promote 0, cut 2 0, announce 0, note 0 1, note 0 3, take 0, demote 0, promote 1, crash 0,
	announce 1, note 1 3, cut 3 1, boot 0, meet 1 0, meet 3 0, crash 2, meet 3 1, pull 3, join 3 1,
	source done 3 1, target done 3 1, cut 1 0, cut 3 1, boot 2, meet 3 0, meet 3 2, promote 3, meet 2 1`

// TestModelWalk makes long histories of two to four nodes at random. When each has
// come to its end the nodes are brought together again, and must come to hold the
// same. Together the histories come to every rule that Decide has.
func TestModelWalk(t *testing.T) {
	rules := map[string]int{}
	for _, kind := range []QuorumKind{QuorumMajority, QuorumOff, QuorumAll, QuorumCount} {
		for n := 2; n <= 4; n++ {
			m := newModel(n, kind, noFault)
			m.rules = rules
			r := rand.New(rand.NewPCG(*modelSeed, uint64(n)))
			firsts := m.firsts()
			for k := range *modelWalks {
				m.late = k/len(firsts)%2 == 1
				last, lines, bad := m.walk(r, firsts[k%len(firsts)], 150)
				if bad == "" && !m.late {
					lines = append(lines, "-- all is well from here on")
					bad = m.recover(last, func(s string) { lines = append(lines, s) })
				}
				if bad != "" {
					report(t, lines, bad, "%d nodes, quorum %v, beginning %d, late %v", n, m.policy, k%len(firsts), m.late)
					break
				}
			}
		}
	}
	m := newModel(4, QuorumMajority, noFault)
	m.rules = rules
	if _, _, bad := m.follow(m.warm(), rivals); bad != "" {
		t.Error(bad)
	}
	t.Log(rules)
	named, suffixes := rulesIn(t, "decide.go")
	for rule := range named {
		if _, out := beyond[rule]; (rules[rule] == 0) != out {
			t.Errorf("rule %q decided %d times", rule, rules[rule])
		}
	}
	for _, s := range suffixes {
		if rules["moved-on"+s] == 0 {
			t.Errorf("no rule that ends in %q decided", s)
		}
	}
	if rules[reachesMixture] == 0 {
		t.Error("no bitmap reached back to a mixture")
	}
}

// known are histories that go wrong with a fault, and are too rare to be come to
// at random.
var known = map[fault]struct {
	first int
	steps string
}{
	copyComplete: {4, `crash 1, crash 0, boot 1, meet 2 1, promote 1, announce 1, note 1 2, take 1, commit 1 2,
		issue 1 1, land 1, boot 0, meet 1 0, crash 2, answer 1, demote 1, boot 2, meet 2 1, crash 0, promote 1,
		boot 0, meet 2 0, meet 1 0, demote 1, pull 0, pull 0, crash 1`},
	endUnreached: {2, `crash 2, meet 1 0, boot 2, promote 1, announce 1, note 1 0, crash 1, crash 0, boot 1, boot 0,
		meet 1 0, pull 1, join 1 0, copy 1 1 0, copy 0 1 0, meet 2 0, pull 2, source done 1 0, target done 1 0,
		crash 1, join 2 0, copy 0 2 0, copy 1 2 0, boot 1, meet 1 0, promote 1, announce 1, note 1 0, take 1,
		source done 2 0, target done 2 0, commit 1 0, issue 0 1, land 1, arrive 1 0, answer 1, demote 1`},
	forgetPast: {1, `meet 2 1, meet 2 0, promote 0, meet 1 0, announce 0, note 0 1, cut 2 0, cut 1 0, meet 1 0,
		meet 2 0, take 0, cut 2 1, pull 1, announce 0, meet 2 1, note 0 1, meet 1 0, meet 1 0, cut 2 1, meet 2 0,
		pull 2, cut 2 0, meet 2 1, meet 2 0, meet 2 1, meet 2 1, meet 2 1, meet 1 0, take 0, meet 2 1, announce 0,
		pull 2, join 2 0, pull 1, source done 2 0, target done 2 0, meet 1 0, cut 2 1, meet 1 0, meet 1 0, note 0 2,
		pull 1, join 1 0, meet 2 0, crash 2, source done 1 0, take 0, boot 2, meet 2 0, announce 0, meet 2 0,
		crash 2, note 0 1, target done 1 0, demote 0, meet 1 0`},
}

// quorumOf is what those histories need, where that is not the usual.
var quorumOf = map[fault]QuorumKind{forgetPast: QuorumOff}

// follow takes steps by their names until one cannot be taken or goes wrong.
func (m *model) follow(c cluster, steps string) (last cluster, taken int, bad string) {
	for step := range strings.SplitSeq(strings.Join(strings.Fields(steps), " "), ", ") {
		var w *play
		for k := range moves {
			var i, j int
			rest, ok := strings.CutPrefix(step, moves[k].what+" ")
			if n, _ := fmt.Sscan(rest, &i, &j); !ok || moves[k].pair != (n == 2) || n == 0 {
				continue
			} else if n == 1 {
				j = i
			}
			w = moves[k].try(m, &c, i, j)
		}
		if w == nil {
			return c, taken, ""
		}
		if taken++; w.bad != "" {
			return w.cluster, taken, w.bad
		}
		c = w.cluster
	}
	return c, taken, ""
}

// TestModelCatchesFaults: each deliberate mistake in how the package is used leads
// to a history that goes wrong.
func TestModelCatchesFaults(t *testing.T) {
	for f := noFault + 1; f < faults; f++ {
		t.Run(f.String(), func(t *testing.T) {
			if h, ok := known[f]; ok {
				kind := QuorumMajority
				if k, ok := quorumOf[f]; ok {
					kind = k
				}
				m := newModel(3, kind, f)
				if _, taken, bad := m.follow(m.firsts()[h.first], h.steps); bad == "" {
					t.Errorf("not caught: %d steps were taken, and nothing went wrong", taken)
				}
				m.fault = noFault
				if _, _, bad := m.follow(m.firsts()[h.first], h.steps); bad != "" {
					t.Errorf("without the fault: %s", bad)
				}
				return
			}
			r := rand.New(rand.NewPCG(7, uint64(f)))
			for k := range 400 {
				m := newModel(3-k%2, []QuorumKind{QuorumMajority, QuorumOff}[k/2%2], f)
				firsts := m.firsts()
				if _, lines, bad := m.walk(r, firsts[k/4%len(firsts)], 100); bad != "" {
					t.Logf("history %d, %d steps: %s", k, len(lines), bad)
					return
				}
			}
			t.Error("not caught")
		})
	}
}
