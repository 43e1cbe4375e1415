package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/block"
)

// Inspection is what a metadata file says, for people and scripts. Inspecting
// changes nothing.
type Inspection struct {
	Path       string
	InUse      bool            // open by a daemon: it may change while it is read
	Superblock Superblock      // the newest
	Slots      [sbSlots]string // what is in either place for one
	Clean      bool            // the last stop needs no recovery
	ExtentSize int64           // of the activity log
	Extents    int             // that can be hot
	Hot        []block.Extent  // what a recovery marks; empty if Clean
	Peers      []InspectedPeer // those of whom anything is known
	Problems   []string        // what is wrong; the next start makes up for it
}

// InspectedPeer is what is known of a peer.
type InspectedPeer struct {
	ID         int
	Flags      PeerFlags
	Generation uint64 // that its bitmap counts from
	OutOfSync  int64  // bytes
	Runs       int    // of blocks that differ
}

// Inspect reads the metadata file at path, of a device that is up or down. It
// fails with ErrCorrupt where a start would.
func Inspect(path string) (*Inspection, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open metadata %s: %w", path, plain(err))
	}
	defer f.Close()
	in, err := InspectFile(newOSFile(f), path)
	if err == nil {
		in.InUse = locked(f)
	}
	return in, err
}

// locked reports whether somebody has locked f. It keeps no lock, lest a daemon
// that starts now finds the file in use.
func locked(f *os.File) bool {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return errors.Is(err, syscall.EWOULDBLOCK)
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	return false
}

// InspectFile is Inspect for a file that is open already.
func InspectFile(f File, path string) (*Inspection, error) {
	img, err := readImage(f, path)
	if err != nil {
		return nil, err
	}
	in := &Inspection{
		Path: path, Superblock: *img.sb, Clean: img.sb.Flags&ALClean != 0,
		ExtentSize: img.sb.log.extent, Extents: img.sb.log.slots, Problems: img.problems,
	}
	for i, s := range img.slots {
		in.Slots[i] = s.describe(img.sb)
	}
	for _, x := range img.ring.hot {
		in.Hot = append(in.Hot, img.sb.log.extentAt(x))
	}
	in.inspectPeers(img)
	return in, nil
}

func (s sbSlot) describe(newest *Superblock) string {
	switch {
	case errors.Is(s.err, errBlank):
		return "never written"
	case s.err != nil:
		return "damaged: " + s.err.Error()
	case s.sb == newest:
		return "newest"
	}
	return fmt.Sprintf("older, change %d", s.sb.Seq)
}

func (in *Inspection) inspectPeers(img *image) {
	known := make(map[int]bool)
	for _, id := range img.sb.peers() {
		known[id] = true
	}
	for id, b := range img.bitmaps {
		if !known[id] && b.Count() == 0 {
			continue
		}
		p := InspectedPeer{ID: id, Flags: img.sb.PeerFlags[id], Generation: img.sb.Bitmap[id], OutOfSync: b.Count() * block.Unit}
		for range b.Runs(0) {
			p.Runs++
		}
		in.Peers = append(in.Peers, p)
	}
}

// Check reads the metadata file at path and returns what is wrong with it: an
// error where it cannot be used, else a list, empty if all is well.
func Check(path string) ([]string, error) {
	in, err := Inspect(path)
	if err != nil {
		return nil, err
	}
	return in.Problems, nil
}

// Dump writes what the metadata file at path says, as text.
func Dump(w io.Writer, path string) error {
	in, err := Inspect(path)
	if err != nil {
		return err
	}
	return in.Write(w)
}

// Dump writes what the metadata file says, as text. What is not durable yet is
// not in it.
func (m *Meta) Dump(w io.Writer) error {
	in, err := m.Inspect()
	if err != nil {
		return err
	}
	return in.Write(w)
}

// Write writes the inspection as text.
func (in *Inspection) Write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range in.rows() {
		fmt.Fprintf(tw, "%s\t%s\n", row[0], row[1])
	}
	fmt.Fprintln(tw)
	fmt.Fprintln(tw, "peer\tflags\tgeneration\tout of sync\truns")
	for _, p := range in.Peers {
		fmt.Fprintf(tw, "%d\t%s\t%016X\t%d bytes\t%d\n", p.ID, p.Flags, p.Generation, p.OutOfSync, p.Runs)
	}
	for _, e := range merged(in.Hot) {
		fmt.Fprintf(tw, "hot\t%d bytes at %d\n", e.Len, e.Off)
	}
	for _, p := range in.Problems {
		fmt.Fprintf(tw, "problem: %s\n", p)
	}
	return tw.Flush()
}

func (in *Inspection) rows() [][2]string {
	sb := &in.Superblock
	rows := [][2]string{
		{"metadata", in.Path},
		{"format level", fmt.Sprint(Level)},
		{"device", sb.Device},
		{"node id", fmt.Sprint(sb.NodeID)},
		{"size", fmt.Sprintf("%d bytes", sb.Size)},
		{"created", sb.Created.Format("2006-01-02 15:04:05Z07:00")},
		{"change", fmt.Sprint(sb.Seq)},
		{"superblock 0", in.Slots[0]},
		{"superblock 1", in.Slots[1]},
		{"flags", sb.Flags.String()},
		{"members", mask(sb.Members)},
		{"generation", fmt.Sprintf("%016X", sb.Current)},
		{"history", generations(sb.History[:])},
		{"activity log", fmt.Sprintf("%d extents of %d bytes, %s", in.Extents, in.ExtentSize, in.logState())},
	}
	if len(sb.Ext) > 0 {
		rows = append(rows, [2]string{"extension", fmt.Sprintf("%x", sb.Ext)})
	}
	if in.InUse {
		rows = append(rows, [2]string{"in use", "yes: what is below may be changing"})
	}
	return rows
}

func (in *Inspection) logState() string {
	if in.Clean {
		return "clean"
	}
	return fmt.Sprintf("in use: %d hot", len(in.Hot))
}

func mask(m uint32) string {
	var out []string
	for id := range Peers {
		if m&(1<<id) != 0 {
			out = append(out, fmt.Sprint(id))
		}
	}
	if out == nil {
		return "-"
	}
	return strings.Join(out, ",")
}

// generations lists ids up to the last that is set.
func generations(ids []uint64) string {
	for len(ids) > 0 && ids[len(ids)-1] == 0 {
		ids = ids[:len(ids)-1]
	}
	if len(ids) == 0 {
		return "-"
	}
	var out []string
	for _, id := range ids {
		out = append(out, fmt.Sprintf("%016X", id))
	}
	return strings.Join(out, " ")
}

// merged joins extents that touch; they are in order.
func merged(es []block.Extent) []block.Extent {
	var out []block.Extent
	for _, e := range es {
		if n := len(out); n > 0 && out[n-1].End() == e.Off {
			out[n-1].Len += e.Len
		} else {
			out = append(out, e)
		}
	}
	return out
}
