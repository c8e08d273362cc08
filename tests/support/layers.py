"""Unpacking for tests: a layer's bytes into a directory, and what is in it as a table."""

import os
import stat

from utsuwa.image import compress, tar, unpack


def unpacked(data, target, *, pieces=65536, in_userns=False, most=1 << 30, headers=100_000):
    """Unpack a layer, plain or compressed, into a new directory; returns the bytes of its files. Small pieces find bugs at their edges."""
    os.mkdir(target)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    chunks = (data[at:at + pieces] for at in range(0, len(data), pieces))
    before = tar.HEADERS
    try:
        tar.HEADERS = headers
        return unpack.unpack(tar.Stream(compress.decompress(chunks), most), fd, in_userns=in_userns)
    finally:
        tar.HEADERS = before
        os.close(fd)


def tree(directory):
    """Return path → kind and content: "dir", b"content", "-> target", "fifo", "c 0:0"."""
    found = {}
    for base, directories, files in os.walk(directory):
        for name in directories + files:
            path = os.path.join(base, name)
            found[os.path.relpath(path, directory)] = _describe(path)
    return found


def _describe(path):
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode):
        return "dir"
    if stat.S_ISLNK(status.st_mode):
        return "-> " + os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return file.read()
    kind = {stat.S_IFIFO: "fifo", stat.S_IFCHR: "c", stat.S_IFBLK: "b"}[stat.S_IFMT(status.st_mode)]
    return kind if kind == "fifo" else f"{kind} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def snapshot(directory):
    """Return everything that could change in a tree that is not ours: content, modes, owners, times, link counts."""
    found = {}
    for base, directories, files in os.walk(directory):
        for path in [base] + [os.path.join(base, name) for name in directories + files]:
            status = os.lstat(path)
            found[path] = (_describe(path), status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink)
    return found
