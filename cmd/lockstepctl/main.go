// Command lockstepctl is the companion of lockstepd: it looks at a running
// daemon and commands it. See package ctl.
package main

import (
	"os"

	"github.com/lockstepd/lockstep/ctl"
)

// release is set by the linker.
var release string

func main() { os.Exit(ctl.Main(os.Args[1:], ctl.OS(release))) }
