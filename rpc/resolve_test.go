package rpc

import "os"

// holdLock is the other process of the tests of Resolve.
func holdLock() bool { return os.Getenv("LOCKSTEP_TEST_HOLD") != "" }
