package cluster

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Config is what a cluster's configuration file is made of.
type Config struct {
	Nodes    []string      // names; the ids are their places, and "" leaves one out
	Security string        // lines of the [cluster] table: sign, tls
	TickTime time.Duration // 2s when zero
	Devices  []Device
	Extra    string // appended to the file as it is
	// Via is where peers reach a node when that is not where it listens: a proxy's address.
	Via map[string]string
}

// Device is one [[device]] table. Fields left empty are left out.
type Device struct {
	Name       string
	Size       string
	Disk       string // default NAME.img
	Nodes      []string
	Protocol   string
	Quorum     string
	OnNoQuorum string
	ResyncRate string
	NBD        []string
	Extra      string // appended to the table as it is
}

// Three is the usual configuration: alpha, beta, gamma and the device r0.
func Three(size string) Config {
	return Config{
		Nodes:   []string{"alpha", "beta", "gamma"},
		Devices: []Device{{Name: "r0", Size: size, Quorum: "majority"}},
	}
}

// toml renders the configuration; address tells where a node listens.
func (c Config) toml(address func(id int) string) string {
	var b strings.Builder
	tick := c.TickTime
	if tick == 0 {
		tick = 2 * time.Second
	}
	fmt.Fprintf(&b, "[cluster]\nname = \"demo\"\nsecret_file = \"secret\"\ntick_time = %q\nmax_ping_count = 4\n%s", tick, c.Security)
	for id, n := range c.Nodes {
		if n == "" {
			continue
		}
		// bind makes a node dial from its own address, where a packet filter can see who it is.
		reached := cmp.Or(c.Via[n], address(id))
		fmt.Fprintf(&b, "\n[[node]]\nname = %q\nid = %d\naddress = %q\nbind = %q\n", n, id, reached, address(id))
	}
	for _, d := range c.Devices {
		b.WriteString(d.toml())
	}
	b.WriteString(c.Extra)
	return b.String()
}

func (d Device) toml() string {
	var b strings.Builder
	if d.Disk == "" {
		d.Disk = d.Name + ".img"
	}
	fmt.Fprintf(&b, "\n[[device]]\nname = %q\nsize = %q\ndisk = %q\n", d.Name, d.Size, d.Disk)
	text := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s = %q\n", key, value)
		}
	}
	list := func(key string, values []string) {
		if len(values) > 0 {
			fmt.Fprintf(&b, "%s = [\"%s\"]\n", key, strings.Join(values, `", "`))
		}
	}
	list("nodes", d.Nodes)
	text("protocol", d.Protocol)
	text("quorum", d.Quorum)
	text("on_no_quorum", d.OnNoQuorum)
	text("resync_rate", d.ResyncRate)
	list("nbd", d.NBD)
	b.WriteString(d.Extra)
	return b.String()
}
