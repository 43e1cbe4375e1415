// Package store keeps a device's content and what is known about it on stable
// storage: the disk (a backing file or block device), and the metadata file
// with its superblock, dirty bitmaps and activity log.
//
// # The invariant
//
// At any instant every block that may differ from a peer's is covered on
// stable storage by a bit in that peer's bitmap or by a hot extent of the
// activity log. Who writes keeps it so:
//
//  1. Before a write is submitted to the disk, ActivityLog.TryBegin (or
//     Activate) has made every extent it touches hot, durably.
//  2. Where a peer misses the write, Bitmap.Set is called before
//     ActivityLog.End. The bit needs no I/O: the extent is hot.
//  3. End names the epoch of the write. The extent stays hot until SetStable
//     says that the epoch is durable on every replica that counts as in sync;
//     a peer that is lost before gets its bits set before SetStable.
//  4. An extent goes cold only in a transaction that was preceded, durably, by
//     the bitmap pages that cover it.
//  5. Bits that are set for other reasons than a write under way (a full sync,
//     another replica's bits) count once WriteBitmaps has returned.
//  6. Bitmap.Clear is called when the peer's copy is durable, not before. A
//     cleared bit that comes back after a crash costs a little resync.
//
// After an unclean stop Meta.Recover turns the hot extents into bits.
//
// # The metadata file
//
// All integers are little endian, all checksums CRC32C.
//
//	0      superblock, slot 0
//	4 Ki   superblock, slot 1
//	16 Ki  activity log, a ring of 4 KiB blocks
//	1 Mi   bitmaps, in groups of 32 × 256 KiB: one run of 64 pages per peer
//
// The superblock is written to the slot that does not hold the newest copy, so
// that a torn write leaves the previous one. The two slots never both change
// between two syncs.
//
// An activity log block lists which slots of the log changed and, in turn, a
// window of slots that did not, so that a few consecutive blocks describe the
// whole log. It names the last block known to be durable when it was written:
// a hole behind that one is damage, a hole after it a write cut short.
//
// A bitmap page is eight sectors of 512 bytes, each with its own checksum, so
// that a page torn between sectors is still a page of valid sectors, each old
// or new. A sector that is neither reads as all ones. A sector of zeroes is a
// sector without bits; pages without bits are holes in the file.
package store
