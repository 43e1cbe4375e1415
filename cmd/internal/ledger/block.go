package ledger

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Unit is the size of a block in bytes.
const Unit = 4096

// A block: magic, seed, number, generation, CRC32C of the rest, and noise.
const (
	magic   = 0x6c6f636b73746570
	offSeed = 8
	offUnit = 16
	offGen  = 24
	offCRC  = 28
	header  = 32
)

// stamp fills b, which is one block.
func stamp(b []byte, seed uint64, unit int64, gen uint32) {
	binary.LittleEndian.PutUint64(b, magic)
	binary.LittleEndian.PutUint64(b[offSeed:], seed)
	binary.LittleEndian.PutUint64(b[offUnit:], uint64(unit))
	binary.LittleEndian.PutUint32(b[offGen:], gen)
	// An xorshift sequence: content that neither compresses to nothing nor repeats from one write to the next.
	x := seed ^ uint64(unit)<<20 ^ uint64(gen) | 1
	for i := header; i < Unit; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint32(b[offCRC:], checksum(b))
}

func checksum(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(b[:offCRC], table), table, b[header:])
}

// read returns the generation of a block; 0 is a block of zeroes, one that was never written.
func read(b []byte, seed uint64, unit int64) (gen uint32, err error) {
	if allZero(b) {
		return 0, nil
	}
	if m := binary.LittleEndian.Uint64(b); m != magic {
		return 0, fmt.Errorf("block %d holds foreign data, beginning % x", unit, b[:16])
	}
	gen = binary.LittleEndian.Uint32(b[offGen:])
	if sum := binary.LittleEndian.Uint32(b[offCRC:]); sum != checksum(b) {
		return 0, fmt.Errorf("block %d is torn: it says generation %d, its checksum is wrong", unit, gen)
	}
	if s := binary.LittleEndian.Uint64(b[offSeed:]); s != seed {
		return 0, fmt.Errorf("block %d is of another run (seed %d)", unit, s)
	}
	if u := binary.LittleEndian.Uint64(b[offUnit:]); u != uint64(unit) {
		return 0, fmt.Errorf("block %d holds block %d", unit, u)
	}
	return gen, nil
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	return true
}
