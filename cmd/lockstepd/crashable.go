//go:build crashable

package main

import (
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// A program with the tag "crashable", which only tests build, crashes by itself
// when it gets USR2: as Go programs do that are wrong, and not as one does that
// is sent a signal.
func init() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGUSR2)
	go func() {
		<-ch
		faults[rand.IntN(len(faults))]()
	}()
}

// faults never return.
var faults = []func(){
	func() { panic("crashable: a panic of its own") },
	func() { *nowhere = 1 }, // a fault of the memory, which Go makes a panic
	func() { // a fatal error, which nothing can recover from
		var mu sync.Mutex
		mu.Unlock()
	},
}

var nowhere *int
