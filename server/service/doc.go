// Package service runs the engine's parts: it starts them in the order of
// what they need, side by side where they can, watches them, and stops them
// in the exact reverse.
//
// A part is a [Service], registered under an [ID], a name and a version, with
// the IDs that it needs; it is looked up by exactly those, so that another
// that provides the same can take its place. All that crosses the interfaces
// of this package is contexts, errors and plain data, so that a service may
// as well be the front of one that lives in a process of its own.
//
// The life of a service:
//
//	            Start                    ready
//	stopped ────────────→ starting ────────────→ running
//	   ↑  ↑                  │ error                │  │ Stop
//	   │  │                  ↓                      │  ↓
//	   │  └──────────────  failed ←─────────────────┘ stopping
//	   │        Stop         │ ↑   Run returned,        │
//	   │                     │ │   a contained panic    │
//	   │                     ↓ │                        │
//	   │                  starting (by its Policy)      │
//	   └────────────────────────────────────────────────┘
package service
