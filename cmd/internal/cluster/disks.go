package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// SameDisks compares a device's disks on all nodes byte by byte and says where
// they differ. Nothing may be writing to the device.
func (c *Cluster) SameDisks(device string) error {
	for _, n := range c.Nodes[1:] {
		if err := sameFiles(c.Nodes[0].Disk(device), n.Disk(device)); err != nil {
			return fmt.Errorf("the disks of %s on %s and %s: %w", device, c.Nodes[0].Name, n.Name, err)
		}
	}
	return nil
}

// sameFiles compares two files; an error says how many blocks of 4 KiB differ and where the first is.
func sameFiles(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	const chunk, block = 1 << 20, 4096
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	differ, first := 0, int64(-1)
	for off := int64(0); ; off += chunk {
		na, errA := readFull(fa, bufA)
		nb, errB := readFull(fb, bufB)
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		if na != nb {
			return fmt.Errorf("have different sizes: one ends at %d", off+int64(min(na, nb)))
		}
		for i := 0; i < na && !bytes.Equal(bufA[:na], bufB[:nb]); i += block {
			if end := min(i+block, na); !bytes.Equal(bufA[i:end], bufB[i:end]) {
				if differ++; first < 0 {
					first = off + int64(i)
				}
			}
		}
		if na < chunk {
			break
		}
	}
	if differ > 0 {
		return fmt.Errorf("differ in %d blocks of 4 KiB, first at byte %d", differ, first)
	}
	return nil
}

// readFull fills buf as far as the file goes.
func readFull(f *os.File, buf []byte) (int, error) {
	n, err := io.ReadFull(f, buf)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}
