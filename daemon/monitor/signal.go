package monitor

import "strconv"

// Signal is a signal number as Linux numbers them, on every architecture that
// lockstep is built for. The package knows signals by number alone, so that it
// needs nothing of the operating system.
type Signal int

// The signals that the policy tells apart.
const (
	SIGHUP  Signal = 1
	SIGINT  Signal = 2
	SIGQUIT Signal = 3
	SIGILL  Signal = 4
	SIGABRT Signal = 6
	SIGBUS  Signal = 7
	SIGFPE  Signal = 8
	SIGKILL Signal = 9
	SIGSEGV Signal = 11
	SIGPIPE Signal = 13
	SIGALRM Signal = 14
	SIGTERM Signal = 15
	SIGXCPU Signal = 24
	SIGXFSZ Signal = 25
)

// signalWords is how the C library names the signals to people.
var signalWords = [...]string{
	1: "Hangup", 2: "Interrupt", 3: "Quit", 4: "Illegal instruction",
	5: "Trace/breakpoint trap", 6: "Aborted", 7: "Bus error", 8: "Floating point exception",
	9: "Killed", 10: "User defined signal 1", 11: "Segmentation fault", 12: "User defined signal 2",
	13: "Broken pipe", 14: "Alarm clock", 15: "Terminated", 16: "Stack fault",
	17: "Child exited", 18: "Continued", 19: "Stopped (signal)", 20: "Stopped",
	21: "Stopped (tty input)", 22: "Stopped (tty output)", 23: "Urgent I/O condition",
	24: "CPU time limit exceeded", 25: "File size limit exceeded", 26: "Virtual timer expired",
	27: "Profiling timer expired", 28: "Window changed", 29: "I/O possible",
	30: "Power failure", 31: "Bad system call",
}

// String names the signal as a person knows it: "Segmentation fault".
func (s Signal) String() string {
	if s > 0 && int(s) < len(signalWords) {
		return signalWords[s]
	}
	return "signal " + strconv.Itoa(int(s))
}

// crash reports whether death by the signal is the process's own fault: the
// list of Open vSwitch's monitor.
func (s Signal) crash() bool {
	switch s {
	case SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL, SIGPIPE, SIGSEGV, SIGXCPU, SIGXFSZ:
		return true
	}
	return false
}
