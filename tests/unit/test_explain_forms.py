"""The four ways to tell a ledger, and where ledgers are found."""

import errno
import json
import os
import re
import subprocess

import pytest

from utsuwa.errors import UsageError
from utsuwa.explain import ledgers, render
from utsuwa.explain.line import CAPABILITIES
from utsuwa.security import capabilities

ID = "0123456789ab" + "c" * 52
NASTY = "it's $(touch /tmp/never) `x` \"y\"\nend"


def line(call, *args, who="init", result=0, why="a reason", ref="x(2)", topic=1, t=1):
    return {"seq": 1, "t": t, "who": who, "topic": topic, "call": call, "args": list(args), "result": result, "why": why, "ref": ref}


def ledger(*extra, argv=("/bin/prog", "prog", "word")):
    """A container in a few lines: a group, a root, two mounts, walls, the program."""
    return [
        line("mkdir", f"/sys/fs/cgroup/pids/utsuwa/{ID}", "755", who="monitor", why="a group", ref="cgroups(7)"),
        line("write", f"/sys/fs/cgroup/pids/utsuwa/{ID}/pids.max", "50", who="monitor", why="no fork bomb"),
        line("fsopen", "overlay", "FSOPEN_CLOEXEC", who="monitor", result=13, why="layers", topic=3),
        line("fsconfig", "13<overlay>", "FSCONFIG_SET_STRING", "lowerdir+", "/layers/a:b", 0, who="monitor", why="layers", topic=3),
        line("fsconfig", "13<overlay>", "FSCONFIG_SET_STRING", "upperdir", "/c/upper", 0, who="monitor", why="layers", topic=3),
        line("fsmount", "13<overlay>", "FSMOUNT_CLOEXEC", "0", who="monitor", result=14, why="layers", topic=3),
        line("clone", "CLONE_NEWNS|CLONE_NEWPID", "init", who="monitor", result=None, why="born"),
        line("write", f"/sys/fs/cgroup/pids/utsuwa/{ID}/cgroup.procs", "0", why="enter"),
        line("setns", "8</run/netns/x>", "CLONE_NEWNET", why="join", topic=4),
        line("unshare", "CLONE_NEWCGROUP"),
        line("mount", None, "/", None, "MS_REC|MS_SLAVE", None, why="cut"),
        line("move_mount", "14<overlay>", "", "AT_FDCWD", "/c/merged", "MOVE_MOUNT_F_EMPTY_PATH", why="the root", topic=3),
        line("open_tree", "3</dev/null>", "", "AT_EMPTY_PATH|OPEN_TREE_CLONE", result=5, topic=6, why="hidden"),
        line("move_mount", "5</dev/null>", "", "3</proc/kcore>", "", "0", topic=6, why="hidden"),
        *extra,
        line("pivot_root", ".", "."),
        line("umount2", ".", "MNT_DETACH"),
        *[line("prctl", "PR_CAPBSET_DROP", number, 0, topic=6, why="bound") for number in (12, 21)],
        line("setgroups", "7,8", topic=6), line("setresgid", 5, 5, 5, topic=6), line("setresuid", 5, 5, 5, topic=6), line("capset", "0x1", "0x1", "0x0", topic=6),
        line("execve", *argv, result=None, why="the program"),
        line("rmdir", f"/sys/fs/cgroup/pids/utsuwa/{ID}", who="monitor", why="gone"),
    ]


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match='unknown format "yaml": expected story, json, strace or shell'):
        render(ledger(), "yaml")


@pytest.mark.parametrize("fmt", ["story", "json", "strace"])
def test_an_empty_ledger_is_told(fmt):
    assert render([], fmt) == ("[]\n" if fmt == "json" else "")


def test_capability_names_are_the_ones_of_security():
    assert tuple("CAP_" + name.upper() for name in CAPABILITIES) == capabilities.NAMES


# ---- json, strace

def test_json_is_the_lines_as_they_are():
    assert json.loads(render(ledger(), "json")) == ledger()
    assert {each["topic"] for each in json.loads(render(ledger(), "json", topic=6))} == {6}


def test_strace_has_one_line_a_call_grouped_by_process():
    out = render(ledger(line("openat", "x", result=-errno.ENOENT)), "strace").splitlines()
    assert [text for text in out if text.startswith("---")] == ["--- monitor: the container's parent", "--- init: what became PID 1"]
    assert len(out) == len(ledger()) + 1 + 2
    assert 'mount(NULL, "/", NULL, MS_REC|MS_SLAVE, NULL) = 0' in out
    assert 'fsopen("overlay", FSOPEN_CLOEXEC) = 13' in out
    assert 'execve("/bin/prog", "prog", "word") = ?' in out
    assert "openat(x) = -1 ENOENT (No such file or directory)" in out


def test_strace_tells_exec_sessions_apart():
    out = render([*ledger(), line("setsid"), line("execve", "/bin/ls", "ls", result=None), line("setsid")], "strace")
    assert re.findall("--- exec [0-9]", out) == ["--- exec 1", "--- exec 2"]


def test_strace_escapes_strings():
    assert r'"it\'s $(touch /tmp/never) `x` \"y\"\nend"'.replace("\\'", "'") in render([line("sethostname", NASTY)], "strace")


# ---- story

def test_the_story_tells_each_reason_once_under_its_topic():
    out = render(ledger(), "story")
    assert re.findall(r"^(0[1-7]) ", out, re.MULTILINE) == ["01", "03", "04", "06"]
    for why in {each["why"] for each in ledger()}:
        assert len([text for text in out.splitlines() if text.strip().split("  [")[0] == why]) == len({each["topic"] for each in ledger() if each["why"] == why})


def test_the_story_shortens_ids_and_has_no_colour_unless_asked():
    out = render(ledger(), "story")
    assert ID not in out and ID[:12] in out and "\x1b" not in out
    assert "\x1b[1m01 container" in render(ledger(), "story", color=True)


def test_the_story_gathers_what_is_alike():
    devices = [line("mknodat", f"/dev/{name}", "c", "666", 1, 3, why="nodes") for name in ("null", "zero")]
    assert "/dev/{null, zero} c 1:3 · mknodat, 2 times" in render(ledger(*devices), "story")
    assert "without {net_admin, sys_admin} · prctl, 2 times" in render(ledger(), "story")


def test_one_topic_is_told_in_full():
    out = render(ledger(), "story", topic=3)
    assert out.startswith("03 image") and "01 container" not in out
    assert "overlay on / · move_mount" in out


def test_a_failed_call_says_why():
    assert "[Errno" not in (out := render(ledger(line("write", "/proc/self/oom_score_adj", "-5", result=-errno.EACCES)), "story"))
    assert "/proc/self/oom_score_adj -5: EACCES (Permission denied) · write" in out


def test_control_characters_do_not_reach_the_terminal():
    assert "\x1b" not in render(ledger(argv=("/bin/x", "x", "\x1b]0;gotcha\x07")), "story")


@pytest.mark.parametrize(("path", "command", "warns"), [
    ("/bin/sh", "server; true", True), ("/bin/bash", "setup && server", True), ("/bin/sh", "while true; do x; done", True),
    ("/bin/sh", "server --flag", False), ("/bin/sh", "exec server", False), ("/bin/sh", "setup && exec server", False), ("/bin/sh", "trap stop TERM; server & wait", False),
    ("/usr/bin/server", "a; b", False),
])
def test_a_shell_at_pid_1_is_warned_about(path, command, warns):
    for flag in ("-c", "-ec"):
        out = render(ledger(argv=(path, path.rpartition("/")[2], flag, command)), "story")
        assert (f"warning: {path} is PID 1" in out) == warns
    assert "warning" not in render(ledger(argv=(path, "sh")), "story")


# ---- shell

def check(script):
    """The script as a POSIX shell reads it, without running it."""
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return script


def test_the_script_says_what_the_ledger_says():
    script = check(render(ledger(), "shell"))
    for part in (
        f"id={ID}\n", "mkdir -p /sys/fs/cgroup/pids/utsuwa/$id\n", "echo 50 > /sys/fs/cgroup/pids/utsuwa/$id/pids.max", "mount --make-rslave /",
        "-o lowerdir='/layers/a\\:b',upperdir=\"$here\"/upper none \"$root\"",
        'mount --bind "$root"/dev/null "$root"/proc/kcore', "pivot_root . .", '$host ".$umount" --no-canonicalize --lazy .',
        "exec nsenter --net=/run/netns/x unshare --mount --propagation unchanged --pid --cgroup --fork sh",
        "--bounding-set=-net_admin,-sys_admin", "--groups=7,8", "--regid=5", "--reuid=5", "--inh-caps=-all", "set -- /bin/prog word",
    ):
        assert part in script
    assert "/c/upper" not in script and "/c/merged" not in script


def test_what_came_after_the_program_is_not_in_the_script():
    assert render(ledger(), "shell") == render([*ledger(), line("prctl", "PR_SET_NO_NEW_PRIVS", 1, 0), line("sethostname", "late")], "shell")


def test_a_file_system_of_the_hosts_is_bound_and_then_restricted():
    bind = [
        line("open_tree", "AT_FDCWD", "/srv/a b", "OPEN_TREE_CLONE", result=7), line("mount_setattr", "7</srv/a b>", "", "AT_EMPTY_PATH", "MOUNT_ATTR_RDONLY", "0", "0"),
        line("move_mount", "7</srv/a b>", "", "3</data dir>", "", "0"),
    ]
    script = check(render(ledger(*bind), "shell"))
    assert "mount --bind '/srv/a b' \"$root\"'/data dir'\nmount -o remount,bind,ro \"$root\"'/data dir'\n" in script


def test_words_stay_words():
    nasty = [
        line("symlinkat", NASTY, "/l"), line("sethostname", NASTY), line("mkdir", "/" + NASTY, "755"), line("write", "/proc/sys/x", NASTY),
        line("seccomp", "SECCOMP_SET_MODE_FILTER", 0, "a\ntouch /tmp/never", why="two\ntouch /tmp/never", ref="a\ntouch /tmp/never"),
    ]
    script = check(render(ledger(*nasty, argv=("/bin/x", "x", NASTY)), "shell"))
    # Every line that mentions it is a comment or stands inside single quotes.
    for text in script.splitlines():
        if "never" in text and not text.startswith("#"):
            assert re.search(r"'it'\"'\"'s \$\(touch /tmp/never\) `x` \"y\"$|/it'", text), text
    out = subprocess.run(["sh", "-c", "set -- " + script.split("|| set -- ", 1)[1].split("\nid=", 1)[0] + '; printf %s "$2"'], capture_output=True, text=True).stdout
    assert out == NASTY


def test_the_id_is_a_variable_where_a_shell_expands_it():
    named = [line("netlink", f"ip link add v{ID} type dummy", who="engine"), line("nft", f"add table x{ID}", who="engine"), line("sethostname", f"a {ID}")]
    script = check(render(ledger(*named), "shell"))
    assert [text for text in script.splitlines() if ID in text] == [f"id={ID}", f"add table x{ID}", f"hostname 'a {ID}'"]
    assert "ip link add v$id type dummy\n" in script


def network(*, who="engine"):
    inside = "nsenter --net=/run/netns/x "
    return [
        line("nft", "add table ip utsuwa\nadd set ip utsuwa s { type ifname; }", who=who), line("netlink", "ip link add utsuwa0 type bridge", who=who),
        line("netlink", "ip link set utsuwa0 alias utsuwa of here", who=who), line("netlink", "ip address add 172.26.0.1/16 dev utsuwa0", who=who),
        line("nft", 'add element ip utsuwa ports { tcp . 80 comment "x" : 172.26.0.2 . 80 }', who=who), line("unshare", "CLONE_NEWNET", who=who),
        line("mount", "/proc/thread-self/ns/net", "/run/netns/x", None, "MS_BIND", None, who=who),
        line("netlink", "ip link add utsx up master utsuwa0 type veth peer name eth0 netns /run/netns/x", who=who),
        line("write", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1", who=who), line("netlink", inside + "ip link set eth0 up", who=who),
        line("netlink", inside + "ip address add 172.26.0.2/16 dev eth0", who=who),
    ]


def test_the_network_is_replayed_by_ip_and_nft():
    script = check(render([*network(), *ledger()], "shell")).splitlines()
    in_order = [
        "nft -f - <<'NFT'", "add table ip utsuwa", "NFT", "ip link show utsuwa0 > /dev/null 2>&1 || ip link add utsuwa0 type bridge",
        "ip link set utsuwa0 alias 'utsuwa of here'", "ip address replace 172.26.0.1/16 dev utsuwa0", ": > /run/netns/x", "unshare --net=/run/netns/x true",
        "ip link add utsx up master utsuwa0 type veth peer name eth0 netns /run/netns/x",
        "nsenter --net=/run/netns/x sh -c 'echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6'", "nsenter --net=/run/netns/x ip link set eth0 up",
        "nsenter --net=/run/netns/x ip address add 172.26.0.2/16 dev eth0",
    ]
    places = [script.index(text) for text in in_order]
    assert places == sorted(places)


def test_the_script_takes_its_own_network_back_and_leaves_the_bridge():
    script = check(render([*network(), *ledger()], "shell"))
    undo = script.partition("clean_up() {")[2].partition("}\ntrap")[0]
    for part in ('nft \'delete element ip utsuwa ports { tcp . 80 comment "x" : 172.26.0.2 . 80 }\'', "ip link delete utsx", "umount --lazy /run/netns/x", "rm -f /run/netns/x"):
        assert part in undo
    assert "table" not in undo and "utsuwa0" not in undo


def test_a_plan_says_that_it_is_one():
    assert "# From a plan" in check(render([{**each, "result": None} for each in ledger()], "shell"))
    assert "# From a plan" not in render(ledger(), "shell")


def test_a_script_needs_every_topic():
    with pytest.raises(UsageError, match="leave out --topic"):
        render(ledger(), "shell", topic=4)


# ---- where they are

def write(path, *lines, age=0):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("".join(json.dumps(each) + "\n" for each in lines))
    now = 1_700_000_000 - age
    os.utime(path, (now, now))


def test_the_newest_is_the_one_that_was_begun_last(tmp_path):
    root = str(tmp_path)
    assert ledgers.newest(root) == ""
    # The old one still writes (an exec just now); the new one is removed already.
    write(f"{root}/containers/old/ledger.jsonl", line("fork", t=0), line("fork", t=500_000_000_000))
    write(f"{root}/ledgers/new.jsonl", line("fork", t=400_000_000_000), line("fork", t=400_000_000_001), age=60)
    assert ledgers.newest(root) == f"{root}/ledgers/new.jsonl"
    assert ledgers.removed(root, "ne") == [f"{root}/ledgers/new.jsonl"] and ledgers.removed(root, "x") == []


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(line("fork")) + "\n" + '{"seq": 2, "t"')
    assert [each["call"] for each in ledgers.read(str(path))] == ["fork"]
