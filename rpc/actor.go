package rpc

import (
	"context"
	"fmt"
	"slices"

	"github.com/lockstepd/lockstep/rpc/api"
)

// Role is what an actor may do.
type Role uint8

const (
	// NoRole may do nothing.
	NoRole Role = iota
	// Reader may call Read commands.
	Reader
	// Administrator may call every command.
	Administrator
)

// String returns "no", "read" or "admin".
func (r Role) String() string {
	switch r {
	case Reader:
		return "read"
	case Administrator:
		return "admin"
	}
	return "no"
}

func (r Role) may(a Access) bool {
	return r == Administrator || (r == Reader && a == Read)
}

// An Actor is who is at the other end of a connection. It is found out once,
// when the connection is made.
type Actor struct {
	Local  bool     // UID, GID, Groups and PID are the kernel's word
	UID    uint32   // of the process that connected
	GID    uint32   // its primary group
	Groups []uint32 // its supplementary groups
	PID    int      // 0 where it lives in a PID namespace that we cannot see
	User   string   // login name, the number where it has none, or the certificate's name
	Role   Role
	Conn   uint64 // number of the connection, for logs
}

// String names the actor for people.
func (a Actor) String() string {
	switch {
	case a.Local:
		return fmt.Sprintf("user %q (uid %d)", a.User, a.UID)
	case a.User != "":
		return fmt.Sprintf("certificate %q", a.User)
	}
	return "an unknown user"
}

// A Policy says who has which role. The zero value admits nobody.
type Policy struct {
	AdminUIDs   []uint32
	AdminGroups []uint32 // group ids, primary or supplementary
	ReadGroups  []uint32
	AdminNames  []string // names in client certificates, for remote connections
	ReadNames   []string
}

// Role returns the role of a. Local actors are known by uid and groups, others
// by the name in the certificate that the server has checked.
func (p Policy) Role(a Actor) Role {
	if !a.Local {
		return pick(a.User != "" && slices.Contains(p.AdminNames, a.User),
			a.User != "" && slices.Contains(p.ReadNames, a.User))
	}
	in := func(groups []uint32) bool {
		return slices.Contains(groups, a.GID) ||
			slices.ContainsFunc(a.Groups, func(g uint32) bool { return slices.Contains(groups, g) })
	}
	return pick(slices.Contains(p.AdminUIDs, a.UID) || in(p.AdminGroups), in(p.ReadGroups))
}

func pick(admin, read bool) Role {
	switch {
	case admin:
		return Administrator
	case read:
		return Reader
	}
	return NoRole
}

// forbidden returns the refusal of a command, or nil if by may call it.
func forbidden(c *Command, by Actor) error {
	if by.Role.may(c.Access) {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "%q needs the %s role; %s has %s role", c.Name, c.Access, by, article(by.Role)).
		WithData(api.AccessDetail{Command: c.Name, User: by.User, Role: by.Role.String(), Needs: c.Access.String()})
}

func article(r Role) string {
	if r == NoRole {
		return "no"
	}
	return "the " + r.String()
}

type callerKey struct{}

// caller is what the context of a command knows of where it comes from.
type caller struct {
	actor  Actor
	notify *Notifier
}

func callerFrom(ctx context.Context) (*caller, bool) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	return c, ok
}

// ActorFrom returns who called the command that runs under ctx.
func ActorFrom(ctx context.Context) (Actor, bool) {
	c, ok := callerFrom(ctx)
	if !ok {
		return Actor{}, false
	}
	return c.actor, true
}
