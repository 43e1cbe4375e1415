package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketFile is the file of a listening Unix socket. Dev and Ino tell it from
// a successor's.
type socketFile struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
	Link string `json:"link,omitempty"` // a symbolic link beside it that leads to it
}

// socketFileAt describes the socket at path, nil if there is none.
func socketFileAt(path string) *socketFile {
	var st unix.Stat_t
	if path == "" || path[0] != '/' || unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil
	}
	return &socketFile{Path: path, Dev: uint64(st.Dev), Ino: st.Ino}
}

// there reports whether the file is still at its path.
func (s *socketFile) there() bool {
	now := socketFileAt(s.Path)
	return now != nil && now.Dev == s.Dev && now.Ino == s.Ino
}

// remove unlinks the socket if it is still the same, and the link that leads to it.
func (s *socketFile) remove() {
	if s == nil {
		return
	}
	if s.there() {
		os.Remove(s.Path)
	}
	if s.Link != "" && leadsTo(s.Link, s.Path) {
		os.Remove(s.Link)
	}
}

// leadsTo reports whether link is a symbolic link to path, which is in the same folder.
func leadsTo(link, path string) bool {
	target, err := os.Readlink(link)
	return err == nil && (target == path || target == filepath.Base(path))
}

// rename moves the socket's file, and has the link lead to its new place.
func (s *socketFile) rename(path string) error {
	if !s.there() {
		return errors.New("its file is gone")
	}
	linked := s.Link != "" && leadsTo(s.Link, s.Path)
	if err := os.Rename(s.Path, path); err != nil {
		return err
	}
	s.Path = path
	if !linked {
		s.Link = ""
		return nil
	}
	tmp := fmt.Sprintf("%s.%d.tmp", s.Link, os.Getpid())
	if err := os.Symlink(filepath.Base(path), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, s.Link)
}

// held is one socket that outlives the daemon.
type held struct {
	file   *os.File
	conn   bool
	state  *os.File // of a connection: what the successor must know
	socket *socketFile
	maker  net.Listener // what made it here, closed when it is given up; nil if it was inherited
}

// close closes what is held here; the socket lives on where others hold it.
func (h *held) close() {
	h.file.Close()
	if h.state != nil {
		h.state.Close()
	}
}

// Conn is a connection that the daemon before this one handed over.
type Conn struct {
	Name  string
	Conn  net.Conn
	State []byte // whatever HandOver was given
}

// sockets are the daemon's sockets that outlive it: those it inherited and did
// not claim yet, and those that a successor is to inherit.
type sockets struct {
	log    *slog.Logger
	notify func(m message, files ...*os.File) error // to the monitor; nil without one

	mu        sync.Mutex       // guards all below
	inherited map[string]*held // listeners not claimed yet
	arrived   []passedConn     // connections not claimed yet
	kept      map[string]*held // listeners in use
	handed    []passedConn     // connections for the successor
}

type passedConn struct {
	name string
	held
}

// newSockets takes what the stage passed on.
func newSockets(files []passed, log *slog.Logger) *sockets {
	s := &sockets{log: log, inherited: map[string]*held{}, kept: map[string]*held{}}
	for _, p := range files {
		if h := p.take(); p.Conn {
			s.arrived = append(s.arrived, passedConn{p.Name, *h})
		} else {
			s.inherited[p.Name] = h
		}
	}
	return s
}

// fileOwner is what gives access to a socket's descriptor.
type fileOwner interface{ File() (*os.File, error) }

// adoptOrListen returns the inherited listener of the given name, or makes one.
func (s *sockets) adoptOrListen(name string, listen func() (net.Listener, error)) (net.Listener, error) {
	if l, err := s.adopt(name); l != nil || err != nil {
		return l, err
	}
	l, err := listen()
	if err != nil {
		return nil, err
	}
	kept, err := s.keep(name, l)
	if err != nil {
		s.log.Warn("a restart will interrupt this listening socket", "name", name, "error", err)
		return l, nil
	}
	return kept, nil
}

// adopt claims an inherited listener, nil if there is none of the name. The
// service manager's names have no colons; a dash stands for one.
func (s *sockets) adopt(name string) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := name
	h := s.inherited[key]
	if h == nil {
		key = strings.ReplaceAll(name, ":", "-")
		h = s.inherited[key]
	}
	if h == nil {
		return nil, nil
	}
	l, err := net.FileListener(h.file)
	if err != nil {
		return nil, fmt.Errorf("cannot use the inherited socket %q: %w", name, err)
	}
	keepFile(l)
	delete(s.inherited, key)
	s.kept[name] = h
	return l, nil
}

// keepFile keeps Close from removing the socket's file: it outlives us.
func keepFile(l net.Listener) {
	if u, ok := l.(interface{ SetUnlinkOnClose(bool) }); ok {
		u.SetUnlinkOnClose(false)
	}
}

// keep gives the monitor a copy of the listener's descriptor, and returns a
// listener on the same socket whose Close leaves the socket's file alone.
// What made the socket may remove the file when closed, so it stays open until
// the socket is given up.
func (s *sockets) keep(name string, maker net.Listener) (net.Listener, error) {
	f, err := fileOf(maker)
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	keepFile(l)
	keepFile(maker) // by name; giveUp does it by inode
	h := &held{file: f, maker: maker}
	if maker.Addr().Network() == "unix" {
		h.socket = socketFileAt(maker.Addr().String())
	}
	s.mu.Lock()
	old := s.kept[name]
	s.kept[name] = h
	s.mu.Unlock()
	if old != nil {
		old.file.Close()
	}
	if err := s.tell(message{Op: opHold, Name: name, Socket: h.socket}, f); err != nil {
		s.log.Warn("a crash will interrupt this listening socket", "name", name, "error", err)
	}
	return l, nil
}

// giveUp closes the socket for good and removes its file if it is still ours.
func (h *held) giveUp(log *slog.Logger) {
	h.file.Close()
	if h.maker != nil {
		if err := h.maker.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			log.Warn("cannot close a listening socket in order", "error", err)
		}
	}
	h.socket.remove()
}

// fileOf returns a copy of a socket's descriptor.
func fileOf(v any) (*os.File, error) {
	switch v := v.(type) {
	case fileOwner:
		return v.File()
	case syscall.Conn:
		return dup(v)
	}
	return nil, fmt.Errorf("%T gives no access to its descriptor", v)
}

func dup(c syscall.Conn) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(p uintptr) {
		fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, fmt.Errorf("cannot copy a descriptor: %w", dupErr)
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}

func (s *sockets) tell(m message, files ...*os.File) error {
	if s.notify == nil {
		return nil
	}
	return s.notify(m, files...)
}

// release closes a listener for good: what is in use under the name, no
// successor will get.
func (s *sockets) release(name string) {
	s.mu.Lock()
	h := s.kept[name]
	delete(s.kept, name)
	s.mu.Unlock()
	if h == nil {
		return
	}
	h.giveUp(s.log)
	if err := s.tell(message{Op: opDrop, Name: name}); err != nil {
		s.log.Warn("the monitor still holds a listening socket that is no longer in use", "name", name, "error", err)
	}
}

// describe notes where the file of a held Unix socket is.
func (s *sockets) describe(name string, socket *socketFile) error {
	s.mu.Lock()
	h := s.kept[name]
	if h != nil {
		h.socket = socket
	}
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	return s.tell(message{Op: opHold, Name: name, Socket: socket}, h.file)
}

// conns claims the connections that were handed over. One that can't be used
// is closed: its client will connect again.
func (s *sockets) conns() []Conn {
	s.mu.Lock()
	arrived := s.arrived
	s.arrived = nil
	s.mu.Unlock()
	var conns []Conn
	for _, p := range arrived {
		c, err := p.open()
		p.close()
		if err != nil {
			s.log.Warn("cannot take over a connection; its client will have to connect again", "name", p.name, "error", err)
			continue
		}
		conns = append(conns, c)
	}
	return conns
}

// open makes a connection of what arrived.
func (p *passedConn) open() (Conn, error) {
	if p.state == nil {
		return Conn{}, errors.New("its state is missing")
	}
	state, err := readMemoryFile(p.state, maxState)
	if err != nil {
		return Conn{}, err
	}
	c, err := net.FileConn(p.file)
	return Conn{p.name, c, state}, err
}

// maxState bounds what may come with a connection.
const maxState = 64 << 20

// handOver keeps a connection for the successor.
func (s *sockets) handOver(name string, conn syscall.Conn, state []byte) error {
	if len(state) > maxState {
		return fmt.Errorf("cannot hand over connection %q: its state has %d bytes, at most %d fit", name, len(state), maxState)
	}
	f, err := fileOf(conn)
	if err != nil {
		return fmt.Errorf("cannot hand over connection %q: %w", name, err)
	}
	mem, err := memoryFile("state of "+name, state)
	if err != nil {
		f.Close()
		return fmt.Errorf("cannot hand over connection %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handed = append(s.handed, passedConn{name, held{file: f, conn: true, state: mem}})
	return nil
}

// passHanded gives the monitor what was handed over, at the very end of a planned restart.
func (s *sockets) passHanded() error {
	s.mu.Lock()
	handed := s.handed
	s.handed = nil
	s.mu.Unlock()
	var errs []error
	for _, p := range handed {
		errs = append(errs, s.tell(message{Op: opConn, Name: p.name}, p.file, p.state))
		p.close()
	}
	return errors.Join(errs...)
}

// dropUnclaimed closes what the daemon, now serving, has no use for.
func (s *sockets) dropUnclaimed() {
	s.mu.Lock()
	inherited, arrived := s.inherited, s.arrived
	s.inherited, s.arrived = map[string]*held{}, nil
	s.mu.Unlock()
	for name, h := range inherited {
		s.log.Info("closing an inherited listening socket that nothing uses", "name", name)
		h.giveUp(s.log)
		if err := s.tell(message{Op: opDrop, Name: name}); err != nil {
			s.log.Warn("the monitor still holds it", "name", name, "error", err)
		}
	}
	for _, p := range arrived {
		s.log.Info("closing a connection that was handed over and that nothing took", "name", p.name)
		p.close()
	}
}

// pass lists all sockets for a successor in this process.
func (s *sockets) pass() ([]passed, []passedFiles) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []passed
	var files []passedFiles
	for name, h := range s.kept {
		list = append(list, passed{Name: name, Socket: h.socket})
		files = append(files, passedFiles{h.file, nil})
	}
	for _, p := range s.handed {
		list = append(list, passed{Name: p.name, Conn: true})
		files = append(files, passedFiles{p.file, p.state})
	}
	return list, files
}

// closeAll closes everything. With last, the daemon will have no successor:
// files of Unix sockets are removed if they are still ours.
func (s *sockets) closeAll(last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range []map[string]*held{s.kept, s.inherited} {
		for _, h := range m {
			if last {
				h.giveUp(s.log)
			} else {
				h.file.Close()
			}
		}
		clear(m)
	}
	for _, p := range append(s.arrived, s.handed...) {
		p.close()
	}
	s.arrived, s.handed = nil, nil
}

// socketOf returns the file of a held or inherited Unix socket, nil without one.
func (s *sockets) socketOf(name string) *socketFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range []map[string]*held{s.kept, s.inherited} {
		if h := m[name]; h != nil && h.socket != nil {
			socket := *h.socket
			return &socket
		}
	}
	return nil
}
