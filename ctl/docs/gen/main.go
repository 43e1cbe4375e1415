// Command gen writes the manual page and the command reference of lockstepctl
// into the folder that it is given.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lockstepd/lockstep/ctl/docs"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen FOLDER")
		os.Exit(2)
	}
	for name, text := range docs.Files() {
		if err := os.WriteFile(filepath.Join(os.Args[1], name), []byte(text), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "gen:", err)
			os.Exit(1)
		}
	}
}
