package stream

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Name is a stream's name, taken apart.
type Name struct {
	Class string // tcp, ssl, unix, ptcp, pssl, punix, pfd
	Host  string // of tcp, ssl; an IP address or "" of ptcp, pssl
	Port  int    // -1 where there is none
	Path  string // of unix, punix
	FD    int    // of pfd
}

// Parse takes a name apart. A class that does not exist is EAFNOSUPPORT.
func Parse(name string) (Name, error) {
	n, err := parse(name)
	if err != nil {
		return Name{}, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

func parse(name string) (Name, error) {
	class, rest, ok := strings.Cut(name, ":")
	if !ok {
		return Name{}, fmt.Errorf("expected CLASS:ADDRESS: %w", unix.EAFNOSUPPORT)
	}
	n := Name{Class: class, Port: -1}
	var err error
	switch class {
	case "unix", "punix":
		n.Path, err = parsePath(rest)
	case "pfd":
		n.FD, err = parseFD(rest)
	case "tcp", "ssl":
		n.Host, n.Port, err = parseActive(rest)
	case "ptcp", "pssl":
		n.Host, n.Port, err = parsePassive(rest)
	default:
		err = fmt.Errorf("unknown class %q: %w", class, unix.EAFNOSUPPORT)
	}
	return n, err
}

// Passive reports whether the name is one to listen on.
func (n Name) Passive() bool { return strings.HasPrefix(n.Class, "p") }

// NeedsProbes reports whether a connection of the name may be lost without
// either side being told.
func (n Name) NeedsProbes() bool {
	switch n.Class {
	case "tcp", "ssl", "ptcp", "pssl":
		return true
	}
	return false
}

// address returns HOST:PORT as package net wants it.
func (n Name) address(defaultPort int) (string, error) {
	port := n.Port
	if port < 0 {
		port = defaultPort
		if port <= 0 {
			return "", fmt.Errorf("port must be specified: %w", unix.EINVAL)
		}
	}
	host := n.Host
	if host == "" {
		host = "0.0.0.0"
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

func parsePath(file string) (string, error) {
	if file == "" || strings.ContainsRune(file, 0) {
		return "", fmt.Errorf("file name must be specified: %w", unix.EINVAL)
	}
	return file, nil
}

func parseFD(text string) (int, error) {
	fd, err := strconv.ParseInt(text, 10, 32)
	if err != nil || fd < 0 {
		return 0, fmt.Errorf("bad file descriptor: %w", unix.EINVAL)
	}
	return int(fd), nil
}

func parseActive(text string) (host string, port int, err error) {
	host, portText := split(text, true)
	if host == "" {
		return "", 0, fmt.Errorf("host must be specified: %w", unix.EINVAL)
	}
	if strings.ContainsAny(host, "[] \x00") {
		return "", 0, fmt.Errorf("bad host %q: %w", host, unix.EINVAL)
	}
	if strings.Contains(host, ":") && !isIP(host) {
		return "", 0, fmt.Errorf("bad IP address %q: %w", host, unix.EINVAL)
	}
	port, err = parsePort(portText)
	return host, port, err
}

func parsePassive(text string) (host string, port int, err error) {
	host, portText := split(text, false)
	if host != "" && !isIP(host) {
		return "", 0, fmt.Errorf("bad IP address %q: %w", host, unix.EINVAL)
	}
	port, err = parsePort(portText)
	return host, port, err
}

// isIP reports whether host is an address, with or without an IPv6 zone.
func isIP(host string) bool {
	address, zone, scoped := strings.Cut(host, "%")
	if scoped && (zone == "" || !strings.Contains(address, ":")) {
		return false
	}
	return net.ParseIP(address) != nil
}

func parsePort(text string) (int, error) {
	if text == "" {
		return -1, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("bad port number %q: %w", text, unix.EINVAL)
	}
	return int(port), nil
}

// split parts host and port at the one colon outside of brackets. More colons
// than one make all of it an IPv6 address.
func split(text string, hostFirst bool) (host, port string) {
	colons, at, inside := 0, -1, false
	for i, c := range text {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == ':' && !inside:
			colons++
			at = i
		}
	}
	switch {
	case colons > 1:
		return text, ""
	case at < 0 && hostFirst:
		return unbracket(text), ""
	case at < 0:
		return "", unbracket(text)
	case hostFirst:
		return unbracket(text[:at]), unbracket(text[at+1:])
	}
	return unbracket(text[at+1:]), unbracket(text[:at])
}

func unbracket(s string) string {
	if len(s) >= 2 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}
