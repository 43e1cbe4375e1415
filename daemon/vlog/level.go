package vlog

import (
	"log/slog"
	"strings"
)

// Level is a severity, the most severe first. A module whose level for a
// destination is L writes there what is at least as severe as L.
type Level int32

// The levels of Open vSwitch.
const (
	Off Level = iota
	Emer
	Err
	Warn
	Info
	Debug
	numLevels
)

var levelNames = [numLevels]string{"OFF", "EMER", "ERR", "WARN", "INFO", "DBG"}

// String returns the name as shown: "WARN".
func (l Level) String() string {
	if l < 0 || l >= numLevels {
		return "?"
	}
	return levelNames[l]
}

// ParseLevel finds a level by name, in any case.
func ParseLevel(name string) (Level, bool) {
	for l, n := range levelNames {
		if strings.EqualFold(n, name) {
			return Level(l), true
		}
	}
	return 0, false
}

// SlogEmergency is the slog level for messages about the end of the program.
const SlogEmergency = slog.LevelError + 4

// fromSlog maps the levels of log/slog.
func fromSlog(l slog.Level) Level {
	switch {
	case l >= SlogEmergency:
		return Emer
	case l >= slog.LevelError:
		return Err
	case l >= slog.LevelWarn:
		return Warn
	case l >= slog.LevelInfo:
		return Info
	}
	return Debug
}

// syslog returns the severity that syslog and the journal use.
func (l Level) syslog() int { return [numLevels]int{7, 1, 3, 4, 6, 7}[l] }

// Destination is where a message can go.
type Destination int

// The destinations of Open vSwitch.
const (
	Syslog Destination = iota
	Console
	File
	numDestinations
	anyDestination
)

var destinationNames = [numDestinations]string{"SYSLOG", "CONSOLE", "FILE"}

// String returns the name as shown: "CONSOLE".
func (d Destination) String() string {
	if d < 0 || d >= numDestinations {
		return "ANY"
	}
	return destinationNames[d]
}

// parseDestination finds a destination by name, in any case.
func parseDestination(name string) (Destination, bool) {
	for d, n := range destinationNames {
		if strings.EqualFold(n, name) {
			return Destination(d), true
		}
	}
	return 0, false
}
