package config

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Env gives the decoder access to the files that a configuration names.
type Env interface {
	// Open opens a file for reading and must not wait for anything: a FIFO
	// opens at once and is refused by its mode afterwards.
	Open(path string) (fs.File, error)
}

// OS is the Env of the real file system.
func OS() Env { return osEnv{} }

type osEnv struct{}

func (osEnv) Open(path string) (fs.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// maxTLSBytes bounds a certificate file.
const maxTLSBytes = 1 << 20

// Resolve is a path of the file as seen from the working directory: relative
// ones start from the configuration's folder.
func (c *Config) Resolve(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(c.Path), path)
}

// fileProblem is why a file cannot be used, and what would do.
type fileProblem struct{ found, allowed string }

// readRegular reads a regular file whose mode has none of the forbidden bits.
func readRegular(env Env, path string, forbidden fs.FileMode, most int64) ([]byte, *fileProblem) {
	f, err := env.Open(path)
	if err != nil {
		return nil, &fileProblem{fmt.Sprintf("cannot open %s: %v", quote(path), cause(err)), "a file that lockstepd can read"}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, &fileProblem{fmt.Sprintf("cannot examine %s: %v", quote(path), cause(err)), "a file that lockstepd can read"}
	}
	if !st.Mode().IsRegular() {
		return nil, &fileProblem{quote(path) + " is not a regular file", "a regular file"}
	}
	if bad := st.Mode().Perm() & forbidden; bad != 0 {
		want := st.Mode().Perm() &^ forbidden
		return nil, &fileProblem{
			fmt.Sprintf("%s has mode %04o, so others may read or change it", quote(path), st.Mode().Perm()),
			fmt.Sprintf("run: chmod %04o %s", want, path),
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, &fileProblem{fmt.Sprintf("cannot read %s: %v", quote(path), cause(err)), "a file that lockstepd can read"}
	}
	if int64(len(data)) > most {
		return nil, &fileProblem{quote(path) + " is too large", fmt.Sprintf("at most %d bytes", most)}
	}
	return data, nil
}

// cause is the error without the path, which the message has already.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// secret reads and checks the cookie.
func (v *validator) secret(c *Cluster) {
	if c.SecretFile == "" || v.env == nil {
		return
	}
	data, p := readRegular(v.env, v.cfg.Resolve(c.SecretFile), 0o077, MaxSecretBytes)
	if p != nil {
		v.fault(&c.src, "cluster", "secret_file", p.found, p.allowed)
		return
	}
	data = trimNewline(data)
	if len(data) < MinSecretBytes {
		v.fault(&c.src, "cluster", "secret_file", fmt.Sprintf("%s holds %d bytes", quote(c.SecretFile), len(data)),
			fmt.Sprintf("at least %d; try: head -c 32 /dev/urandom | base64 > %s", MinSecretBytes, c.SecretFile))
		return
	}
	c.Secret = NewSecret(data)
}

// trimNewline drops the one line end that an editor or echo leaves behind.
func trimNewline(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
		if n := len(b); n > 0 && b[n-1] == '\r' {
			b = b[:n-1]
		}
	}
	return b
}

// tls checks that the three files are there and fit one another.
func (v *validator) tls(t *TLS) {
	if !t.Enabled() || t.Cert == "" || t.Key == "" || v.env == nil {
		return
	}
	ca, okCA := v.tlsFile(t, "ca", t.CA, 0)
	cert, okCert := v.tlsFile(t, "cert", t.Cert, 0)
	key, okKey := v.tlsFile(t, "key", t.Key, 0o007)
	t.content = sha256.Sum256(slices.Concat(ca, []byte{0}, cert, []byte{0}, key))
	if okCA && !x509.NewCertPool().AppendCertsFromPEM(ca) {
		v.fault(&t.src, "cluster.tls", "ca", quote(t.CA)+" holds no certificate", "PEM with at least one CERTIFICATE block")
	}
	if okCert && !hasPEM(cert, "CERTIFICATE") {
		v.fault(&t.src, "cluster.tls", "cert", quote(t.Cert)+" holds no certificate", "PEM with at least one CERTIFICATE block")
		return
	}
	if okCert && okKey {
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			v.fault(&t.src, "cluster.tls", "key", "does not go with the certificate: "+err.Error(), "the private key of "+quote(t.Cert))
		}
	}
}

func (v *validator) tlsFile(t *TLS, key, path string, forbidden fs.FileMode) ([]byte, bool) {
	data, p := readRegular(v.env, v.cfg.Resolve(path), forbidden, maxTLSBytes)
	if p != nil {
		v.fault(&t.src, "cluster.tls", key, p.found, p.allowed)
		return nil, false
	}
	return data, true
}

func hasPEM(data []byte, kind string) bool {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return false
		}
		if b.Type == kind {
			return true
		}
	}
}
