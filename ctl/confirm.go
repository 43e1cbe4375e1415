package ctl

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// yesFlag is the flag of commands that ask before they destroy.
func yesFlag(f *pflag.FlagSet, yes *bool) {
	f.BoolVar(yes, "yes", false, "don't ask")
}

// confirm asks whether to go on with what may lose data. Where nobody can be
// asked, --yes is needed.
func (a *app) confirm(yes bool, consequence string) error {
	if yes {
		return nil
	}
	if !a.InTerm {
		return badArgument(consequence + " Nobody can be asked here: add --yes to do it")
	}
	fmt.Fprintf(a.Err, "%s\nType yes to go on: ", consequence)
	answer, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && answer == "" || strings.TrimSpace(answer) != "yes" {
		return errors.New("not confirmed, so nothing was done")
	}
	return nil
}
