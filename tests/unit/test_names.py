"""Container names and ids: made up cheaply, checked as Docker checks them."""

import subprocess
import sys

import pytest

from utsuwa.engine import names
from utsuwa.errors import UsageError


def test_made_up_names_pass_the_check_and_differ():
    made = {names.make_up() for _ in range(200)}
    assert len(made) > 150
    assert all(names.check(name) == name and name.count("_") == 1 for name in made)
    assert names.make_up(5)[-1].isdigit()


def test_the_word_lists_have_no_duplicates():
    for words in (names.ADJECTIVES, names.SURNAMES):
        assert len(words) == len(set(words)) >= 80
        assert all(word.isascii() and word.islower() and word.isalpha() for word in words)


def test_ids():
    first, second = names.make_id(), names.make_id()
    assert first != second and len(first) == 64 and names.is_id_prefix(first) and names.is_id_prefix("0")
    assert not names.is_id_prefix("") and not names.is_id_prefix("xyz") and not names.is_id_prefix("a" * 65)
    assert not first[:12].isdigit()


@pytest.mark.parametrize("name", ["web", "a1", "A_b.c-d", "/web", "0x"])
def test_good_names(name):
    assert names.check(name) == name.lstrip("/")


@pytest.mark.parametrize("name", ["", "/", "a", "-a", ".a", "_ab", "a b", "a/b", "é1", "a\nb", "a\0b", "../x", "a%", "x" * 256, "//ab"])
def test_bad_names(name):
    with pytest.raises(UsageError, match="invalid container name"):
        names.check(name)


def test_docker_s_words():
    with pytest.raises(UsageError) as caught:
        names.check("-x")
    assert str(caught.value) == "invalid container name (-x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"


def test_names_import_nothing_heavy():
    code = "import sys; import utsuwa.engine.names; print(*sorted({'re', 'random', 'string', 'uuid', 'secrets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, 'src'); {code}"], capture_output=True, text=True, check=True).stdout.strip() == ""
