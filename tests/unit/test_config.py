"""Options and an image become config.json: Docker's rules for command, environment, user and limits, and the document against the specification's own schema."""

import copy
import json
import os
import pathlib
import re

import pytest

from utsuwa.engine import config
from utsuwa.engine.options import RunOptions, environment as own_environment
from utsuwa.errors import SpecError, UsageError
from utsuwa.security import capabilities, paths, seccomp
from utsuwa.spec.image import ImageRecord, empty_config

SCHEMA = pathlib.Path("/work/shared/reference/runtime-spec/config-schema.json")
PASSWD, GROUP = b"root:x:0:0::/root:\nuser:x:1000:1000::/home/user:\n", b"extra:x:2000:user\n"


def image(**settings):
    return ImageRecord("sha256:" + "0" * 64, "", "linux/amd64", [], {**empty_config(), **settings}, passwd=PASSWD, group=GROUP)


def made(options, record=None, **given):
    """Return (config.json, capabilities) for options; `given` replaces what the engine decides beside them."""
    decided = {"directory": "/s/c", "hostname": "vessel", "cgroup": "/utsuwa/c", "netns": "/run/n", "binds": [], "in_userns": False, **given}
    return config.document(options, record or image(Cmd=["sh"]), **decided)


def options(*args, **given):
    return RunOptions("image", list(args), **{"network": "bridge", **given})


# ---- command

@pytest.mark.parametrize(("entry", "cmd", "given", "args", "wanted"), [
    (None, ["a", "b"], None, [], ["a", "b"]), (["e"], ["a"], None, [], ["e", "a"]), (["e"], ["a"], None, ["x", "y"], ["e", "x", "y"]), (None, ["a"], None, ["x"], ["x"]),
    (["e"], ["a"], ["n"], [], ["n"]), (["e"], ["a"], ["n"], ["x"], ["n", "x"]), (["e"], ["a"], [], ["x"], ["x"]), (["e"], None, None, [], ["e"]), ([], ["a"], None, [], ["a"]),
])
def test_entrypoint_and_command_are_joined_as_docker_does(entry, cmd, given, args, wanted):
    assert config.command(options(*args, entrypoint=given), image(Entrypoint=entry, Cmd=cmd)) == wanted


@pytest.mark.parametrize(("settings", "given"), [({}, None), ({"Cmd": []}, None), ({"Entrypoint": ["e"], "Cmd": ["a"]}, [])])
def test_a_container_without_a_command(settings, given):
    with pytest.raises(UsageError, match="no command specified: the image image has none"):
        config.command(options(entrypoint=given), image(**settings))


def test_a_word_with_a_nul():
    with pytest.raises(UsageError, match="a word contains a NUL character"):
        config.command(options("echo", "a\0b"), image())


# ---- environment

def test_the_environment_s_order_and_who_wins():
    record = image(Env=["PATH=/image", "A=image", "B=image", "EMPTY="])
    found = config.environment(options(env=["B=mine", "C=a=b", "HOSTNAME=mine"]), record, "vessel", "/home")
    assert found == ["PATH=/image", "HOSTNAME=mine", "B=mine", "C=a=b", "A=image", "EMPTY=", "HOME=/home"]
    assert config.environment(options(env=["A", "HOSTNAME"]), record, "vessel", "/home") == ["PATH=/image", "B=image", "EMPTY=", "HOME=/home"]  # a bare name takes away


def test_term_is_set_for_a_terminal_and_home_where_nobody_did():
    assert config.environment(options(terminal=True), image(), "vessel", "/root") == [f"PATH={config.DEFAULT_PATH}", "HOSTNAME=vessel", "TERM=xterm", "HOME=/root"]
    assert config.environment(options(terminal=True, env=["TERM=vt100", "HOME=/mine"]), image(), "v", "/root")[-2:] == ["TERM=vt100", "HOME=/mine"]


def test_a_variable_without_a_value_is_the_caller_s_and_stays_bare_without_one():
    assert own_environment(["GIVEN", "MISSING", "SET=x", "EMPTY="], {"GIVEN": "1", "OTHER": "2"}) == ["GIVEN=1", "MISSING", "SET=x", "EMPTY="]
    for bad in ("", "=x", "A=\0"):
        with pytest.raises(UsageError, match="invalid environment variable"):
            own_environment([bad], {})


# ---- process

def test_who_it_is_and_where_it_starts():
    process = made(options("id", user="user:2000"), image(User="root", WorkingDir="/image"))[0]["process"]
    assert (process["user"], process["cwd"]) == ({"uid": 1000, "gid": 2000, "additionalGids": [2000]}, "/image")
    process = made(options("id", workdir="/mine"), image(User="user", WorkingDir="/image"))[0]["process"]
    assert (process["user"], process["cwd"]) == ({"uid": 1000, "gid": 1000, "additionalGids": [1000, 2000]}, "/mine")
    assert made(options("id"))[0]["process"]["cwd"] == "/"


@pytest.mark.parametrize("path", ["relative", "./x", "", " /x", "/x\0"])
def test_a_work_directory_that_is_not_absolute(path):
    with pytest.raises(UsageError, match="is invalid, it needs to be an absolute path"):
        config.work_directory(path)


@pytest.mark.parametrize(("user", "effective"), [("", True), ("0", True), ("user", False), ("4242", False)])
def test_only_root_has_capabilities_in_force_and_nobody_inherits(user, effective):
    document, kept = made(options("id", user=user, cap_add=["NET_ADMIN"], cap_drop=["CHOWN"]))
    assert sorted(kept) == sorted({*capabilities.DEFAULT, "CAP_NET_ADMIN"} - {"CAP_CHOWN"})
    assert document["process"]["capabilities"] == {"bounding": kept, "effective": kept if effective else [], "permitted": kept if effective else []}
    mask = capabilities.mask(kept)
    masks = config.masks(kept, document["process"]["user"]["uid"])
    assert masks == {"bounding": mask, "effective": mask if effective else 0, "permitted": mask if effective else 0, "inheritable": 0, "ambient": 0}


def test_flags_that_pass_through():
    document = made(options("id", terminal=True, no_new_privs=True, read_only=True, console=(24, 80)))[0]
    assert document["process"]["noNewPrivileges"] is document["process"]["terminal"] is document["root"]["readonly"] is True
    assert document["process"]["consoleSize"] == {"height": 24, "width": 80} and document["hostname"] == "vessel"
    assert "consoleSize" not in made(options("id"))[0]["process"]


# ---- limits

def test_limits_in_the_specification_s_units():
    found = config.resources(options(memory=64 << 20, cpus=0.5, pids_limit=20))
    assert (found["memory"], found["cpu"], found["pids"]) == ({"limit": 64 << 20, "swap": 128 << 20}, {"quota": 50000, "period": 100000}, {"limit": 20})
    assert set(config.resources(options())) == set(config.resources(options(pids_limit=-1))) == {"devices"}


@pytest.mark.parametrize(("given", "says"), [
    ({"memory": 6 * 1024 * 1024 - 1}, "minimum memory limit allowed is 6MB"), ({"cpus": 0.009}, "range of CPUs is from 0.01"), ({"cpus": (os.cpu_count() or 1) + 0.01}, "CPUs available"),
    ({"pids_limit": 4194305}, "invalid --pids-limit 4194305: at most 4194304"),
])
def test_limits_that_cannot_be(given, says):
    with pytest.raises(UsageError, match=says):
        config.resources(options(**given))


def test_the_least_and_the_most_are_allowed():
    assert config.resources(options(memory=6 << 20, cpus=0.01, pids_limit=4194304))["cpu"] == {"quota": 1000, "period": 100000}
    assert config.resources(options(cpus=float(os.cpu_count() or 1)))["cpu"]["quota"] == 100000 * (os.cpu_count() or 1)


def test_without_control_groups_there_are_no_limits_and_no_path():
    linux = made(options("id"), cgroup="")[0]["linux"]
    assert linux["resources"] == {} and "cgroupsPath" not in linux


# ---- namespaces, mounts

def test_namespaces_and_sysctls_by_network():
    kinds = ["mount", "uts", "ipc", "pid", "cgroup"]
    bridge, none, host = (made(options("id", network=network), netns=netns)[0]["linux"] for network, netns in (("bridge", "/run/n"), ("none", ""), ("host", "")))
    assert [item["type"] for item in bridge["namespaces"]] == [*kinds, "network"] and bridge["namespaces"][-1]["path"] == "/run/n"
    assert none["namespaces"][-1] == {"type": "network"} and [item["type"] for item in host["namespaces"]] == kinds
    assert none["sysctl"] == {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"} and "sysctl" not in host
    assert made(options("id", network="none"), in_userns=True)[0]["linux"]["sysctl"] == {"net.ipv4.ip_unprivileged_port_start": "0"}


def test_masked_and_readonly_paths_are_docker_s():
    linux = made(options("id"))[0]["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == (paths.masked(), paths.readonly())
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(linux["maskedPaths"]) and {"/proc/sys", "/proc/sysrq-trigger"} <= set(linux["readonlyPaths"])


def mounted(binds, **given):
    return [item["destination"] for item in config.mounts("/s/c", binds, **{"own_network": True, "in_userns": False, **given})]


def bind(destination):
    return {"destination": destination, "type": "bind", "source": "/x", "options": ["rbind"]}


def test_mounts_come_outer_before_inner():
    found = mounted([bind("/a/b/c"), bind("/z"), bind("/a/b")])
    assert found[0] == "/proc" and found.index("/dev") < found.index("/dev/pts") < found.index("/dev/shm") and found.index("/sys") < found.index("/sys/fs/cgroup")
    assert found[-3:] == ["/z", "/a/b", "/a/b/c"] and found[-6:-3] == ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"]


@pytest.mark.parametrize("destination", ["/etc/hosts", "/dev/shm", "/sys", "/proc"])
def test_a_mount_of_the_user_s_own_stands_instead_of_ours(destination):
    assert mounted([bind(destination)]).count(destination) == 1 and mounted([bind(destination)])[-1] == destination


def test_sysfs_of_a_network_that_is_not_ours_is_bound_read_only():
    for own, inside, kind in ((True, True, "sysfs"), (False, False, "sysfs"), (False, True, "bind")):
        sysfs = next(item for item in config.mounts("/s/c", [], own_network=own, in_userns=inside) if item["destination"] == "/sys")
        assert sysfs["type"] == kind and {"ro", "rro"} & set(sysfs["options"]) and {"nosuid", "noexec", "nodev"} < set(sysfs["options"])


# ---- the specification's schema

class Schema:
    """What of JSON Schema draft 4 the runtime specification uses. Stricter in one point: a key that it does not name is an error."""

    def __init__(self, directory):
        self.files = {path.name: json.loads(path.read_text()) for path in directory.glob("*.json")}

    def check(self, value, rule, file="config-schema.json", where="$"):
        if "$ref" in rule:
            name, _, pointer = rule["$ref"].partition("#")
            target = self.files[name or file]
            for part in pointer.strip("/").split("/") if pointer.strip("/") else ():
                target = target[part]
            return self.check(value, target, name or file, where)
        for each in rule.get("allOf", ()):
            self.check(value, each, file, where)
        if "anyOf" in rule and not any(self.fits(value, each, file) for each in rule["anyOf"]):
            raise SpecError(f"{where}: none of anyOf")
        self.check_plain(value, rule, where)
        for key, item in value.items() if isinstance(value, dict) and "properties" in rule else ():
            if key not in rule["properties"]:
                raise SpecError(f"{where}.{key}: not in the specification")
            self.check(item, rule["properties"][key], file, f"{where}.{key}")
        for number, item in enumerate(value) if isinstance(value, list) and "items" in rule else ():
            self.check(item, rule["items"], file, f"{where}[{number}]")
        for pattern in rule.get("patternProperties", {}).values():
            for key, item in value.items():
                self.check(item, pattern, file, f"{where}.{key}")
        return None

    def fits(self, value, rule, file):
        try:
            self.check(value, rule, file)
        except SpecError:
            return False
        return True

    @staticmethod
    def check_plain(value, rule, where):
        kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}
        wanted = [rule["type"]] if isinstance(rule.get("type"), str) else rule.get("type", [])
        if wanted and not any(isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in wanted):
            raise SpecError(f"{where}: {value!r} is not {wanted}")
        if missing := [key for key in rule.get("required", ()) if isinstance(value, dict) and key not in value]:
            raise SpecError(f"{where}: {missing} missing")
        if "enum" in rule and value not in rule["enum"]:
            raise SpecError(f"{where}: {value!r} is none of {rule['enum']}")
        if isinstance(value, int) and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
            raise SpecError(f"{where}: {value} is out of range")
        if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
            raise SpecError(f"{where}: {value!r} does not match")
        if len(value) < rule.get("minItems", 0) if isinstance(value, list) else False:
            raise SpecError(f"{where}: too short")


needs_schema = pytest.mark.skipif(not SCHEMA.exists(), reason="the runtime specification's schema is not on this machine")
VARIANTS = [
    {}, {"user": "user"}, {"network": "none"}, {"network": "host"}, {"memory": 1 << 30, "cpus": 1.5, "pids_limit": 5}, {"terminal": True, "console": (24, 80)},
    {"cap_add": ["ALL"], "read_only": True, "no_new_privs": True}, {"cap_drop": ["ALL"]}, {"env": ["A=\u00e9", "B="], "workdir": "/a b"},
]


@needs_schema
@pytest.mark.parametrize("in_userns", [False, True])
@pytest.mark.parametrize("given", VARIANTS)
def test_the_document_is_the_specification_s(given, in_userns, monkeypatch):
    """With the seccomp profile in it, as it is written beside the container for any OCI runtime."""
    monkeypatch.setattr(config, "mapped", lambda number, which="gid": True)
    binds = [{**bind("/data"), "options": ["rbind", "rprivate", "rro"]}]
    document, kept = made(options("id", **given), binds=binds, in_userns=in_userns, cgroup="" if in_userns and "memory" not in given else "/utsuwa/c")
    document["linux"]["seccomp"] = seccomp.linux_seccomp(tuple(kept))
    schema = Schema(SCHEMA.parent)
    schema.check(json.loads(json.dumps(document)), schema.files[SCHEMA.name])


@needs_schema
@pytest.mark.parametrize(("path", "value"), [
    (("ociVersion",), 1), (("process", "cwd"), None), (("process", "user", "uid"), -1), (("process", "env"), "A=1"), (("mounts", 0, "destination"), 5), (("linux", "namespaces", 0, "type"), "moon"),
    (("linux", "resources", "memory", "limit"), "1g"), (("linux", "unheard"), 1), (("root",), {}),
])
def test_the_check_would_find_a_mistake(path, value):
    document = copy.deepcopy(made(options("id", memory=1 << 30))[0])
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    schema = Schema(SCHEMA.parent)
    with pytest.raises(SpecError):
        schema.check(document, schema.files[SCHEMA.name])


def test_the_document_survives_json_and_marshal():
    """Both forms that it travels in hold the same."""
    import marshal

    document = made(options("id", memory=1 << 30, env=["X=\udcff"]))[0]
    assert json.loads(json.dumps(document)) == document == marshal.loads(marshal.dumps(document))
