package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
)

func TestErrorOnTheWire(t *testing.T) {
	err := Errorf(CodeInvalidState, "cannot promote %s", "r0").WithData(Detail{Subject: "device r0", Next: []string{"demote it on beta"}})
	raw, _ := json.Marshal(err)
	const want = `{"code":-32005,"message":"cannot promote r0","data":{"subject":"device r0","next":["demote it on beta"]}}`
	if string(raw) != want {
		t.Errorf("%s\nwant %s", raw, want)
	}
	var back Error
	if err := json.Unmarshal(raw, &back); err != nil || back.Message != "cannot promote r0" || back.Code != CodeInvalidState {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestErrorsAreTheSameByCode(t *testing.T) {
	err := fmt.Errorf("wrapped: %w", Errorf(CodeNotFound, "no device r1"))
	if !errors.Is(err, &Error{Code: CodeNotFound}) {
		t.Error("the code is not found")
	}
	if errors.Is(err, &Error{Code: CodeBusy}) || errors.Is(err, Errorf(CodeNotFound, "other")) {
		t.Error("another error is taken for it")
	}
}

func TestDataThatIsNoJSONIsLeftOut(t *testing.T) {
	plain := Errorf(CodeFailed, "x")
	if err := plain.WithData(make(chan int)); err.Data != nil || err.Message != "x" {
		t.Errorf("%+v", err)
	}
	if plain.WithData(1); plain.Data != nil {
		t.Error("the original was changed")
	}
}
