// Package cmd holds the programs, lockstepd and lockstepctl, and the suites
// that drive them as users do: with real clients, real processes and real
// faults.
package cmd
