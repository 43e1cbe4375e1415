package daemon_test

import "unsafe"

func ptr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }
