package control

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
)

// TestMetadataIsWhatTheContractSays: what the store reports, which programs
// also get without a daemon, is api.Metadata to the last field.
func TestMetadataIsWhatTheContractSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r0.meta")
	m, err := store.OpenMeta(path, store.MetaOptions{Device: "r0", NodeID: 3, Create: true, Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	m.Bitmap(1).Set(block.Extent{Off: 0, Len: 8192})
	if err := m.WriteBitmaps(); err != nil {
		t.Fatal(err)
	}
	live, err := m.Inspect()
	if err != nil || !live.InUse {
		t.Fatalf("in use %v, %v", live.InUse, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	in, err := store.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(in.Report())
	if err != nil {
		t.Fatal(err)
	}
	var got api.Metadata
	dec := json.NewDecoder(bytes.NewReader(want))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, want) {
		t.Fatalf("the store reports\n%s\nthe contract has\n%s", want, again)
	}
	if got.NodeID != 3 || got.InUse || len(got.Peers) != 1 || got.Peers[0].OutOfSync != 8192 || len(got.Problems) != 0 {
		t.Fatalf("%+v", got)
	}
	if text := dumpText(in.Report()); !bytes.Contains([]byte(text), []byte("8.0 KiB out of sync")) {
		t.Fatalf("the text does not tell what is out of sync:\n%s", text)
	}
}
