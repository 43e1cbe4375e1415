// Package proc starts programs and owns them to their end: every process is
// ended by its own pid, its output is kept in a log, and none outlives the
// program that started it, however that one ends. The demo, the benchmark and
// the suites with real binaries stand on it.
package proc
