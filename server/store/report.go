package store

import (
	"fmt"
	"time"
)

// Report is an Inspection for programs. Fields are only ever added.
type Report struct {
	Path        string        `json:"path"`
	InUse       bool          `json:"in_use"` // by a daemon: the rest may be changing
	Device      string        `json:"device"`
	NodeID      int           `json:"node_id"`
	Size        int64         `json:"size"`
	Created     time.Time     `json:"created"`
	Level       int           `json:"format_level"`
	Superblocks []string      `json:"superblocks"` // what is in either place for one
	Flags       string        `json:"flags"`
	Members     string        `json:"members"`
	Generation  string        `json:"generation"`
	History     string        `json:"history"`
	Clean       bool          `json:"clean"` // the last stop needs no recovery
	ExtentBytes int64         `json:"al_extent_bytes"`
	Extents     int           `json:"al_extents"` // that can be hot
	Hot         []ReportRange `json:"al_hot"`     // what a recovery marks
	Peers       []ReportPeer  `json:"peers"`
	Problems    []string      `json:"problems"`
}

// ReportRange is a range of bytes of the device.
type ReportRange struct {
	Off int64 `json:"offset"`
	Len int64 `json:"bytes"`
}

// ReportPeer is what is known of a peer.
type ReportPeer struct {
	ID         int    `json:"id"`
	Flags      string `json:"flags"`
	Generation string `json:"generation"`
	OutOfSync  int64  `json:"out_of_sync"` // bytes
	Runs       int    `json:"runs"`
}

// Report returns what was found in the form for programs.
func (in *Inspection) Report() Report {
	sb := &in.Superblock
	r := Report{
		Path: in.Path, InUse: in.InUse, Device: sb.Device, NodeID: sb.NodeID, Size: sb.Size, Created: sb.Created, Level: Level,
		Superblocks: in.Slots[:], Flags: sb.Flags.String(), Members: mask(sb.Members), Generation: fmt.Sprintf("%016x", sb.Current),
		History: generations(sb.History[:]), Clean: in.Clean, ExtentBytes: in.ExtentSize, Extents: in.Extents,
		Hot: []ReportRange{}, Peers: []ReportPeer{}, Problems: append([]string{}, in.Problems...),
	}
	for _, e := range merged(in.Hot) {
		r.Hot = append(r.Hot, ReportRange{e.Off, e.Len})
	}
	for _, p := range in.Peers {
		r.Peers = append(r.Peers, ReportPeer{p.ID, p.Flags.String(), fmt.Sprintf("%016x", p.Generation), p.OutOfSync, p.Runs})
	}
	return r
}

// Inspect reads what is on stable storage; what is not durable yet is not in it.
func (m *Meta) Inspect() (*Inspection, error) {
	in, err := InspectFile(m.vol.file, m.vol.path)
	if err == nil {
		in.InUse = true
	}
	return in, err
}
