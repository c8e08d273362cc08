"""Where a container shows in the kernel, looked at cheaply: a run is over when all of it is gone.

The bench lives in mount, network and process id namespaces of its own, so what these look-ups see is its own doing.
"""

import os

HIERARCHIES = tuple(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir(follow_symlinks=False))


def groups(parent):
    """Return the control groups beneath `parent`, over all hierarchies; conmon's own, which podman keeps, aside."""
    found = []
    for hierarchy in HIERARCHIES:
        try:
            found += [f"{hierarchy}/{name}" for name in _directories(hierarchy + parent) if name != "conmon"]
        except FileNotFoundError:
            continue
    return found


def _directories(path):
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def mounts():
    return _read("/proc/self/mountinfo")


def links():
    """Return the names of the network devices of this namespace; /sys/class/net would show those of the namespace it was mounted in."""
    return sorted(line.split(b":")[0].strip() for line in _read("/proc/self/net/dev").splitlines()[2:])


def processes():
    """Return {pid: command line} of everything alive in this process id namespace."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = _read(f"/proc/{name}/cmdline")
            except OSError:
                continue
            if words:  # a zombie has none
                found[int(name)] = words.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def _read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
