package config

import (
	"fmt"
	"strings"
	"testing"
)

// large is a configuration of 32 nodes and 100 devices.
func large() string {
	var b strings.Builder
	b.WriteString("[cluster]\nname = \"demo\"\nsecret_file = \"secret\"\n")
	for i := range MaxNodes {
		fmt.Fprintf(&b, "[[node]]\nname = \"n%d\"\nid = %d\naddress = \"192.0.2.%d:7799\"\n", i, i, i+1)
	}
	for i := range 100 {
		fmt.Fprintf(&b, "[[device]]\nname = \"r%d\"\nsize = \"1GiB\"\nnodes = [\"n%d\", \"n%d\", \"n%d\"]\nnbd = [\"unix\", \"tcp:127.0.0.1:%d\"]\n", i, i%30, i%30+1, i%30+2, 10000+i)
	}
	return b.String()
}

// BenchmarkDecode100Devices is what a reload costs before anything is applied.
func BenchmarkDecode100Devices(b *testing.B) {
	data := []byte(large())
	for b.Loop() {
		if _, err := Decode(path, data, env()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDiff100Devices(b *testing.B) {
	was, err := Decode(path, []byte(large()), env())
	if err != nil {
		b.Fatal(err)
	}
	is, err := Decode(path, []byte(strings.Replace(large(), "1GiB", "2GiB", 1)), env())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if len(Diff(was, is)) != 1 {
			b.Fatal("not one change")
		}
	}
}
