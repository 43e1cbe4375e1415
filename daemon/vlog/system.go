package vlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// facilities are syslog's, by the names that FACILITY: takes.
var facilities = map[string]int{
	"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7,
	"uucp": 8, "clock": 9, "ftp": 11, "ntp": 12, "audit": 13, "alert": 14, "clock2": 15,
	"local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
}

// syslogPrefix is what precedes the pattern in a message to /dev/log.
const syslogPrefix = "<%B> %D{%h %e %T} %A[%P]:"

// The sockets of the system's log.
const (
	defaultJournal = "/run/systemd/journal/socket"
	defaultSyslog  = "/dev/log"
)

// maxDatagram keeps one message within what the sockets surely take.
const maxDatagram = 60 << 10

// systemWriter sends to the journal where there is one, else to syslog.
type systemWriter struct {
	path    string
	journal bool
	conn    net.Conn
	retry   time.Time
}

func newSystemWriter(o Options) *systemWriter {
	if path := choose(o.JournalPath, defaultJournal); exists(path) {
		return &systemWriter{path: path, journal: true}
	}
	if path := choose(o.SyslogPath, defaultSyslog); exists(path) {
		return &systemWriter{path: path}
	}
	return &systemWriter{}
}

func choose(path, def string) string {
	switch path {
	case "":
		return def
	case "none":
		return ""
	}
	return path
}

func exists(path string) bool {
	if path == "" {
		return false
	}
	_, err := os.Stat(path)
	return err == nil
}

func (w *systemWriter) ready() bool { return w.path != "" }
func (w *systemWriter) idle()       {}

func (w *systemWriter) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

func (w *systemWriter) write(line []byte, e *entry) error {
	line = bytes.TrimRight(line, "\n")
	if len(line) > maxDatagram {
		line = line[:maxDatagram]
	}
	msg := syslogMessage(line, e)
	if w.journal {
		msg = journalMessage(line, e)
	}
	return w.send(msg)
}

// send dials at need: the log daemon may come, go and come back.
func (w *systemWriter) send(msg []byte) error {
	for range 2 {
		if w.conn == nil {
			if time.Now().Before(w.retry) {
				return net.ErrClosed
			}
			conn, err := net.Dial("unixgram", w.path)
			if err != nil {
				w.retry = time.Now().Add(retryInterval)
				return err
			}
			w.conn = conn
		}
		if err := w.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := w.conn.Write(msg); err == nil {
			return nil
		}
		w.close()
	}
	return net.ErrClosed
}

// syslogMessage is what the C library sends: <PRI>TIME PROGRAM[PID]: TEXT.
func syslogMessage(line []byte, e *entry) []byte {
	return fmt.Appendf(nil, "<%d>%s %s[%d]: %s", e.facility<<3|e.level.syslog(),
		e.time.Local().Format(time.Stamp), e.program, e.pid, line)
}

// journalMessage is the journal's own protocol: fields, with the module as one of ours.
func journalMessage(line []byte, e *entry) []byte {
	var b bytes.Buffer
	field := func(name, value string) {
		if !bytes.ContainsRune([]byte(value), '\n') {
			fmt.Fprintf(&b, "%s=%s\n", name, value)
			return
		}
		fmt.Fprintf(&b, "%s\n", name)
		_ = binary.Write(&b, binary.LittleEndian, uint64(len(value))) // a bytes.Buffer takes everything
		fmt.Fprintf(&b, "%s\n", value)
	}
	field("MESSAGE", string(line))
	field("PRIORITY", strconv.Itoa(e.level.syslog()))
	field("SYSLOG_FACILITY", strconv.Itoa(e.facility))
	field("SYSLOG_IDENTIFIER", e.program)
	field("SYSLOG_PID", strconv.Itoa(e.pid))
	field("LOG_MODULE", e.module)
	return b.Bytes()
}
