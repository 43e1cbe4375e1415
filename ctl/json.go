package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// indent lays a JSON value out for reading.
func indent(raw json.RawMessage) (string, error) {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return "", fmt.Errorf("the answer is not JSON: %w", err)
	}
	b.WriteByte('\n')
	return b.String(), nil
}
