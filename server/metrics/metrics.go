// Package metrics shows the engine's counters and states as Prometheus text:
// by command and, where the configuration asks for it, to HTTP clients. Nothing
// is counted here: each scrape reads the snapshots that the parts keep anyway,
// so that metrics cost nothing while nobody looks. METRICS.md describes every
// name; a test holds it, the dashboard and the code together.
package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/service"
)

// Commands are the counts of the control socket.
type Commands struct {
	Connections, InProgress                           int
	Requests, Failures, Timeouts, Panics, Malformed   uint64
	Accepted, Refused, CutOff, Notifications, Dropped uint64
	Each                                              map[string]Command
}

// Command is the counts of one command.
type Command struct {
	Requests, Failures uint64
	Took               time.Duration // all of them together
}

// Config is how the configuration is.
type Config struct {
	Revision uint64
	Applied  bool // the file as it is now holds
	Pending  int  // changes that wait for a restart
}

// Sources are where the figures come from. Each is called once for every
// scrape, possibly by several at a time, and must not wait; nil ones are left
// out.
type Sources struct {
	Version  string
	Nodes    func() []messenger.NodeInfo
	Tick     func() time.Duration
	Devices  func() []device.Status
	NBD      func() nbd.ServerStats
	Commands func() Commands
	Services func() []service.Info
	Handlers func() []events.HandlerStats
	Events   func() uint64 // the number of the newest
	Counts   func() map[events.Count]uint64
	Config   func() Config
}

// Metrics is a registry of the engine's metrics.
type Metrics struct {
	handler http.Handler

	// mu guards the fields below; nothing waits under it.
	mu    sync.Mutex
	count Scrapes
	err   error // of the newest scrape
}

// Scrapes counts how often the metrics were gathered, by command or for an
// HTTP client.
type Scrapes struct{ All, Failed uint64 }

// Scrapes returns the counts.
func (m *Metrics) Scrapes() Scrapes {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// Health is why the newest scrape failed, nil where it did not.
func (m *Metrics) Health() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// counted is the handler that answers scrapes, with a count of them.
func (m *Metrics) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.count.All++
		before := m.count.Failed
		m.mu.Unlock()
		h.ServeHTTP(w, r)
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.count.Failed == before {
			m.err = nil
		}
	})
}

// failures counts the scrapes that fail; it is promhttp's Logger.
type failures struct{ m *Metrics }

// Println is called with why a scrape failed.
func (f failures) Println(why ...any) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.m.count.Failed++
	f.m.err = errors.New("the last scrape failed: " + strings.TrimSpace(fmt.Sprintln(why...)))
}

// New makes the registry.
func New(s Sources) (*Metrics, error) {
	reg := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		&collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("cannot register metrics: %w", err)
		}
	}
	m := &Metrics{}
	m.handler = m.counted(promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: scrapeTimeout, ErrorLog: failures{m}}))
	return m, nil
}

const scrapeTimeout = 10 * time.Second

// page takes what a handler writes.
type page struct {
	bytes.Buffer
	header http.Header
	status int
}

func (p *page) Header() http.Header { return p.header }
func (p *page) WriteHeader(s int)   { p.status = s }

// Text is all metrics in Prometheus's text format.
func (m *Metrics) Text(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return "", err
	}
	p := page{header: http.Header{}, status: http.StatusOK}
	m.handler.ServeHTTP(&p, req)
	if p.status != http.StatusOK {
		return "", fmt.Errorf("cannot gather the metrics: %s", bytes.TrimSpace(p.Bytes()))
	}
	return p.String(), nil
}

// Serve answers scrapes of /metrics on ln until ctx ends. It closes ln.
func (m *Metrics) Serve(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.handler)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "lockstep: metrics are at /metrics") })
	srv := http.Server{
		Handler: mux, ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) || ctx.Err() == nil {
		return fmt.Errorf("serving metrics on %s: %w", ln.Addr(), err)
	}
	return nil
}
