"""The monitor's half of create: control groups, the root file system, and the birth of init.

`Bundle` is what the engine hands over beside config.json; `create` returns the running attempt. Undone by `destroy`, idempotent.
"""

from __future__ import annotations

import os
import time

from utsuwa.container import cgroup
from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import credential, mount, namespace, process
from utsuwa.kernel.door import FAKE, close, is_real, label
from utsuwa.ledger import because
from utsuwa.runtime import handshake, init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    Spec = dict[str, object]

_KINDS = {
    "pid": namespace.CLONE_NEWPID, "mount": namespace.CLONE_NEWNS, "uts": namespace.CLONE_NEWUTS, "ipc": namespace.CLONE_NEWIPC,
    "network": namespace.CLONE_NEWNET, "cgroup": namespace.CLONE_NEWCGROUP,
}


class Attempt:
    """A container being made: init's pid, our end of its handshake, the control groups it is in."""

    __slots__ = ("directories", "pid", "root_fd", "sock")

    def __init__(self) -> None:
        self.pid, self.root_fd = 0, -1
        self.sock: socket | None = None
        self.directories: dict[str, str] = {}


def adopt_orphans() -> None:
    """Become the parent of whatever the container's processes leave behind. prctl(2)"""
    with because("orphans of the container become the monitor's, which reaps them", "prctl(2), PR_SET_CHILD_SUBREAPER", 1):
        credential.prctl(credential.PR_SET_CHILD_SUBREAPER, 1)


def retire(interpreter: int) -> None:
    """Let the monitor's interpreter, alone on the mount that this descriptor stands for, be executed no more: it runs already, and its forks do not execute it."""
    with because("no container's program, script's or ELF interpreter can be this one, whoever swaps what", "CVE-2019-5736; mount_setattr(2)", 6):
        mount.mount_setattr(interpreter, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_NOEXEC)


def shelter(config: Spec) -> None:
    """Leave the caller's session for the monitors' group, where the container has groups at all. Raises OSError."""
    linux: Spec = config["linux"]  # type: ignore[assignment]
    if linux.get("cgroupsPath"):
        cgroup.shelter(cgroup.discover())


def mount_overlay(overlay: Spec) -> int:
    """Return a detached overlay mount: `lower` directories top first, `upper`, `work`. Nothing is attached on the host. overlayfs."""
    with because("the image's layers, shared and read-only, under one writable layer of this container's own", "overlayfs", 3):
        context = mount.fsopen("overlay")
        try:
            for lower in overlay["lower"]:  # type: ignore[attr-defined]
                mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "lowerdir+", str(lower))
            mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "upperdir", str(overlay["upper"]))
            mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "workdir", str(overlay["work"]))
            if overlay.get("userxattr"):
                mount.fsconfig(context, mount.FSCONFIG_SET_FLAG, "userxattr")
            mount.fsconfig(context, mount.FSCONFIG_CMD_CREATE)
            return mount.fsmount(context, 0)
        except OSError as error:
            raise RuntimeFailure(f"cannot mount the root file system: {error.strerror}; overlay with lowerdir+ needs Linux 6.7") from None
        finally:
            close(context)


def create(config: Spec, bundle: Spec, stdio: tuple[int, ...], book_fd: int = -1) -> Attempt:
    """Start making the container; init's progress comes over `attempt.sock`, its ledger lines into the memfd `book_fd`.

    Raises RuntimeFailure with everything undone.
    """
    attempt = Attempt()
    plan = init.Plan()
    linux: Spec = config["linux"]  # type: ignore[assignment]
    plan.config, plan.stdio, plan.place, plan.in_userns = config, stdio, str(bundle["place"]), bool(bundle["in_userns"])
    plan.masks, plan.filter, plan.filter_text = bundle["masks"], bundle["filter"], str(bundle["filter_text"])  # type: ignore[assignment]
    plan.last_capability = int(bundle["last_capability"])  # type: ignore[call-overload]
    plan.groups, plan.book_fd = cgroup.discover(), book_fd
    try:
        if linux.get("cgroupsPath"):
            attempt.directories = plan.groups.directories(str(linux["cgroupsPath"]))
            plan.directories = bundle.get("groups") or cgroup.make(plan.groups, str(linux["cgroupsPath"]), linux.get("resources") or {})  # type: ignore[arg-type,assignment]
        attempt.root_fd = plan.root_fd = mount_overlay(bundle["overlay"])  # type: ignore[arg-type]
        flags = _namespaces(plan, linux["namespaces"])  # type: ignore[arg-type]
        plan.new_network = bool(flags & namespace.CLONE_NEWNET)
        ours, theirs = handshake.pair() if is_real() else (None, None)
        plan.sock, attempt.sock = theirs, ours
        group = cgroup.open_unified(plan.directories)
        with because("the container's first process, born in namespaces and a control group of its own", "namespaces(7), clone(2)", 1):
            attempt.pid = process.clone(flags, "init", lambda: init.main(plan), group)
    except (OSError, RuntimeFailure) as error:
        destroy(attempt)
        text = str(error.strerror or error) if isinstance(error, OSError) else str(error)
        raise RuntimeFailure(text[:1].lower() + text[1:]) from None
    if theirs is not None:
        theirs.close()
    for fd in (*(fd for fd, _ in plan.joins), group):
        if fd >= 0:
            close(fd)
    return attempt


def _namespaces(plan: init.Plan, namespaces: list[Spec]) -> int:
    """Return the namespaces init is born in; fill the plan with those it joins by path, and with the cgroup one, unshared last."""
    flags = 0
    for item in namespaces:
        kind = _KINDS[str(item["type"])]
        if item.get("path"):
            path = str(item["path"])
            fd = label(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path) if is_real() else label(FAKE, path)
            plan.joins.append((fd, kind))
        elif kind == namespace.CLONE_NEWCGROUP:
            plan.unshare |= kind
        else:
            flags |= kind
    return flags


def destroy(attempt: Attempt) -> None:
    """Kill what is left of the container and remove its control groups; let the root go. Idempotent."""
    if attempt.pid > 0:
        with because("the container is over: whatever is left in it ends", "pid_namespaces(7)", 1):
            try:
                process.kill(attempt.pid, 9)
            except ProcessLookupError:
                pass
            else:
                try:
                    os.waitpid(attempt.pid, 0)
                except ChildProcessError:
                    pass
        attempt.pid = 0
    if attempt.directories:
        cgroup.kill(attempt.directories, time.sleep)
        cgroup.remove(attempt.directories, time.sleep)
        attempt.directories = {}
    if attempt.root_fd >= 0:
        close(attempt.root_fd)
        attempt.root_fd = -1
    if attempt.sock is not None:
        attempt.sock.close()
        attempt.sock = None
