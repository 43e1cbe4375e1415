package store

import (
	"errors"
	"fmt"
	"io"
)

// image is what a metadata file holds, read without changing anything.
type image struct {
	slots    [sbSlots]sbSlot
	sb       *Superblock // the newest
	ring     logState    // meaningful where the stop was not clean
	bitmaps  [Peers]*Bitmap
	full     *page
	damaged  int      // sectors of bitmaps that were bad
	problems []string // what is wrong and can be made up for
}

// sbSlot is one place for a superblock.
type sbSlot struct {
	sb  *Superblock
	err error
}

// readImage reads a metadata file. It fails with ErrCorrupt where what it holds
// cannot be trusted.
func readImage(f File, path string) (*image, error) {
	img := &image{full: newFullPage()}
	if err := img.readSuperblocks(f, path); err != nil {
		return nil, err
	}
	if err := img.readRing(f, path); err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, ioError("size", path, 0, 0, err)
	}
	if want := metaBytes(img.sb.Size); size < want {
		return nil, &ErrCorrupt{path, fmt.Sprintf("it was cut off: it has %d of at least %d bytes", size, want)}
	}
	for i := range img.bitmaps {
		img.bitmaps[i] = newBitmap(i, img.full, img.sb.Size)
	}
	return img, img.readBitmaps(f, path)
}

// readPadded reads n bytes. What is beyond the end of the file reads as zeroes.
func readPadded(f File, path string, off, n int64) ([]byte, error) {
	buf := make([]byte, n)
	got, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, ioError("read", path, off, n, err)
	}
	clear(buf[got:])
	return buf, nil
}

// readSuperblocks takes the newest of the whole superblocks.
func (img *image) readSuperblocks(f File, path string) error {
	head, err := readPadded(f, path, sbOff, sbSlots*sbBytes)
	if err != nil {
		return err
	}
	for i := range img.slots {
		s := &img.slots[i]
		s.sb, s.err = decodeSuperblock(head[i*sbBytes:][:sbBytes])
		if s.err == nil && sbPlace(s.sb.Seq) != int64(sbOff+i*sbBytes) {
			s.err = fmt.Errorf("in the wrong place")
		}
		if s.err == nil && (img.sb == nil || s.sb.Seq > img.sb.Seq) {
			img.sb = s.sb
		}
	}
	if img.sb == nil {
		return &ErrCorrupt{path, fmt.Sprintf("neither superblock is whole: the first: %v; the second: %v",
			img.slots[0].err, img.slots[1].err)}
	}
	for i, s := range img.slots {
		blank := errors.Is(s.err, errBlank) && img.sb.Seq == 1
		if s.err != nil && !blank {
			img.problems = append(img.problems, fmt.Sprintf(
				"superblock %d is not whole (%v), as after a write cut short; the other one counts", i, s.err))
		}
	}
	return nil
}

// readRing finds what was hot at an unclean stop, and makes sure that the
// superblock is not older than the log. Whatever the length of the ring, its
// first blocks are among the first of any other.
func (img *image) readRing(f File, path string) error {
	ring, err := readPadded(f, path, logOff, int64(img.sb.log.blocks())*logBlockBytes)
	if err != nil {
		return err
	}
	if provesStale(img.sb, ring) {
		return &ErrCorrupt{path, "its newest superblock is lost: the activity log was written under one newer than those left"}
	}
	if img.sb.Flags&ALClean != 0 {
		return nil
	}
	img.ring = replayRing(img.sb.log, ring)
	if img.ring.damage != "" {
		img.problems = append(img.problems, "the activity log is damaged, so all blocks are in doubt: "+img.ring.damage)
	}
	if img.ring.torn > 0 {
		img.problems = append(img.problems, fmt.Sprintf(
			"the last %d blocks of the activity log are not whole, as after a write cut short; what they were to permit was never begun", img.ring.torn))
	}
	return nil
}

// readBitmaps reads the pages of all bitmaps that are not holes.
func (img *image) readBitmaps(f File, path string) error {
	end := metaBytes(img.sb.Size)
	buf := make([]byte, slotBytes)
	for off := int64(bitmapOff); off < end; {
		start, stop, err := f.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return ioError("map", path, off, 0, err)
		}
		start = start / pageBytes * pageBytes
		stop = min((stop+pageBytes-1)/pageBytes*pageBytes, end)
		for off = max(off, start); off < stop; {
			n := min(stop-off, slotBytes-(off-bitmapOff)%slotBytes)
			if _, err := f.ReadAt(buf[:n], off); err != nil {
				return ioError("read", path, off, n, err)
			}
			img.takePages(off, buf[:n])
			off += n
		}
	}
	if img.damaged > 0 {
		img.problems = append(img.problems, fmt.Sprintf(
			"%d sectors of bitmaps are damaged; all blocks that they cover count as different", img.damaged))
	}
	return nil
}

// takePages puts pages of one bitmap, read at off, into it.
func (img *image) takePages(off int64, raw []byte) {
	rel := off - bitmapOff
	slot := int(rel % groupBytes / slotBytes)
	index := rel/groupBytes*groupPages + rel%slotBytes/pageBytes
	for ; len(raw) >= pageBytes; raw = raw[pageBytes:] {
		if !allZero(raw[:pageBytes]) {
			p, damaged := decodePage(pageID{slot, index}, raw[:pageBytes])
			img.damaged += damaged
			img.bitmaps[slot].load(index, p, damaged > 0)
		}
		index++
	}
}
