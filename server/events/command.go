package events

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Command is one program to run for an event.
type Command struct {
	Argv  []string // the program and its arguments; there is no shell
	Env   []string // NAME=VALUE, to be added to a small fixed environment
	Stdin []byte   // the event as JSON, one line
}

// Result is how a command ended.
type Result struct {
	Status int    // exit status; -1 where a signal ended it
	Text   string // the end in words, "exit status 3", "killed (time limit)"
}

// Runner starts programs for the engine. The daemon gives the real one, which
// runs them as supervised children.
type Runner interface {
	// Run runs the command and returns when it has ended. When ctx ends it
	// ends the whole process group first. The error is for a command that
	// could not be started or was ended by ctx; an exit status other than 0
	// is none.
	Run(ctx context.Context, cmd Command) (Result, error)
}

// CommandFor is the command that tells a program of an event: as JSON on
// standard input, and in variables LOCKSTEP_EVENT, _SEQ, _TIME, _NODE,
// _DEVICE, _TEXT, and _DATA_KEY for each of the event's data that is one
// value.
func CommandFor(argv []string, e Event) (Command, error) {
	stdin, err := json.Marshal(e)
	if err != nil {
		return Command{}, fmt.Errorf("cannot encode event %d: %w", e.Seq, err)
	}
	env := []string{
		"LOCKSTEP_EVENT=" + e.Type,
		"LOCKSTEP_SEQ=" + strconv.FormatUint(e.Seq, 10),
		"LOCKSTEP_TIME=" + e.Time.Format(time.RFC3339Nano),
		"LOCKSTEP_NODE=" + e.Node,
		"LOCKSTEP_DEVICE=" + e.Device,
		"LOCKSTEP_TEXT=" + e.Text,
	}
	for _, key := range slices.Sorted(maps.Keys(e.Data)) {
		switch v := e.Data[key].(type) {
		case string, bool, int, int32, int64, uint, uint32, uint64, float64, fmt.Stringer:
			env = append(env, "LOCKSTEP_DATA_"+variable(key)+"="+fmt.Sprint(v))
		}
	}
	for i, s := range env {
		env[i] = strings.ReplaceAll(s, "\x00", "")
	}
	return Command{Argv: slices.Clone(argv), Env: env, Stdin: append(stdin, '\n')}, nil
}

// variable is key as part of a variable's name.
func variable(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}
