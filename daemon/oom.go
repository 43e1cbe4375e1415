package daemon

import (
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// oomKills counts how often the kernel has killed something for lack of
// memory: in our control group, where that is told, for a kill elsewhere is no
// reason for the end of a daemon of ours; else in the whole system. The kernel
// counts before it kills.
func oomKills(root fs.FS) uint64 {
	group, _ := fs.ReadFile(root, "proc/self/cgroup") // without it, there are no groups
	for _, file := range []string{
		inGroup(string(group), "", "sys/fs/cgroup", "memory.events"),
		inGroup(string(group), "memory", "sys/fs/cgroup/memory", "memory.oom_control"),
	} {
		if n, ok := counter(root, file, "oom_kill"); ok {
			return n
		}
	}
	n, _ := counter(root, "proc/vmstat", "oom_kill")
	return n
}

// counter finds "NAME N" among the lines of a file.
func counter(root fs.FS, file, name string) (uint64, bool) {
	text, err := fs.ReadFile(root, file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// inGroup finds the place of our group's file below the mount point of a
// hierarchy: that of a controller in version 1 ("4:memory:/path"), the only one
// in version 2 ("0::/path").
func inGroup(groups, controller, mount, file string) string {
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(f) == 3 && f[1] == controller {
			return path.Join(mount, path.Clean("/"+f[2]), file)
		}
	}
	return "nowhere"
}
