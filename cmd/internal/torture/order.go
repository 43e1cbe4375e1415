package torture

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// An Order tells a machine what to do: attach, make a file system if asked
// for, check what must be in it, and write until it dies.
type Order struct {
	Module  string // the kernel module of the NBD client
	Net     string // the machine's address, with the length of its prefix
	Host    string // of the NBD server
	Port    string
	Export  string
	Again   bool // give the kernel another connection when it loses the one it has
	Seed    uint64
	Format  bool
	Options string // of the mount
	Expect  []Kept // what must be there, for each writer
	Halt    bool   // do not write: check, and end in order
}

// Kept is what a writer's fsyncs have promised.
type Kept struct {
	Files []int // these are there, whole
	Gen   int   // the file that is replaced again and again is of this generation or a later one
	Next  int   // no file with this number or a later one was ever written
}

// Read reads an order from a file.
func Read(path string) (*Order, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	o := new(Order)
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("read the order %s: %w", path, err)
	}
	return o, nil
}

// Dir, File and Current are the paths below a mount point of a writer's
// folder, of one of its files, and of the one that it replaces.
func Dir(mount string, writer int) string { return filepath.Join(mount, fmt.Sprintf("w%d", writer)) }

// File is a file that is written once.
func File(mount string, writer, n int) string {
	return filepath.Join(Dir(mount, writer), fmt.Sprintf("f%d", n))
}

// Current is the file that is replaced by a rename.
func Current(mount string, writer int) string { return filepath.Join(Dir(mount, writer), "current") }

// maxFile is the size of the largest file.
const maxFile = 256 << 10

// Content is what a writer's nth file holds: noise of some length that can be
// made again.
func Content(seed uint64, writer, n int) []byte {
	var key [32]byte
	for i, v := range []uint64{seed, uint64(writer), uint64(n)} {
		binary.LittleEndian.PutUint64(key[8*i:], v)
	}
	noise := rand.NewChaCha8(key)
	b := make([]byte, 1+noise.Uint64()%maxFile)
	_, _ = noise.Read(b) // never fails
	return b
}

// Generation is what the replaced file holds: its generation, then noise.
func Generation(seed uint64, writer, gen int) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(gen)), Content(seed, writer, -gen)...)
}

// Check holds a mounted file system against an order and returns how many
// files were whole; the error lists all that is wrong.
func (o *Order) Check(mount string) (whole int, err error) {
	var all []error
	for w, k := range o.Expect {
		for _, n := range k.Files {
			got, err := os.ReadFile(File(mount, w, n))
			switch {
			case err != nil:
				all = append(all, fmt.Errorf("an fsynced file is lost: %w", err))
			case !bytes.Equal(got, Content(o.Seed, w, n)):
				all = append(all, fmt.Errorf("an fsynced file is damaged: %s", differ(File(mount, w, n), got, Content(o.Seed, w, n))))
			default:
				whole++
			}
		}
		if k.Gen == 0 {
			continue
		}
		if err := o.checkCurrent(Current(mount, w), w, k.Gen); err != nil {
			all = append(all, err)
			continue
		}
		whole++
	}
	return whole, errors.Join(all...)
}

func (o *Order) checkCurrent(path string, w, least int) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("a replaced file is lost: %w", err)
	}
	if len(got) < 8 {
		return fmt.Errorf("a replaced file is damaged: %s has %d bytes: %w", path, len(got), io.ErrUnexpectedEOF)
	}
	gen := int(binary.LittleEndian.Uint64(got))
	if gen < least || gen > least+1<<20 {
		return fmt.Errorf("%s is of generation %d; %d was fsynced", path, gen, least)
	}
	if want := Generation(o.Seed, w, gen); !bytes.Equal(got, want) {
		return fmt.Errorf("a replaced file is damaged: %s", differ(path, got, want))
	}
	return nil
}

// differ says where content is wrong.
func differ(path string, got, want []byte) string {
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Sprintf("%s has %d bytes of %d and differs from byte %d on", path, len(got), len(want), at)
}
