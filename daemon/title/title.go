// Package title changes what `ps` shows of this process: the command line, by
// writing over the memory in which the kernel put it, and the short name.
package title

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"
)

// Title is the memory that `ps` reads. It is safe for concurrent use.
type Title struct {
	mu  sync.Mutex // guards the memory
	mem []byte     // arguments and, behind them, environment; nil if it could not be found
}

// Take returns the title of this process and a copy of its arguments. It must
// be the first thing that a program does: os.Args points into the memory that
// Set overwrites, and so do strings cut from it; Take replaces os.Args by the copy.
func Take() (*Title, []string) {
	orig := os.Args
	args := make([]string, len(orig))
	for i, a := range orig {
		args[i] = strings.Clone(a)
	}
	t := &Title{}
	if len(orig) > 0 && len(orig[0]) > 0 {
		t.mem = memory(orig[0])
	}
	os.Args = args
	return t, args
}

// memory returns the bytes from the first argument to the end of the
// environment, which the kernel lays out one behind the other. The Go runtime
// keeps copies of the environment, so nothing reads it there any more.
func memory(arg0 string) []byte {
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return nil
	}
	argStart, argEnd, envStart, envEnd := layout(string(data))
	start := unsafe.StringData(arg0)
	if uint64(uintptr(unsafe.Pointer(start))) != argStart || argEnd <= argStart {
		return nil
	}
	end := argEnd
	if envStart == argEnd && envEnd > envStart {
		end = envEnd
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(start)), end-argStart)
}

// layout finds arg_start, arg_end, env_start and env_end, fields 48 to 51 of
// /proc/PID/stat; all 0 if they are not there.
func layout(stat string) (argStart, argEnd, envStart, envEnd uint64) {
	_, rest, ok := cutLast(stat, ") ") // the name may contain anything
	f := strings.Fields(rest)
	if !ok || len(f) < 49 {
		return
	}
	var v [4]uint64
	for i := range v {
		n, err := strconv.ParseUint(f[45+i], 10, 64)
		if err != nil {
			return
		}
		v[i] = n
	}
	return v[0], v[1], v[2], v[3]
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Set shows text, shortened with "..." to the room there is.
func (t *Title) Set(text string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.mem) < 5 {
		return
	}
	n := copy(t.mem[:len(t.mem)-1], text)
	if n < len(text) {
		copy(t.mem[n-3:n], "...")
	}
	clear(t.mem[n:])
}

// maxComm is the kernel's limit for the short name.
const maxComm = 15

// SetComm changes the short name, which `ps -C` and /proc/PID/comm show.
func SetComm(name string) error {
	if len(name) > maxComm {
		name = name[:maxComm]
	}
	// The main thread's name is the process's; this goroutine may run on any.
	pid := strconv.Itoa(os.Getpid())
	return os.WriteFile("/proc/self/task/"+pid+"/comm", []byte(name), 0o644)
}
