"""The built-in images: the ELF that the project writes, and the host's view."""

import os
import subprocess
import sys
import types

import pytest

from support.puller import Puller
from support.registry import FakeRegistry, Image, entry, layer
from utsuwa.engine import images
from utsuwa.errors import ImageError, NotFound, RegistryError
from utsuwa.image import builtin


@pytest.fixture
def puller(tmp_path):
    puller = Puller(tmp_path)
    yield puller
    puller.close()


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the ELF is written for two machines")
def test_the_program_says_its_text_and_ends_with_0(tmp_path):
    path = tmp_path / "hello"
    path.write_bytes(builtin.program(os.uname().machine, builtin.TEXT.encode()))
    path.chmod(0o755)
    assert path.stat().st_size < 1024
    done = subprocess.run([path], check=True, capture_output=True, text=True, env={})
    assert done.stdout == builtin.TEXT and done.stderr == ""
    for word in ("namespaces", "cgroup", "overlay", "capabilities", "seccomp", "No daemon", "no registry", "utsuwa explain --last", "utsuwa run --rm -it host bash"):
        assert word in done.stdout


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_program_is_an_elf_for_either_machine(machine, number):
    data = builtin.program(machine, b"hi")
    assert data[:7] == b"\x7fELF\2\1\1" and int.from_bytes(data[18:20], "little") == number and data.endswith(b"hi")
    assert builtin.program("aarch64", b"x" * 300)[120:124] == bytes.fromhex("080880d2")  # mov x8, #64


def test_another_machine_is_told(puller, monkeypatch):
    monkeypatch.setattr(builtin.os, "uname", lambda: types.SimpleNamespace(machine="vax"))
    with pytest.raises(ImageError, match="cannot be written for vax"):
        builtin.Hello()


def test_hello_is_installed_once_as_a_real_image(puller):
    said = []
    record = images.resolve(puller.context, "hello", said.append)
    assert record.name == builtin.HELLO and record.config["Cmd"] == ["/hello"] and len(record.layers) == 1 and not record.host and said == []
    program = puller.paths.layer(record.layers[0]) + "/hello"
    assert os.stat(program).st_mode == 0o100755 and os.listdir(os.path.dirname(program)) == ["hello"]
    assert images.resolve(puller.context, "hello:latest").id == record.id
    assert images.listing(puller.context)[0].references[0][0] == builtin.HELLO and puller.clean()
    with pytest.raises((RegistryError, NotFound)):
        images.resolve(puller.context, "127.0.0.1:1/hello")


def test_host_is_a_view_and_no_files(puller):
    record = images.resolve(puller.context, "host")
    assert (record.host, record.layers, record.id) == (True, [], "") and record.config["Cmd"] in (["bash"], ["sh"])
    assert images.listing(puller.context) == []
    assert any(value.startswith("PATH=/") for value in record.config["Env"])


def test_a_local_image_of_the_same_name_wins(puller, monkeypatch):
    if os.geteuid():
        pytest.skip("needs root: unpacks another's files")
    image = Image(layer(entry("mine")), config={"Cmd": ["mine"]})
    with FakeRegistry() as fake:
        record = puller.pull(fake.add("x", image))
    for name in (builtin.HELLO, builtin.HOST):
        with puller.db.write():
            puller.db.do("INSERT INTO reference VALUES (?,?,?)", name, record.id, record.manifest)
    assert images.resolve(puller.context, "hello").config["Cmd"] == images.resolve(puller.context, "host").config["Cmd"] == ["mine"]


def test_a_local_image_costs_no_import(puller):
    """The hot path: what `resolve` of a local image loads."""
    images.resolve(puller.context, "hello")
    code = (
        "import sys; from utsuwa.engine import context, images; from utsuwa.state.paths import Paths\n"
        f"where = context.open_context(Paths({puller.paths.root!r}, {puller.paths.run!r})); before = set(sys.modules)\n"
        "assert images.resolve(where, 'hello').layers; print(sorted(set(sys.modules) - before)); print([m for m in ('json', 'hashlib', 'urllib3', 'tarfile', 'utsuwa.image') if m in sys.modules])"
    )
    environ = {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(builtin.__file__)))}
    done = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True, env=environ)
    assert done.stdout.splitlines() == ["[]", "[]"]
