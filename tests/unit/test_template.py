"""--format: what Docker's client (28.2.2) printed for the same templates on the same object, and its tables."""

import pytest

from utsuwa.cli import gofmt
from utsuwa.cli.template import columns, render, table
from utsuwa.errors import UsageError

ROW = {
    "E": [], "F": 1.5, "Id": "abc", "L": ["a", "b"], "M": {"a.b": "c", "k": "v"}, "N": 7, "Name": "/n", "Nil": None, "Q": 'a"b<é\n',
    "S": {"Deep": {"X": [{"y": 1}, {"y": 2}]}, "Running": True}, "T": True,
}
SAME = [
    ("{{.Id}} {{.Name}}", "abc /n"), ("{{.S.Running}}", "true"), ("{{.F}} {{.N}}", "1.5 7"), ("{{.Nil}}", "<no value>"),
    ("{{.M}} {{.L}} {{.S}}", "map[a.b:c k:v] [a b] map[Deep:map[X:[map[y:1] map[y:2]]] Running:true]"),
    ("{{json .L}}{{json .Nil}}{{json .S}}{{json .Q}}", '["a","b"]null{"Deep":{"X":[{"y":1},{"y":2}]},"Running":true}"a\\"b<é\\n"'),
    ("{{range .S.Deep.X}}{{.y}},{{end}}", "1,2,"), ("{{range $k, $v := .M}}{{$k}}={{$v}};{{end}}", "a.b=c;k=v;"),
    ("{{range $i, $v := .L}}{{if $i}}, {{end}}{{$v}}{{$.N}}{{end}}", "a7, b7"), ("{{range .E}}x{{else}}none{{end}}", "none"),
    ('{{range .L}}{{if eq . "a"}}{{continue}}{{end}}{{.}}{{end}}', "b"), ("{{range .L}}{{.}}{{break}}{{end}}", "a"), ("{{range 3}}{{.}}{{end}}", "012"),
    ('{{if ne .Id "abc"}}A{{else if eq .Name "/n"}}B{{else}}C{{end}}', "B"), ('{{if ne .Id "abc"}}A{{else if eq .Name "n"}}B{{else}}C{{end}}', "C"),
    ("{{with .Nil}}a{{else with .N}}b{{.}}{{end}}", "b7"), ("{{with $x := .N}}{{$x}}{{end}}", "7"), ("{{$x := 1}}{{$x = 2}}{{$x}}", "2"),
    ('{{index .M "a.b"}} {{index .L 1}} {{(index .S.Deep.X 1).y}} {{index .S "Deep" "X" 1 "y"}}', "c b 2 2"),
    ('{{len .L}}{{len .M}}{{len "é"}}', "222"), ('{{slice "abc" 1 2}} {{slice "abcdef" 2}}', "b cdef"),
    ("{{and .N 0}} {{or 0 .N}} {{not .N}} {{or .N .Zip}}", "0 7 false 7"),
    ("{{eq 1 2 1}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 2}} {{eq .Nil nil}}", "true true true true false true true"),
    ("a  {{- 1 -}}  b {{/* c */}} d {{- /* c */ -}} e", "a1b  de"), ("{{- .N }} {{.N -}} x", "7 7x"),
    ('{{"a" | upper | printf "%s-%s" "z"}} {{upper (printf "%s" "x")}} {{title "ab cd-ef"}}', "z-A X Ab Cd-Ef"),
    ('{{join (split "b,a" ",") "-"}} {{pad "a" 1 2}}|{{truncate "abcdef" 3}}', "b-a  a  |abc"), ('{{println "a" 1 2}}{{print "a" 1 2 "b" 3}}', "a 1 2\na1 2b3"),
    ('{{printf "%5s|%-5s|%05d|%x|%X|%o|%b|%c|%U|%t|%%|%T|%T" "a" "b" 42 255 255 8 5 65 65 true 1 "s"}}', "    a|b    |00042|ff|FF|10|101|A|U+0041|true|%|int|string"),
    ('{{printf "%d %s" "x" 1}} {{printf "%d"}} {{printf "%d" 1 2}}', "%!d(string=x) %!s(int=1) %!d(MISSING) 1%!(EXTRA int=2)"),
    ('{{printf "%.2f %e %+d %#x %*d|%q|%.2s" 1.5 3.0 5 255 5 3 "a\\"b\\n" "abc"}}', '1.50 3.000000e+00 +5 0xff     3|"a\\"b\\n"|ab'),
    ("{{0x10}} {{1_000}} {{1e3}} {{010}} {{-5}} {{1.5e30}} {{0.00001}} {{1e20}} {{1234567.0}} {{'a'}}", "16 1000 1000 8 -5 1.5e+30 1e-05 1e+20 1.234567e+06 97"),
    ('{{`raw "x"`}} {{"\\u00e9\\x41\\101"}}', 'raw "x" éAA'), ("{{/* x */}}{{.N}}}}", "7}}"),
]
WRONG = [
    ("{{.Foo}}", ':1:2: executing "" at <.Foo>: map has no entry for key "Foo"'), ("{{.S.Foo}}", ':1:4: executing "" at <.S.Foo>: map has no entry for key "Foo"'),
    ("é\né{{.Foo}}", ':2:4: executing "" at <.Foo>: map has no entry for key "Foo"'), ("{{.Nil.x}}", ':1:6: executing "" at <.Nil.x>: nil pointer evaluating interface {}.x'),
    ("{{.Foo", ":1: unclosed action"), ("{{foo .L}}", ':1: function "foo" not defined'), ("{{}}", ":1: missing value for command"), ("{{if}}", ":1: missing value for if"),
    ("{{end}}", ":1: unexpected {{end}}"), ("{{else}}", ":1: unexpected {{else}}"), ("{{if .N}}", ":1: unexpected EOF"), ("{{if .N}}{{else}}{{else}}{{end}}", ":1: expected end; found {{else}}"),
    ("{{$x}}", ':1: undefined variable "$x"'), ("{{.x-y}}", ":1: bad character U+002D '-'"), ('{{"abc}}', ":1: unterminated quoted string"), ("{{(1}}", ":1: unclosed left paren"),
    ("{{1)}}", ":1: unexpected right paren"), ("{{.N | 1}}", ":1: non executable command in pipeline stage 2"), ("{{break}}", ":1: {{break}} outside {{range}}"),
    ("{{@}}", ':1: unexpected "@" in command'), ("{{1a}}", ':1: bad number syntax: "1a"'), ("{{/* x }}", ":1: unclosed comment"), ("{{/* x */ y}}", ":1: comment ends before closing delimiter"),
    ("{{index .L 5}}", ':1:2: executing "" at <index .L 5>: error calling index: index out of range: 5'), ("{{range .T}}{{end}}", ':1:8: executing "" at <.T>: range can\'t iterate over true'),
    ("{{nil}}", ':1:2: executing "" at <nil>: nil is not a command'), ("{{.Id .Name}}", ':1:2: executing "" at <.Id>: Id is not a method but has arguments'),
    ('{{eq 1 "a"}}', ':1:2: executing "" at <eq 1 "a">: error calling eq: incompatible types for comparison'), ("{{lower 1}}", ':1:8: executing "" at <1>: expected string; found 1'),
    ('{{lower "A" "B"}}', ':1:2: executing "" at <lower>: wrong number of args for lower: want 1 got 2'), ("{{len 3}}", ':1:2: executing "" at <len 3>: error calling len: len of type int'),
    ('{{"a" "b"}}', ':1:2: executing "" at <"a">: can\'t give argument to non-function "a"'), ('{{"x".y}}', ':1: unexpected . after term "\\"x\\""'),
]


@pytest.mark.parametrize(("template", "text"), SAME)
def test_as_docker_prints(template, text):
    assert render(template, ROW) == text


@pytest.mark.parametrize(("template", "why"), WRONG)
def test_docker_s_words_for_what_is_wrong(template, why):
    with pytest.raises(UsageError) as caught:
        render(template, ROW)
    assert str(caught.value) == f"template parsing error: template: {why}"


@pytest.mark.parametrize("template", ["{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "{{if 1}}" * 5000 + "{{end}}" * 5000, "{{if 0}}" + "{{else if 0}}" * 5000 + "{{end}}"])
def test_deep_templates_are_refused(template):
    with pytest.raises(UsageError, match="more than 100 blocks or parentheses"):
        render(template, ROW)


def test_typed_nils_and_maps():
    row = {"Entrypoint": gofmt.Nil("[]"), "Labels": gofmt.Map({"a": "b"}), "Health": gofmt.Nil("<nil>")}
    assert render('{{.Entrypoint}}{{len .Entrypoint}}{{.Health}}|{{index .Labels "zz"}}|{{.Labels.zz}}|{{index .Labels "a"}}{{range .Entrypoint}}x{{end}}', row) == "[]0<nil>||<no value>|b"
    assert render("{{json .}}", row) == '{"Entrypoint":null,"Labels":{"a":"b"},"Health":null}'


HEADERS = {"ID": "CONTAINER ID", "Image": "IMAGE", "Names": "NAMES", "State": "STATE", "Labels": "LABELS"}
ROWS = [
    {"ID": "aaaaaaaaaaaa", "Image": "busybox", "Names": "one", "State": "running", "Labels": "z=1", "Label": {"a.b-c": "x"}.get},
    {"ID": "cccccccccccc", "Image": "127.0.0.1:5000/some/long/image:tag", "Names": "器の名前", "State": "exited", "Labels": "", "Label": lambda _name: ""},
]
DEFAULT = r"table {{.ID}}\t{{.Image}}\t{{.Names}}"


@pytest.mark.parametrize(("fmt", "text"), [
    ("", "CONTAINER ID   IMAGE                                NAMES\naaaaaaaaaaaa   busybox                              one\ncccccccccccc   127.0.0.1:5000/some/long/image:tag   器の名前\n"),
    (r"table {{.Names}}\t{{upper .State}}\t", "NAMES      STATE     \none        RUNNING   \n器の名前   EXITED    \n"),
    ("{{.ID}}: {{.Names}}", "aaaaaaaaaaaa: one\ncccccccccccc: 器の名前\n"), (r"{{.ID}}\t{{.Names}}\n-", "aaaaaaaaaaaa\tone\n-\ncccccccccccc\t器の名前\n-\n"),
    (r'table {{.Names}}\t{{.Label "a.b-c"}}\t{{json .ID}}', 'NAMES      b c       CONTAINER ID\none        x         "aaaaaaaaaaaa"\n器の名前             "cccccccccccc"\n'),
    (r'table {{if eq .State "running"}}{{.ID}}\t{{end}}{{.Names}}', "NAMES\naaaaaaaaaaaa   one\n器の名前\n"),
    (r"table {{pad .ID 1 2}}|{{truncate .Image 3}}", " CONTAINER ID  |IMAGE\n aaaaaaaaaaaa  |bus\n cccccccccccc  |127\n"),
])
def test_tables(fmt, text):
    assert table(fmt, ROWS, DEFAULT, HEADERS) == text


def test_json_rows_are_sorted_and_have_no_methods():
    assert table("json", ROWS[:1], DEFAULT, HEADERS) == '{"ID":"aaaaaaaaaaaa","Image":"busybox","Labels":"z=1","Names":"one","State":"running"}\n'


def test_no_rows():
    assert table("table", [], DEFAULT, HEADERS) == "CONTAINER ID   IMAGE     NAMES\n"
    assert table("{{.ID}}", [], DEFAULT, HEADERS) == table("json", [], DEFAULT, HEADERS) == ""


def test_a_field_that_no_row_has():
    with pytest.raises(UsageError, match=r'map has no entry for key "Nope"; the fields are ID, Image, Label'):
        table("{{.Nope}}", ROWS, DEFAULT, HEADERS)


def test_columns_are_runs_of_lines():
    assert columns("a\tb\nlonger than ten\tc\n\nx\ty") == "a                 b\nlonger than ten   c\n\nx         y"
