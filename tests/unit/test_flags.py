"""The flag table behaves as Go's pflag does, which is what Docker's users type (docs/adr/0001)."""

import pytest

from utsuwa.cli.flags import BOOL, INT, LIST, TEXT, Flag, Help, parse
from utsuwa.errors import NotSupported, UsageError

FLAGS = (
    Flag("tty", "t", BOOL, "a terminal"), Flag("interactive", "i", BOOL, "keep input open"), Flag("rm", "", BOOL, "remove it afterwards"),
    Flag("name", "", TEXT, "its name"), Flag("workdir", "w", TEXT, "where it starts", "dir"), Flag("publish", "p", LIST, "ports"), Flag("pids-limit", "", INT, "how many", default=-1),
)


def take(*words, **options):
    return parse("run", "utsuwa run [OPTIONS] IMAGE [COMMAND]", FLAGS, list(words), stop_at_first=True, unsupported=frozenset({"gpus", "m"}), **options)


@pytest.mark.parametrize("words", [
    ["--name", "x"], ["--name=x"], ["--name", "y", "--name", "x"],  # the last one counts
])
def test_a_text(words):
    options, rest = take(*words, "image")
    assert options.text("name") == "x"
    assert options.given == {"name"}
    assert rest == ["image"]


@pytest.mark.parametrize(("words", "value"), [
    (["-w", "/a"], "/a"), (["-w/a"], "/a"), (["-w=/a"], "/a"), (["-tw", "/a"], "/a"), (["-itw/a"], "/a"), (["--workdir="], ""), (["-w", "-t"], "-t"), (["--workdir", "--rm"], "--rm"),
])
def test_a_short_flag_takes_its_value_wherever_it_stands(words, value):
    options, _ = take(*words, "image")
    assert options.text("workdir") == value


@pytest.mark.parametrize(("word", "value"), [
    ("--rm", True), ("--rm=true", True), ("--rm=1", True), ("--rm=t", True), ("--rm=True", True), ("--rm=false", False), ("--rm=0", False), ("--rm=F", False),
])
def test_a_switch(word, value):
    options, rest = take(word, "image")
    assert options.on("rm") is value
    assert rest == ["image"]


def test_a_switch_does_not_take_the_next_word():
    options, rest = take("--rm", "false")
    assert options.on("rm") is True
    assert rest == ["false"]


def test_a_short_switch_may_have_a_value_too():
    options, _ = take("-it=false", "image")
    assert (options.on("interactive"), options.on("tty")) == (True, False)


def test_a_list_gathers_and_is_fresh_each_time():
    assert take("-p", "80:80", "-p81:81", "--publish=82:82", "image")[0].many("publish") == ["80:80", "81:81", "82:82"]
    assert take("image")[0].many("publish") == []


def test_defaults_are_not_given():
    options, _ = take("image")
    assert (options.on("rm"), options.text("name"), options.number("pids-limit"), options.given) == (False, "", -1, set())


def test_a_number_may_be_negative():
    assert take("--pids-limit", "-1", "image")[0].number("pids-limit") == -1


@pytest.mark.parametrize(("words", "rest"), [
    (["image", "-x", "--rm"], ["image", "-x", "--rm"]), (["--rm", "--", "image", "-t"], ["image", "-t"]), (["--", "-image"], ["-image"]),
    (["image", "--", "-t"], ["image", "--", "-t"]), (["-", "-t"], ["-", "-t"]),
])
def test_flags_end_at_the_image(words, rest):
    options, positional = take(*words)
    assert positional == rest
    assert not options.on("tty")


def test_without_that_flags_may_follow():
    options, rest = parse("rm", "utsuwa rm", FLAGS, ["a", "-t", "b", "--", "-i"])
    assert options.on("tty")
    assert not options.on("interactive")
    assert rest == ["a", "b", "-i"]


@pytest.mark.parametrize(("words", "error"), [
    (["--nope", "image"], r"unknown flag: --nope; see 'utsuwa run --help'"),
    (["--nam=x", "image"], r"unknown flag: --nam; see"),  # pflag guesses no abbreviation
    (["-tz", "image"], r"unknown flag: -z; see"),
    (["--name"], r"flag needs an argument: --name; see"),
    (["-w"], r"flag needs an argument: -w; see"),
    (["--rm=maybe", "image"], r"invalid argument 'maybe' for --rm: expected true or false"),
    (["--pids-limit", "many", "image"], r"invalid argument 'many' for --pids-limit: expected a whole number"),
])
def test_what_is_wrong_is_said(words, error):
    with pytest.raises(UsageError, match=error):
        take(*words)


@pytest.mark.parametrize("words", [["--gpus", "all", "image"], ["--gpus=all", "image"]])
def test_what_docker_has_and_we_do_not_is_refused_by_name(words):
    with pytest.raises(NotSupported, match=r"^not yet supported: --gpus$") as caught:
        take(*words)
    assert caught.value.exit_code == 125


def test_a_short_one_of_dockers_too():
    with pytest.raises(NotSupported, match=r"^not yet supported: -m$"):
        take("-m", "64m", "image")


@pytest.mark.parametrize(("least", "most", "words", "error"), [
    (1, None, [], "takes at least 1 argument; usage: utsuwa run"), (2, 2, ["a"], "takes exactly 2 arguments; usage"), (0, 1, ["a", "b"], "takes at most 1 argument; usage"),
    (1, 2, [], "takes 1 to 2 arguments; usage"),
])
def test_the_number_of_arguments_is_bounded(least, most, words, error):
    with pytest.raises(UsageError, match=error):
        take(*words, least=least, most=most)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_flag(word):
    with pytest.raises(Help) as caught:
        take(word, summary="Run it")
    text = str(caught.value)
    assert text.startswith("Usage:  utsuwa run [OPTIONS] IMAGE [COMMAND]\n\nRun it\n\nOptions:\n")
    assert "  -w, --workdir dir" in text
    assert all(f"--{flag.name}" in text and flag.help in text for flag in FLAGS)


def test_help_after_the_image_is_the_commands_own():
    assert take("image", "--help")[1] == ["image", "--help"]
