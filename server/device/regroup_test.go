package device

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// TestWhichDisksRememberTheOthers: a disk that was current among others, or has had some of
// their data, remembers them when the configuration gives the device to other disks. A
// new one has nobody to remember.
func TestWhichDisksRememberTheOthers(t *testing.T) {
	const gen = replication.Gen(7 << 48)
	all, fewer := replication.Of(0, 1, 2), []Node{{ID: 0, Name: "n0"}, {ID: 2, Name: "n2"}}
	for _, x := range []struct {
		what    string
		flags   store.Flags
		current replication.Gen
		want    []replication.NodeSet
	}{
		{"new", 0, replication.DayOne, nil},
		{"current from the beginning", store.Member, replication.DayOne, []replication.NodeSet{all}},
		{"with some of the data", 0, gen, []replication.NodeSet{all}},
	} {
		meta, err := store.OpenMeta(filepath.Join(t.TempDir(), "r0.meta"), store.MetaOptions{
			Device: "r0", Create: true, Size: 1 << 20,
			Init: func(sb *store.Superblock) {
				putGens(sb, &replication.Gens{Current: x.current, Base: x.current})
				sb.Flags, sb.Members = sb.Flags|x.flags, uint32(all)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := regroup(meta, Options{Config: Config{Name: "r0", Nodes: fewer}}); err != nil {
			t.Fatal(err)
		}
		if sb := meta.Superblock(); !slices.Equal(formerOf(&sb), x.want) {
			t.Errorf("%s: remembers %v, want %v", x.what, formerOf(&sb), x.want)
		}
		if err := meta.Abandon(); err != nil {
			t.Error(err)
		}
	}
}
