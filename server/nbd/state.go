package nbd

// State is what was negotiated on a connection, and what of its stream was
// read but not consumed: all that another server needs to go on with it.
type State struct {
	Export     string `json:"export"`
	Structured bool   `json:"structured,omitempty"` // replies come in chunks
	Allocation bool   `json:"allocation,omitempty"` // base:allocation was agreed on
	// Pending is the front of the request that was being read.
	Pending []byte `json:"pending,omitempty"`
	// Skip is how much of a refused write's payload is still to come.
	Skip int64 `json:"skip,omitempty"`
}
