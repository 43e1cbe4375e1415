package main

import (
	"context"

	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
)

// dial opens an export for the ledger.
func dial(ctx context.Context, socket, export string) (ledger.Device, error) {
	return nbdio.Dial(ctx, socket, export)
}
