package unixsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Of the kernel's access control lists, as stored in an extended attribute.
const (
	aclName    = "system.posix_acl_access"
	aclVersion = 2
	aclNobody  = ^uint32(0) // the id of entries that need none

	aclUserObj  = 0x01
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// Admit lets the members of these groups connect to the socket at path, beside
// those whom its mode lets, and nobody whom an earlier call let. It needs a file
// system that keeps access control lists, as those of rundirs do.
func Admit(path string, gids []uint32) error {
	if len(gids) == 0 {
		if err := unix.Removexattr(path, aclName); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return &os.PathError{Op: "removexattr", Path: path, Err: err}
		}
		return nil
	}
	if err := unix.Setxattr(path, aclName, acl(gids), 0); err != nil {
		return fmt.Errorf("cannot let groups connect to %s: %w", path, err)
	}
	return nil
}

// acl is the list that gives owner and groups everything and others nothing.
func acl(gids []uint32) []byte {
	const everything = 7
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	entry := func(tag, perm uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	entry(aclUserObj, everything, aclNobody)
	entry(aclGroupObj, everything, aclNobody)
	for _, id := range slices.Compact(slices.Sorted(slices.Values(gids))) {
		entry(aclGroup, everything, id)
	}
	entry(aclMask, everything, aclNobody)
	entry(aclOther, 0, aclNobody)
	return b
}
