package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes. In the file it is an integer or a string with a
// unit: "1GiB", "512 MiB", "1TB".
type Size int64

// sizeUnits is ordered so that String finds the largest binary unit first.
var sizeUnits = []struct {
	name string
	mult int64
}{
	{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3},
	{"B", 1},
}

// binaryUnits is how many entries of sizeUnits String may use.
const binaryUnits = 5

// ParseSize reads a size such as "1GiB".
func ParseSize(s string) (Size, error) {
	number := strings.TrimSpace(s)
	mult := int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, mult = strings.TrimSpace(rest), u.mult
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		if errors.Is(err, strconv.ErrRange) {
			return 0, fmt.Errorf("size %q is too large", s)
		}
		return 0, fmt.Errorf("size %q is not a whole number with a unit", s)
	}
	if int64(n) > math.MaxInt64/mult {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return Size(int64(n) * mult), nil
}

// String is the size with the largest binary unit that divides it.
func (s Size) String() string {
	if s > 0 {
		for _, u := range sizeUnits[:binaryUnits] {
			if int64(s)%u.mult == 0 {
				return strconv.FormatInt(int64(s)/u.mult, 10) + u.name
			}
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// Rate is a number of bytes per second; RateAuto lets the engine choose.
type Rate int64

// RateAuto adapts the rate to what the application leaves free.
const RateAuto Rate = 0

// ParseRate reads "auto" or a rate such as "200MiB/s".
func ParseRate(s string) (Rate, error) {
	if s == "auto" {
		return RateAuto, nil
	}
	size, ok := strings.CutSuffix(strings.TrimSpace(s), "/s")
	if !ok {
		return 0, fmt.Errorf("rate %q has no \"/s\"", s)
	}
	n, err := ParseSize(size)
	if err != nil {
		return 0, fmt.Errorf("rate %q: %w", s, err)
	}
	if n == 0 {
		return 0, fmt.Errorf("rate %q is zero", s)
	}
	return Rate(n), nil
}

// String is "auto" or the rate with its unit.
func (r Rate) String() string {
	if r == RateAuto {
		return "auto"
	}
	return Size(r).String() + "/s"
}

// Protocol says when a write is acknowledged: A when it is sent, B when the
// peer has received it, C when the peer has written it.
type Protocol string

// The protocols.
const (
	ProtocolA Protocol = "A"
	ProtocolB Protocol = "B"
	ProtocolC Protocol = "C"
)

// Quorum is how many nodes of a device must be in touch for it to be written:
// a count, or one of the negative policies below. The zero value is off.
type Quorum int

// The quorum policies that are not a count.
const (
	QuorumOff      Quorum = 0
	QuorumMajority Quorum = -1
	QuorumAll      Quorum = -2
)

// ParseQuorum reads off, majority, all or a count.
func ParseQuorum(s string) (Quorum, error) {
	switch s {
	case "off":
		return QuorumOff, nil
	case "majority":
		return QuorumMajority, nil
	case "all":
		return QuorumAll, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("quorum %q is neither off, majority, all nor a count", s)
	}
	return Quorum(n), nil
}

// String is the policy as it is written in the file.
func (q Quorum) String() string {
	switch q {
	case QuorumOff:
		return "off"
	case QuorumMajority:
		return "majority"
	case QuorumAll:
		return "all"
	}
	return strconv.Itoa(int(q))
}

// Needed is how many of a device's nodes, this one included, must be in touch.
func (q Quorum) Needed(nodes int) int {
	switch q {
	case QuorumMajority:
		return nodes/2 + 1
	case QuorumAll:
		return nodes
	}
	return int(q)
}

// Names is a list that may be written as one string where it has one entry.
type Names []string

// Secret is the cluster's cookie. It never shows in output of any kind; only
// Reveal gives it out.
type Secret struct{ b []byte }

const redacted = "[secret]"

// NewSecret keeps a copy of b as a secret.
func NewSecret(b []byte) Secret { return Secret{b: append([]byte(nil), b...)} }

// Reveal returns a copy of the secret's bytes, nil where there is none.
func (s Secret) Reveal() []byte { return append([]byte(nil), s.b...) }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return len(s.b) == 0 }

// String never shows the secret.
func (s Secret) String() string { return redacted }

// GoString never shows the secret.
func (s Secret) GoString() string { return redacted }

// Format never shows the secret, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON never shows the secret.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// MarshalText never shows the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue never shows the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
