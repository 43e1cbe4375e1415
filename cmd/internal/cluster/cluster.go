package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// peerPort is the port of peer links on every node's own address.
const peerPort = 7799

// Cluster is a set of nodes with one configuration.
type Cluster struct {
	Dir    string // holds everything: configuration, secret, one folder per node
	Config string // path of the configuration file
	Nodes  []*Node

	host    *proc.Host
	ownHost bool
	bin     string
	net     [2]int // A and B of 127.A.B.ID
	cfg     Config
}

// Options say where a cluster runs.
type Options struct {
	Bin  string     // folder that holds lockstepd and lockstepctl
	Dir  string     // folder to make the cluster's folder in; "" is the system's for temporary files
	Host *proc.Host // where the processes run; nil: a host of the cluster's own, which ends with it
}

// New lays a cluster out in a new folder. Nothing runs yet. Close removes it.
func New(o Options, cfg Config) (*Cluster, error) {
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	for _, p := range []string{"lockstepd", "lockstepctl"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return nil, fmt.Errorf("the programs are not built (run \"make build\"): %w", err)
		}
	}
	// The folder's name is short: a Unix socket's path may have 107 bytes and many clients take no more.
	dir, err := os.MkdirTemp(o.Dir, "lockstep-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the cluster: %w", err)
	}
	c := &Cluster{Dir: dir, Config: filepath.Join(dir, "lockstep.toml"), host: o.Host, bin: bin, cfg: cfg}
	if c.host == nil {
		c.host, c.ownHost = proc.NewHost(), true
	}
	if err := c.layOut(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) layOut() error {
	if err := c.pickNet(); err != nil {
		return err
	}
	for id, name := range c.cfg.Nodes {
		dir := filepath.Join(c.Dir, name)
		n := &Node{
			Name: name, ID: id, Address: c.address(id), c: c, config: c.Config,
			Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"), Log: filepath.Join(dir, "log"),
		}
		for _, d := range []string{n.Run, n.State} {
			if err := os.MkdirAll(d, 0o750); err != nil {
				return fmt.Errorf("make the folders of %s: %w", name, err)
			}
		}
		c.Nodes = append(c.Nodes, n)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "secret"), []byte("a cookie for one run only\n"), 0o600); err != nil {
		return fmt.Errorf("write the secret: %w", err)
	}
	return c.WriteConfig(c.cfg)
}

// WriteConfig replaces the configuration file of all nodes.
func (c *Cluster) WriteConfig(cfg Config) error {
	c.cfg = cfg
	if err := os.WriteFile(c.Config, []byte(cfg.toml(c.address)), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// pickNet picks 127.A.B so that nobody listens on the first node's address.
func (c *Cluster) pickNet() error {
	var err error
	for range 64 {
		c.net = [2]int{64 + rand.IntN(128), rand.IntN(256)}
		var l net.Listener
		if l, err = net.Listen("tcp", c.address(0)); err == nil {
			return l.Close()
		}
	}
	return fmt.Errorf("find a free loopback network: %w", err)
}

func (c *Cluster) address(id int) string {
	return net.JoinHostPort(c.IP(id), strconv.Itoa(peerPort))
}

// IP returns the address of node id without its port.
func (c *Cluster) IP(id int) string {
	return fmt.Sprintf("127.%d.%d.%d", c.net[0], c.net[1], id+1)
}

// Host returns where the processes run.
func (c *Cluster) Host() *proc.Host { return c.host }

// Ctl returns the path of lockstepctl.
func (c *Cluster) Ctl() string { return filepath.Join(c.bin, "lockstepctl") }

// Daemon returns the path of lockstepd.
func (c *Cluster) Daemon() string { return filepath.Join(c.bin, "lockstepd") }

// Node returns the node of that name. A name that is not in the configuration is a mistake of the caller.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("cluster: no node " + name)
}

// Start starts all nodes, side by side, and waits until each serves and is
// connected with all others.
func (c *Cluster) Start(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.Launch(); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := n.Serving(ctx); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := n.Until(ctx, "all nodes are up", AllUp); err != nil {
			return err
		}
	}
	return nil
}

// Until waits until cond holds on every node that runs.
func (c *Cluster) Until(ctx context.Context, what string, cond func(Status) bool) error {
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		if err := n.Until(ctx, what, cond); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every process, by its pid, and removes the cluster's folder.
func (c *Cluster) Close() error {
	for _, n := range c.Nodes {
		n.end()
	}
	if c.ownHost {
		c.host.Close()
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("remove the cluster's folder: %w", err)
	}
	return nil
}
