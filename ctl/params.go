package ctl

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
)

// badArgument is an argument that cannot be understood; a command makes a
// usageError of it.
type badArgument string

func (e badArgument) Error() string { return string(e) }

// nodeParams are the params of commands about a node, or every one.
func nodeParams(args []string) (any, error) { return api.NodeParams{Node: arg(args, 0)}, nil }

// deviceParams are the params of commands about a device, or every one.
func deviceParams(args []string) (any, error) { return api.DeviceParams{Device: arg(args, 0)}, nil }

// serviceParams are the params of commands about a service.
func serviceParams(args []string) (any, error) { return api.ServiceParams{Service: arg(args, 0)}, nil }

// arg is an argument, or nothing where it was left out.
func arg(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

// parseSeconds reads a time in seconds, with or without its unit.
func parseSeconds(s string) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "s"), 64)
	if err != nil || v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0, badArgument(fmt.Sprintf("%q is not a number of seconds", s))
	}
	return v, nil
}

// parseSize reads a size in bytes, with or without a binary unit.
func parseSize(s string) (int64, error) {
	number, factor := s, int64(1)
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			number, factor = strings.TrimSpace(n), 1<<(10*(i+1))
		}
	}
	v, err := strconv.ParseInt(number, 10, 64)
	if err != nil || v <= 0 || v > math.MaxInt64/factor {
		return 0, badArgument(fmt.Sprintf("%q is not a size; write bytes, or a whole number with KiB, MiB, GiB or TiB, such as 20GiB", s))
	}
	return v * factor, nil
}
