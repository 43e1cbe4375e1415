package vlog

import (
	"encoding/json"
	"fmt"
)

// state is what a restart of the program must not lose.
type state struct {
	Defaults [numDestinations]string            `json:"defaults"`
	Modules  map[string][numDestinations]string `json:"modules"`
	Limits   []string                           `json:"unlimited,omitempty"` // modules without rate limits
	Patterns [numDestinations]string            `json:"patterns"`
	JSON     [numDestinations]bool              `json:"json"`
	Facility int                                `json:"facility"`
}

// Save returns levels, patterns, formats and rate limits, for Restore in another process.
func (v *Vlog) Save() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := state{Modules: map[string][numDestinations]string{}, Patterns: v.patterns, JSON: v.json, Facility: v.facility}
	for d, l := range v.defaults {
		s.Defaults[d] = l.String()
	}
	for name, m := range v.modules {
		var levels [numDestinations]string
		for d := range numDestinations {
			levels[d] = m.level(d).String()
		}
		s.Modules[name] = levels
		if !m.limited.Load() {
			s.Limits = append(s.Limits, name)
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		return nil // strings, numbers and booleans: it can't happen
	}
	return data
}

// Restore takes what Save returned, all or nothing.
func (v *Vlog) Restore(data []byte) error {
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("cannot restore log levels: %w", err)
	}
	defaults, err := parseLevels(s.Defaults)
	if err != nil {
		return err
	}
	modules := map[string][numDestinations]Level{}
	for name, names := range s.Modules {
		if modules[name], err = parseLevels(names); err != nil {
			return err
		}
	}
	v.mu.Lock()
	v.defaults, v.patterns, v.json, v.facility = defaults, s.Patterns, s.JSON, s.Facility&0x1f
	v.mu.Unlock()
	for name, levels := range modules {
		m := v.module(name)
		for d, l := range levels {
			m.levels[d].Store(int32(l))
		}
	}
	for _, name := range s.Limits {
		v.module(name).limited.Store(false)
	}
	return nil
}

func parseLevels(names [numDestinations]string) (levels [numDestinations]Level, err error) {
	for d, name := range names {
		l, ok := ParseLevel(name)
		if !ok {
			return levels, fmt.Errorf("cannot restore log levels: no level %q", name)
		}
		levels[d] = l
	}
	return levels, nil
}
