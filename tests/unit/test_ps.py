"""ps: the columns as Docker's formatter fills them; and what else the command line's door does to words and exit codes."""

import pytest

from utsuwa.cli import main, ps
from utsuwa.engine import names
from utsuwa.errors import Conflict, NotSupported, UsageError


def known(ports=(), exposed=(), status="running", mode="bridge"):
    return {"network": {"mode": mode, "ports": list(ports)}, "state": {"status": status}, "image_config": {"ExposedPorts": {key: {} for key in exposed}}}


@pytest.mark.parametrize(("container", "text"), [
    (known([("tcp", "", 8080, 80)]), "0.0.0.0:8080->80/tcp"),
    (known([("tcp", "127.0.0.1", 80, 80)]), "127.0.0.1:80->80/tcp"),
    (known([("tcp", "", 80, 80), ("tcp", "", 81, 81), ("tcp", "", 82, 82)]), "0.0.0.0:80-82->80-82/tcp"),
    (known([("tcp", "", 90, 90), ("udp", "", 91, 91), ("tcp", "", 7000, 70)]), "0.0.0.0:90->90/tcp, 0.0.0.0:91->91/udp, 0.0.0.0:7000->70/tcp"),
    (known(exposed=["80/tcp", "81/tcp", "53/udp"]), "80-81/tcp, 53/udp"),
    (known([("tcp", "", 8080, 80)], ["80/tcp", "443/tcp"]), "443/tcp, 0.0.0.0:8080->80/tcp"),
    (known(exposed=["80", "http/tcp", "/"]), "80/tcp"),
    (known([("tcp", "", 80, 80)], ["81/tcp"], status="stopped"), ""),
    (known(exposed=["80/tcp"], mode="none"), ""),
])
def test_ports(container, text):
    assert ps.ports_text(container) == text


@pytest.mark.parametrize(("text", "shown"), [("plain", "plain"), ("two\nlines", "two\\nlines"), ("\x1b[31mred", "\\x1b[31mred"), ("é器 \udcff", "é器 \udcff"), ("\u202eback", "\\u202eback")])
def test_a_message_is_one_line_and_no_terminal_s_command(text, shown):
    assert main.printable(text) == shown


@pytest.mark.parametrize(("error", "command", "code"), [
    (Conflict("in use"), "run", 125), (Conflict("in use"), "exec", 1), (UsageError("bad"), "kill", 1), (NotSupported("not yet supported: --x"), "ps", 125), (OSError(28, "full"), "pull", 1),
    (ValueError("ours"), "run", 125),
])
def test_exit_codes_are_125_for_run_and_for_flags_and_1_for_the_rest(capfd, error, command, code):
    assert main.report(error, command) == code
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["a", "web-1.example_x", "x" * 64])
def test_a_hostname(name):
    assert names.check_hostname(name) == name


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a\nb", "a/b", "ä", "x" * 65])
def test_no_hostname(name):
    with pytest.raises(UsageError, match="invalid hostname"):
        names.check_hostname(name)
