"""Ledger lines become steps: descriptors followed across calls and processes, in a real ledger and in a plan."""

import errno

import pytest

from utsuwa.explain.replay import HOST, INIT, LATER, replay


def line(call, *args, who="init", result=0, why="a reason", ref="", topic=1):
    return {"seq": 1, "t": 1, "who": who, "topic": topic, "call": call, "args": list(args), "result": result, "why": why, "ref": ref}


def new_filesystem(fstype, *options, context=3, fd=4, who="init", attributes="0"):
    """fsopen … fsmount, as kernel/mount.py records them."""
    return [
        line("fsopen", fstype, "FSOPEN_CLOEXEC", result=context, who=who),
        *[line("fsconfig", f"{context}<{fstype}>", "FSCONFIG_SET_STRING" if value else "FSCONFIG_SET_FLAG", key, value, 0, who=who) for key, value in options],
        line("fsconfig", f"{context}<{fstype}>", "FSCONFIG_CMD_CREATE", None, None, 0, who=who),
        line("fsmount", f"{context}<{fstype}>", "FSMOUNT_CLOEXEC", attributes, result=fd, who=who),
    ]


def root(*, who="monitor"):
    """An overlay that the monitor makes and init, its child, attaches by the descriptor it inherits."""
    return [
        *new_filesystem("overlay", ("lowerdir+", "/l1"), ("lowerdir+", "/l2"), ("upperdir", "/c/upper"), ("workdir", "/c/work"), context=13, fd=14, who=who),
        line("clone", "CLONE_NEWNS|CLONE_NEWPID", "init", who=who, result=None),
        line("mount", None, "/", None, "MS_REC|MS_SLAVE", None),
        line("move_mount", "14<overlay>", "", "AT_FDCWD", "/c/merged", "MOVE_MOUNT_F_EMPTY_PATH"),
        line("mount_setattr", "14<overlay>", "", "AT_EMPTY_PATH", "0", "0", "MS_PRIVATE"),
    ]


def attach(fd, label, target):
    return line("move_mount", f"{fd}<{label}>", "", f"3<{target}>", "", "MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH")


def only(steps, kind):
    [step] = [step for step in steps if step.kind == kind]
    return step


def test_a_root_made_by_one_process_and_attached_by_another_is_one_step():
    step = only(replay(root()), "root")
    assert step.tree.options == [("lowerdir+", "/l1"), ("lowerdir+", "/l2"), ("upperdir", "/c/upper"), ("workdir", "/c/work")]
    assert (step.tree.target, step.tree.propagation, step.tree.inside, step.phase) == ("/c/merged", "private", False, INIT)
    assert [each.call for each in step.lines] == ["fsopen", *["fsconfig"] * 5, "fsmount", "move_mount", "mount_setattr"]


def test_a_mount_after_the_root_is_inside_it():
    steps = replay([*root(), *new_filesystem("tmpfs", ("mode", "755"), ("size", "64k"), attributes="MOUNT_ATTR_NOSUID|MOUNT_ATTR_STRICTATIME"), attach(4, "tmpfs", "/dev")])
    step = only(steps, "mount")
    assert (step.tree.fstype, step.tree.target, step.inside) == ("tmpfs", "/dev", True)
    assert (step.tree.attributes, step.tree.options) == (["nosuid", "strictatime"], [("mode", "755"), ("size", "64k")])


def test_a_reused_descriptor_stands_for_its_last_opening():
    steps = replay([*root(), *new_filesystem("proc"), attach(4, "proc", "/proc"), *new_filesystem("sysfs"), attach(4, "sysfs", "/sys")])
    assert [(step.tree.fstype, step.tree.target) for step in steps if step.kind == "mount"] == [("proc", "/proc"), ("sysfs", "/sys")]


def test_a_bind_keeps_source_attributes_and_propagation():
    steps = replay([
        *root(), line("open_tree", "AT_FDCWD", "/srv/data", "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE", result=7),
        line("mount_setattr", "7</srv/data>", "", "AT_EMPTY_PATH", "MOUNT_ATTR_RDONLY", "0", "0"),
        line("mount_setattr", "7</srv/data>", "", "AT_EMPTY_PATH|AT_RECURSIVE", "0", "0", "MS_PRIVATE"), attach(7, "/srv/data", "/data"),
    ])
    tree = only(steps, "mount").tree
    assert (tree.fstype, tree.source, tree.source_inside, tree.recursive) == ("", "/srv/data", False, True)
    assert (tree.attributes, tree.propagation, tree.target) == (["ro"], "rprivate", "/data")


def test_a_bind_of_the_whole_tree_read_only_says_so():
    tree = only(replay([
        *root(), line("open_tree", "AT_FDCWD", "/srv", "OPEN_TREE_CLONE|AT_RECURSIVE", result=7),
        line("mount_setattr", "7</srv>", "", "AT_EMPTY_PATH|AT_RECURSIVE", "MOUNT_ATTR_RDONLY", "0", "0"), attach(7, "/srv", "/data"),
    ]), "mount").tree
    assert (tree.whole_tree, tree.attributes) == (["ro"], [])


def test_a_path_bound_on_itself_comes_from_inside():
    tree = only(replay([
        *root(), line("open_tree", "10</proc/sys>", "", "OPEN_TREE_CLONE|AT_EMPTY_PATH|AT_RECURSIVE", result=7),
        line("mount_setattr", "7</proc/sys>", "", "AT_EMPTY_PATH|AT_RECURSIVE", "MOUNT_ATTR_RDONLY", "0", "0"), attach(7, "/proc/sys", "/proc/sys"),
    ]), "mount").tree
    assert (tree.source, tree.source_inside, tree.attributes, tree.whole_tree) == ("/proc/sys", True, ["ro"], [])


def test_attributes_after_attaching_are_a_step_of_their_own():
    steps = replay([*root(), *new_filesystem("tmpfs"), attach(4, "tmpfs", "/sys/fs/cgroup"), line("symlinkat", "a", "/b"),
                    line("mount_setattr", "4</sys/fs/cgroup>", "", "AT_EMPTY_PATH", "MOUNT_ATTR_RDONLY", "0", "0"),
                    line("mount_setattr", "14</>", "", "AT_EMPTY_PATH", "MOUNT_ATTR_RDONLY", "0", "0")])
    assert [step.words for step in steps if step.kind == "attributes"] == [("/sys/fs/cgroup", "ro"), ("/", "ro")]


def test_what_is_never_attached_is_told_all_the_same():
    steps = replay([line("open_tree", "AT_FDCWD", "/usr/bin/python3", "OPEN_TREE_CLONE", who="engine", result=9),
                    line("mount_setattr", "9</usr/bin/python3>", "", "AT_EMPTY_PATH", "MOUNT_ATTR_RDONLY", "0", "0", who="engine")])
    step = only(steps, "detached")
    assert (step.tree.source, step.tree.attributes, step.phase) == ("/usr/bin/python3", ["ro"], HOST)


def test_a_failed_call_is_no_mount():
    steps = replay([*root(), *new_filesystem("proc"), {**attach(4, "proc", "/proc"), "result": -errno.EBUSY}])
    assert [step.kind for step in steps][-2:] == ["detached", "failed"]


def test_the_old_root_needs_no_second_cut():
    steps = replay([*root(), line("pivot_root", ".", "."), line("mount", None, ".", None, "MS_REC|MS_SLAVE", None), line("umount2", ".", "MNT_DETACH")])
    assert [step.kind for step in steps][-4:] == ["root", "pivot_root", "nothing", "umount2"]
    assert [step.pivoted for step in steps][-4:] == [False, False, True, True]


def test_what_comes_after_the_program_is_later():
    steps = replay([*root(), line("execve", "/bin/sh", "sh", result=None), line("prctl", "PR_SET_DUMPABLE", 0, 0), line("rmdir", "/g", who="monitor")])
    assert [step.phase for step in steps][-3:] == [INIT, LATER, LATER]


@pytest.mark.parametrize("who", ["engine", "monitor"])
def test_a_plan_has_one_writer_and_no_results(who):
    records = [{**record, "who": who, "result": None} for record in [*root(), *new_filesystem("proc"), attach(4, "proc", "/proc")]]
    fake = {"3<": "1004<", "4<": "1005<", "13<": "1001<", "14<": "1002<"}
    for record in records:  # made-up descriptors are never used twice (kernel/door.py)
        record["args"] = [next((word.replace(old, new, 1) for old, new in fake.items() if str(word).startswith(old)), word) for word in record["args"]]
    steps = replay(records)
    assert only(steps, "root").tree.propagation == "private"
    assert (only(steps, "mount").tree.fstype, only(steps, "mount").tree.target, only(steps, "mount").inside) == ("proc", "/proc", True)


# ---- the engine's part: a network namespace pinned to a file

def engine_network():
    path = "/run/netns/x"
    return [
        line("write", "/proc/sys/net/ipv4/ip_forward", "1", who="engine"),
        line("unshare", "CLONE_NEWNET", who="engine"),
        line("mount", "/proc/thread-self/ns/net", path, None, "MS_BIND", None, who="engine"),
        line("write", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1", who="engine"),
        line("write", "/sys/fs/cgroup/pids/x/pids.max", "9", who="monitor"),
    ]


def test_a_namespace_made_and_pinned_is_one_step():
    step = only(replay(engine_network()), "netns")
    assert (step.words, [each.call for each in step.lines], step.phase) == (("/run/netns/x",), ["unshare", "mount"], HOST)


def test_what_the_engine_sets_before_is_the_hosts_and_after_is_the_containers():
    steps = replay(engine_network())
    assert [step.words[0] for step in steps if step.kind == "write"] == ["/proc/sys/net/ipv4/ip_forward", "/sys/fs/cgroup/pids/x/pids.max"]
    assert only(steps, "netns_write").words == ("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1", "/run/netns/x")
