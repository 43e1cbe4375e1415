package control

import (
	"context"
	"net"

	"github.com/lockstepd/lockstep/rpc/stream"
)

// Certificates are the files by which this node and those who administrate it
// from elsewhere know each other.
type Certificates struct{ CA, Cert, Key string }

// ListenRemote listens at HOST:PORT for remote administration.
func ListenRemote(address string) (net.Listener, error) {
	return stream.ListenTCP(address, stream.Options{})
}

// ServeRemote answers clients of l until ctx ends. They come in by TLS, with a
// certificate that the CA has signed; what they may do goes by its common name.
// Files that change are read again for the next connection.
func (c *Control) ServeRemote(ctx context.Context, l net.Listener, files Certificates) error {
	id, err := stream.NewIdentity(stream.Files{Cert: files.Cert, Key: files.Key, CA: files.CA})
	if err != nil {
		l.Close()
		return err
	}
	return c.srv.Serve(ctx, id.Listener(l))
}
