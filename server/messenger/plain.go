package messenger

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/lockstepd/lockstep/server/wire"
)

// plain is what an error of a dial means, for people.
type plain struct {
	text  string // of the error
	means string
}

// says is what the error means and what to do, before its own text.
func (p *plain) says(text string) string {
	if p == nil || p.means == "" || p.text != text {
		return text
	}
	return p.means + " (" + text + ")"
}

// explain says what an error of a dial means and what to do about it, as far as
// that is known.
func explain(err error, name, address string) string {
	refused, ok := errors.AsType[*RefusedError](err)
	switch {
	case ok && refused.Code == wire.RefuseSecret || errors.Is(err, errWrongSecret):
		return "the secrets of the two nodes differ: copy the secret file of one to the other"
	case ok:
		return "" // it has words of its own
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "the address of " + name + ", " + address + ", cannot be looked up: correct it in the configuration, or see to the name service"
	}
	if means := explainTLS(err, name, address); means != "" {
		return means
	}
	op, ok := errors.AsType[*net.OpError](err)
	dialling := ok && op.Op == "dial"
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at " + address + ": lockstepd does not run on " + name + ", or has another address; start it there, or compare the address in both configurations"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		return "there is no way from here to " + address + ": the host of " + name + " is off or cut off; see to it, and to the routes between the two"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "this host has not the address that connections are to come from: correct bind, or address, of this node in the configuration"
	case timedOut(err) && dialling:
		return address + " does not answer: the host of " + name + " is off, or a firewall drops what is sent there; let TCP pass to that port"
	case timedOut(err):
		return "something at " + address + " takes connections and says nothing: lockstepd on " + name + " hangs, or that is another program's port"
	case errors.Is(err, wire.ErrMagic):
		return "what answers at " + address + " does not speak as this node does: set [cluster] tls on all nodes or on none, and see that the port is lockstepd's"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return name + " ended the connection before it was agreed on: it stops or starts, or expects TLS where there is none; its log says more"
	}
	return ""
}

// explainTLS is explain for what certificates and TLS have to do with.
func explainTLS(err error, name, address string) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the certificate of " + name + " is not of the authority that this node trusts: give all nodes certificates of one, and its ca file to each"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate at " + address + " is another node's: it has to name " + name + " as a DNS name"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return "the certificate of " + name + " has expired or is not valid yet: renew it, or set the clocks of both hosts"
		}
		return "the certificate of " + name + " will not do: make one for both server and client authentication"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "what answers at " + address + " does not speak TLS: set [cluster] tls on all nodes or on none"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return name + " does not accept this node's certificate: see that it is of the authority that " + name + " trusts, names this node, and has not expired"
	}
	return ""
}

func timedOut(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// explained keeps what the error of a dial means.
func (p *peer) explained(err error) {
	cfg := p.cfg.Load()
	p.plain.Store(&plain{text: err.Error(), means: explain(err, cfg.Name, cfg.Address)})
}
