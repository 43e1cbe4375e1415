package daemon

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// oomKills counts how often the kernel has killed something for lack of
// memory: in our control group, and in the whole system where that is told.
func oomKills() uint64 {
	var n uint64
	if data, err := os.ReadFile("/proc/vmstat"); err == nil {
		n += counter(string(data), "oom_kill")
	}
	if group, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		if path := unifiedGroup(string(group)); path != "" {
			events, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "memory.events"))
			if err == nil {
				n += counter(string(events), "oom_kill")
			}
		}
	}
	return n
}

// counter finds "NAME N" among lines.
func counter(text, name string) uint64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

// unifiedGroup finds the path of the version 2 hierarchy, "0::/path".
func unifiedGroup(text string) string {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	return ""
}
