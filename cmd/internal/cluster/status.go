package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"
)

// Status is the part of the daemon's status that is looked at here.
type Status struct {
	Node     string        `json:"node"`
	Revision uint64        `json:"revision"`
	Nodes    []Peer        `json:"nodes"`
	Devices  []DeviceState `json:"devices"`
	Health   string        `json:"health"`
}

// Peer is a peer node in a status.
type Peer struct {
	Name        string `json:"name"`
	State       string `json:"state"`
	Address     string `json:"address"`
	Data        string `json:"data"`
	Meta        string `json:"meta"`
	LastError   string `json:"last_error"`
	MissedPings int    `json:"missed_pings"`
}

// DeviceState is a device in a status.
type DeviceState struct {
	Name      string       `json:"name"`
	Size      int64        `json:"size"`
	Role      string       `json:"role"`
	Disk      string       `json:"disk"`
	Quorum    bool         `json:"quorum"`
	Suspended bool         `json:"suspended"`
	Open      int          `json:"open"`
	Peers     []DevicePeer `json:"peers"`
}

// DevicePeer is a device on a peer.
type DevicePeer struct {
	Node        string  `json:"node"`
	Role        string  `json:"role"`
	Disk        string  `json:"disk"`
	Replication string  `json:"replication"`
	OutOfSync   int64   `json:"out_of_sync"`
	Resync      *Resync `json:"resync"`
}

// Resync is a resync's progress, in bytes.
type Resync struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	Rate  int64 `json:"rate"`
	ETAS  int64 `json:"eta_s"`
}

// Peer returns what the status says of a peer node.
func (s Status) Peer(name string) Peer {
	for _, p := range s.Nodes {
		if p.Name == name {
			return p
		}
	}
	return Peer{}
}

// Device returns what the status says of a device.
func (s Status) Device(name string) DeviceState {
	for _, d := range s.Devices {
		if d.Name == name {
			return d
		}
	}
	return DeviceState{}
}

// Peer returns what the status says of a device on a peer.
func (d DeviceState) Peer(node string) DevicePeer {
	for _, p := range d.Peers {
		if p.Node == node {
			return p
		}
	}
	return DevicePeer{}
}

// summary is the status in a line per thing, for error messages.
func (s Status) summary() string {
	var b strings.Builder
	for _, p := range s.Nodes {
		fmt.Fprintf(&b, "  node %s %s %s\n", p.Name, p.State, p.LastError)
	}
	for _, d := range s.Devices {
		fmt.Fprintf(&b, "  device %s %s %s quorum=%t suspended=%t\n", d.Name, d.Role, d.Disk, d.Quorum, d.Suspended)
		for _, p := range d.Peers {
			fmt.Fprintf(&b, "    %s %s %s %s out of sync %d\n", p.Node, p.Role, p.Disk, p.Replication, p.OutOfSync)
		}
	}
	return b.String()
}

// AllUp holds when every peer is up.
func AllUp(s Status) bool {
	for _, p := range s.Nodes {
		if p.State != "up" {
			return false
		}
	}
	return true
}

// InSync returns a condition that holds when all peers are up and the device
// is UpToDate here and on every one of them, with nothing out of sync.
func InSync(device string) func(Status) bool {
	return func(s Status) bool {
		d := s.Device(device)
		ok := AllUp(s) && d.Disk == "UpToDate"
		for _, p := range d.Peers {
			ok = ok && p.Disk == "UpToDate" && p.Replication == "Established" && p.OutOfSync == 0
		}
		return ok
	}
}

// PeerDown returns a condition that holds when a peer is not up.
func PeerDown(name string) func(Status) bool {
	return func(s Status) bool { return s.Peer(name).State != "up" }
}

// Status asks the node for its status.
func (n *Node) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, n.Call(ctx, "status", nil, &s)
}

// RPCError is the daemon's refusal of a call.
type RPCError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data"`
}

func (e *RPCError) Error() string { return e.Message }

// Call calls a method over the control socket, on a connection of its own.
func (n *Node) Call(ctx context.Context, method string, params, result any) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", n.Socket())
	if err != nil {
		return fmt.Errorf("reach the daemon of %s: %w", n.Name, err)
	}
	defer conn.Close()
	// A daemon that is stopped or hangs must not hold the caller longer than the caller's own deadline.
	limit := time.Now().Add(10 * time.Second)
	if t, ok := ctx.Deadline(); ok && t.Before(limit) {
		limit = t
	}
	if err := conn.SetDeadline(limit); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := exchange(conn, method, params, result); err != nil {
		return fmt.Errorf("%s: %s: %w", n.Name, method, err)
	}
	return nil
}

// exchange sends one JSON-RPC 2.0 request and reads its reply.
func exchange(conn net.Conn, method string, params, result any) error {
	req := struct {
		Version string `json:"jsonrpc"`
		ID      int    `json:"id"`
		Method  string `json:"method"`
		Params  any    `json:"params,omitempty"`
	}{"2.0", 1, method, params}
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return fmt.Errorf("send the request: %w", err)
	}
	var reply struct {
		Result json.RawMessage `json:"result"`
		Error  *RPCError       `json:"error"`
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return fmt.Errorf("read the reply: %w", err)
	}
	if reply.Error != nil {
		return reply.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Result, result); err != nil {
		return fmt.Errorf("decode the result: %w", err)
	}
	return nil
}
