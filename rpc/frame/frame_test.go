package frame

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var limits = Limits{Size: 100, Depth: 4}

// readAll returns the values of a stream and the error that ended it.
func readAll(r *Reader) (values []string, err error) {
	for {
		v, err := r.Next()
		if err != nil {
			return values, err
		}
		values = append(values, string(v))
	}
}

func TestReaderCutsTheStreamIntoValues(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string
		err      string
	}{
		{"nothing", "", nil, "EOF"},
		{"white space only", " \r\n\t", nil, "EOF"},
		{"one object", `{"a":1}`, []string{`{"a":1}`}, "EOF"},
		{"no separator", `{}[]{"a":[]}`, []string{`{}`, `[]`, `{"a":[]}`}, "EOF"},
		{"white space between", "{} \n\t{}\r\n", []string{`{}`, `{}`}, "EOF"},
		{"brackets and quotes in strings", `{"a":"}]\"{\\"}{}`, []string{`{"a":"}]\"{\\"}`, `{}`}, "EOF"},
		{"bytes that are not UTF-8", "{\"a\":\"\xff\xfe\"}", []string{"{\"a\":\"\xff\xfe\"}"}, "EOF"},
		{"deep enough", `[[[[]]]]`, []string{`[[[[]]]]`}, "EOF"},
		{"breaks off", `{}{"a":`, []string{`{}`}, "unexpected EOF"},
		{"breaks off in a string", `{"a`, nil, "unexpected EOF"},
		{"too deep", `{}[[[[[`, []string{`{}`}, "a request may be at most 4 levels deep"},
		{"too large", `{"a":"` + strings.Repeat("x", 100), nil, "a request may be at most 100 bytes"},
		{"just large enough", `["` + strings.Repeat("x", 96) + `"]`, []string{`["` + strings.Repeat("x", 96) + `"]`}, "EOF"},
		{"a number", `{} 42`, []string{`{}`}, `expected a JSON object, found '4'`},
		{"a string", `"x"`, nil, `expected a JSON object, found '"'`},
		{"garbage", "GET / HTTP/1.1", nil, `expected a JSON object, found 'G'`},
		{"a byte order mark", "\ufeff{}", nil, `expected a JSON object, found 'ï'`},
		{"brackets that do not match", `{"a":[}]`, nil, `invalid character '}' looking for beginning of value at byte 7`},
		{"a trailing comma", `{"a":1,}`, nil, `invalid character '}' looking for beginning of object key string at byte 8`},
		{"a raw control byte", "{\"a\":\"\x01\"}", nil, `invalid character '\x01' in string literal at byte 7`},
		{"a closing bracket", `]`, nil, `expected a JSON object, found ']'`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for how, src := range map[string]io.Reader{
				"whole":        strings.NewReader(tt.in),
				"byte by byte": iotest.OneByteReader(strings.NewReader(tt.in)),
			} {
				got, err := readAll(NewReader(src, limits))
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%s: values (-want +got):\n%s", how, diff)
				}
				if err.Error() != tt.err {
					t.Errorf("%s: error %q, want %q", how, err, tt.err)
				}
			}
		})
	}
}

func TestReaderErrorsAreTyped(t *testing.T) {
	_, err := NewReader(strings.NewReader("x"), limits).Next()
	if _, ok := errors.AsType[*SyntaxError](err); !ok {
		t.Errorf("garbage: %T", err)
	}
	r := NewReader(strings.NewReader(`{"id":7,"x":[[[[[`), limits)
	_, err = r.Next()
	if e, ok := errors.AsType[*LimitError](err); !ok || e.Limit != 4 {
		t.Errorf("too deep: %T", err)
	}
	if _, again := r.Next(); again != err {
		t.Errorf("the error is not sticky: %v", again)
	}
	if got := string(r.Partial()); got != `{"id":7,"x":[[[[[` {
		t.Errorf("partial is %q", got)
	}
}

func TestReaderPassesOnErrorsOfItsSource(t *testing.T) {
	broken := errors.New("broken")
	_, err := NewReader(iotest.ErrReader(broken), limits).Next()
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// A stream of large values must not leave a large buffer behind, nor one that
// is larger than twice the limit.
func TestReaderBoundsItsBuffer(t *testing.T) {
	const size = 1 << 20
	big := `["` + strings.Repeat("x", size-4) + `"]`
	r := NewReader(strings.NewReader(big+`{}`), Limits{Size: size, Depth: 4})
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if len(r.buf) > 2*size {
		t.Errorf("the buffer grew to %d bytes", len(r.buf))
	}
	for range 2 {
		r.Next()
	}
	if len(r.buf) > keepBuffer {
		t.Errorf("%d bytes are still held", len(r.buf))
	}
}

func members(b string) (list []string) {
	for k, v := range Members([]byte(b)) {
		list = append(list, string(k)+string(v))
	}
	return list
}

func elements(b string) (list []string) {
	for v := range Elements([]byte(b)) {
		list = append(list, string(v))
	}
	return list
}

func TestMembersOfWholeAndBrokenObjects(t *testing.T) {
	for in, want := range map[string][]string{
		`{}`:                                    nil,
		` { "a" : 1 , "b":[{}] } `:              {`"a"1`, `"b"[{}]`},
		`{"id":0,"method":"x","params":[tru]}`:  {`"id"0`, `"method""x"`, `"params"[tru]`},
		`{"id":0,"method":"x","params":["aaaaa`: {`"id"0`, `"method""x"`},
		`{"id":18446744073709551616,"m`:         {`"id"18446744073709551616`},
		`{"id":12`:                              nil, // more digits may have been to come
		`{"id":"a\"}`:                           nil,
		`{"a":,"b":1}`:                          nil,
		`{"a" 1}`:                               nil,
		`{1:1}`:                                 nil,
		`{"a":[1,{"b":"]"}],"c":2}`:             {`"a"[1,{"b":"]"}]`, `"c"2`},
		`[1]`:                                   nil,
		``:                                      nil,
	} {
		if diff := cmp.Diff(want, members(in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestElementsOfWholeAndBrokenArrays(t *testing.T) {
	for in, want := range map[string][]string{
		`[]`:                nil,
		`[ 1 , "a,]" ,[2]]`: {`1`, `"a,]"`, `[2]`},
		`[1,2`:              {`1`},
		`["a","b`:           {`"a"`},
		`{}`:                nil,
	} {
		if diff := cmp.Diff(want, elements(in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestUnquote(t *testing.T) {
	for _, tt := range []struct{ in, want, err string }{
		{`""`, "", ""},
		{`"plain"`, "plain", ""},
		{`"q\"u\\o\/te"`, `q"u\o/te`, ""},
		{`"\b\f\n\r\t"`, "\b\f\n\r\t", ""},
		{`"\u00e9\u20ac"`, "é€", ""},
		{`"\ud83d\ude00"`, "😀", ""},
		{`"\ud83dx"`, "\ufffdx", ""},
		{`"\ude00\ud83d"`, "\ufffd\ufffd", ""},
		{"\"\xff\xfe\x7f\"", "\xff\xfe\x7f", ""},
		{"\"\xff\\n\"", "\xff\n", ""},
		{`"a\u0000b"`, "", ErrNUL.Error()},
		{`"a`, "", errNotString.Error()},
		{`a"`, "", errNotString.Error()},
		{`"`, "", errNotString.Error()},
		{`1`, "", errNotString.Error()},
		{`"\u12"`, "", errNotString.Error()},
		{`"\x"`, "", errNotString.Error()},
		{`"\"`, "", errNotString.Error()},
		{`"\n"x"`, "", errNotString.Error()},
	} {
		got, err := Unquote([]byte(tt.in))
		if got != tt.want || (err != nil) != (tt.err != "") || (err != nil && err.Error() != tt.err) {
			t.Errorf("%s: %q, %v; want %q, %s", tt.in, got, err, tt.want, tt.err)
		}
	}
}

func TestAppendQuote(t *testing.T) {
	for in, want := range map[string]string{
		"":                      `""`,
		"<a&b>":                 `"<a&b>"`,
		"q\"u\\o":               `"q\"u\\o"`,
		"\b\f\n\r\t\x01\x1f":    `"\b\f\n\r\t\u0001\u001f"`,
		"é\x7f":                 "\"é\x7f\"",
		"\xff\xfe":              "\"\xff\xfe\"",
		"a\x00b":                "\"a\uFFFDb\"",
		"trailing newline kept": `"trailing newline kept"`,
	} {
		if got := string(AppendQuote(nil, in)); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestWithoutNUL(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":"b"}`:                 `{"a":"b"}`,
		`["a\u0000b\u0000"]`:        `["a\ufffdb\ufffd"]`,
		`["\\u0000"]`:               `["\\u0000"]`,
		`["\\\u0000"]`:              `["\\\ufffd"]`,
		`["\"\u0000","\u0001\u00"]`: `["\"\ufffd","\u0001\u00"]`,
	} {
		if got := string(WithoutNUL([]byte(in))); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, seed := range []string{`{"id":0,"method":"x","params":["a"]}`, `[{},{}]{}`, `{"a":"\"`, "{}\n[[[[[", `{"a":1}x`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, wholeErr := readAll(NewReader(bytes.NewReader(data), limits))
		split, splitErr := readAll(NewReader(iotest.OneByteReader(bytes.NewReader(data)), limits))
		if diff := cmp.Diff(whole, split); diff != "" || wholeErr.Error() != splitErr.Error() {
			t.Fatalf("it matters how the bytes arrive: %v, %v\n%s", wholeErr, splitErr, diff)
		}
		for _, v := range whole {
			if !json.Valid([]byte(v)) || len(v) > limits.Size {
				t.Fatalf("returned %q", v)
			}
		}
	})
}

// Members and Elements agree with the JSON library on what is valid, and come
// to no harm on what is not.
func FuzzLook(f *testing.F) {
	for _, seed := range []string{`{"id":0,"method":"x","params":["a"]}`, `[1,"a",{},[]]`, `{"a":"\"`, `{"a":[}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := len(members(string(data)))
		elems := elements(string(data))
		var obj map[string]json.RawMessage
		if json.Unmarshal(data, &obj) == nil && obj != nil && got < len(obj) {
			t.Fatalf("%d members of %d", got, len(obj))
		}
		var arr []json.RawMessage
		if json.Unmarshal(data, &arr) == nil && len(elems) != len(arr) {
			t.Fatalf("%d elements of %d", len(elems), len(arr))
		}
	})
}

func FuzzQuote(f *testing.F) {
	f.Add("a\"\\\n\xff€")
	f.Add("\x00\x7f")
	f.Fuzz(func(t *testing.T, s string) {
		quoted := AppendQuote(nil, s)
		got, err := Unquote(quoted)
		if want := strings.ReplaceAll(s, "\x00", "\uFFFD"); err != nil || got != want {
			t.Fatalf("%q came back as %q, %v", s, got, err)
		}
		if !json.Valid(quoted) {
			t.Fatalf("%s is not JSON", quoted)
		}
		var std string
		if utf8.ValidString(s) && (json.Unmarshal(quoted, &std) != nil || std != got) {
			t.Fatalf("the JSON library reads %q", std)
		}
	})
}

func FuzzUnquote(f *testing.F) {
	f.Add([]byte(`"\ud83d\ude00\u0000"`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := Unquote(raw)
		var std string
		if err == nil && utf8.Valid(raw) && json.Unmarshal(raw, &std) == nil && std != got {
			t.Fatalf("%q, the JSON library reads %q", got, std)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	one := `{"id":123456,"method":"device/show","params":["r0"]}`
	stream := strings.Repeat(one, 1000)
	b.SetBytes(int64(len(stream)))
	for b.Loop() {
		r := NewReader(strings.NewReader(stream), Limits{Size: 1 << 20, Depth: 100})
		for range 1000 {
			if _, err := r.Next(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
