package store

import (
	"encoding/binary"
	"fmt"
)

// migration brings a metadata file from one format level to the next. It may
// be cut short at any point and begun again, so it writes the superblock of the
// new level last, as any other superblock is written: with the next sequence
// number, to the other slot. Every level keeps the superblock's magic, level,
// checksum and sequence number where they are.
type migration struct {
	from  uint32
	apply func(f File) error
}

// migrations lists the ways up to Level. Level 1 is the first.
func migrations() []migration { return nil }

// migrate brings a metadata file to the target level. A file that has no whole superblock is left to whoever reads it.
func migrate(f File, path string, target uint32, list []migration) error {
	for {
		level, err := fileLevel(f, path)
		switch {
		case err != nil:
			return err
		case level == 0 || level == target:
			return nil
		case level > target:
			return fmt.Errorf("metadata %s has format level %d, this version knows up to %d: %w; run that version",
				path, level, target, ErrTooNew)
		}
		if err := migrateFrom(f, path, level, list); err != nil {
			return err
		}
	}
}

func migrateFrom(f File, path string, level uint32, list []migration) error {
	for _, m := range list {
		if m.from != level {
			continue
		}
		if err := m.apply(f); err != nil {
			return fmt.Errorf("cannot bring metadata %s from format level %d to the next: %w", path, level, err)
		}
		now, err := fileLevel(f, path)
		if err == nil && now <= level {
			err = fmt.Errorf("cannot bring metadata %s from format level %d to the next: it is at %d", path, level, now)
		}
		return err
	}
	return &ErrCorrupt{path, fmt.Sprintf("it has format level %d, which never was", level)}
}

// fileLevel is the level of the newest whole superblock, 0 if there is none.
func fileLevel(f File, path string) (uint32, error) {
	head, err := readPadded(f, path, sbOff, sbSlots*sbBytes)
	if err != nil {
		return 0, err
	}
	newest, level := uint64(0), uint32(0)
	for i := range sbSlots {
		raw := head[i*sbBytes:][:sbBytes]
		l, err := superblockLevel(raw)
		if seq := binary.LittleEndian.Uint64(raw[sbSeq:]); err == nil && seq >= newest {
			newest, level = seq, l
		}
	}
	return level, nil
}
