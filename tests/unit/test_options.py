"""RunOptions: what a program asks of `run` is checked by kind before anything starts."""

import pytest

from utsuwa.engine.options import RunOptions, environment
from utsuwa.errors import UsageError


def test_good_values_are_kept():
    options = RunOptions("busybox", ("echo", "hi"), cpus=1, memory=1 << 26, env=("A=b",), entrypoint=["sh"], remove=True)
    assert (options.args, options.cpus, options.memory, options.env, options.entrypoint, options.remove) == (["echo", "hi"], 1, 1 << 26, ["A=b"], ["sh"], True)
    assert RunOptions("busybox").args == [] and RunOptions("busybox").entrypoint is None


@pytest.mark.parametrize(("given", "text"), [
    ({"memory": "64m"}, "option memory of run: expected a whole number, got '64m'"), ({"cpus": "0.5"}, "option cpus of run: expected a number, got '0.5'"),
    ({"user": 1000}, "option user of run: expected a string, got 1000"), ({"pids_limit": None}, "option pids_limit of run: expected a whole number, got None"),
    ({"entrypoint": "echo"}, "option entrypoint of run: expected a list of strings, got 'echo'"), ({"volumes": "a:/b"}, "option volumes of run: expected a list of strings, got 'a:/b'"),
    ({"env": [1]}, "option env of run: expected a list of strings, got [1]"), ({"remove": 1}, "option remove of run: expected True or False, got 1"),
    ({"memory": True}, "option memory of run: expected a whole number, got True"), ({"args": "echo hi"}, "option args of run: expected a list of strings, got 'echo hi'"),
])
def test_a_value_of_the_wrong_kind_is_refused(given, text):
    with pytest.raises(UsageError) as caught:
        RunOptions("busybox", **given)
    assert str(caught.value) == text


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown option 'colour' of run; known are args, cap_add, "):
        RunOptions("busybox", colour="red")


def test_the_environment_of_the_caller():
    own = {"HOME": "/root", "EMPTY": ""}
    assert environment(["A=b", "HOME", "EMPTY", "NOT_SET", "X="], own) == ["A=b", "HOME=/root", "EMPTY=", "NOT_SET", "X="]
    for bad in ("", "=x", "A=\0"):
        with pytest.raises(UsageError, match="invalid environment variable"):
            environment([bad], own)
