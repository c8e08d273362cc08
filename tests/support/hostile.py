"""Hostile root file systems for tests: the host that they are after, images made of planted entries, programs that swap and peep.

    scene = Scene(lane, registry, lane_dir)
    scene.plant(symlink("etc", scene.host.victim))   # an image of busybox with this on top; scene.run uses it
    scene.run("true", check=False)
    scene.close()                                    # asserts that the host is as it was
"""

import contextlib
import functools
import gzip
import hashlib
import os
import pathlib
import struct

from support.containers import STOCK, Box, eventually, one_line
from support.layers import snapshot
from support.registry import MACHINE, Image, busybox_image, digest, layer
from utsuwa.security.paths import MASKED, READONLY

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx")
SETTINGS = ("net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range", "kernel/core_pattern", "kernel/hostname")
FILES = ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname")
PLACES = ("/proc", "/sys", "/dev", "/etc")
EXCHANGE = {"amd64": 316, "arm64": 276}[MACHINE]
"""renameat2(2), which perl calls by its number."""


UNMASKED = (
    f"for f in {' '.join(MASKED)}; do [ ! -e $f ] || [ -c $f ] || [ -z \"$(ls -A $f)\" ] || echo unmasked $f; done; "
    f"for f in {' '.join(READONLY)}; do case $(awk -v f=$(realpath $f) '$5 == f {{ print $6 }}' /proc/self/mountinfo) in ro,*) ;; *) [ ! -e $f ] || echo unmasked $f;; esac; done"
)
"""A script that names each path that should be masked or read-only and is not."""


class Host:
    """What an attack would reach: a tree of the lane's user, which root of the container may write where it gets there, and the machine itself."""

    def __init__(self, lane, place):
        self.lane, self.victim = lane, f"{place}/victim"
        self.file, self.directory = f"{self.victim}/file", f"{self.victim}/dir"
        for path in (self.victim, self.directory, f"{self.directory}/sub", *(f"{self.victim}/{name}" for name in ("dev", "proc", "sys", "etc"))):
            self._own(path, os.mkdir)
        for path in (self.file, f"{self.directory}/file", *(f"{self.victim}/{name}" for name in ("etc/hosts", "etc/resolv.conf", "dev/null", "dev/console"))):
            self._own(path, lambda path: pathlib.Path(path).write_text("the host's\n"))
            os.chmod(path, 0o600)
        self.python = os.path.realpath(lane.python)
        self._before = self.state()

    def _own(self, path, make):
        make(path)
        if self.lane.uid != os.geteuid():
            os.chown(path, self.lane.uid, self.lane.gid)

    def state(self):
        """Return all that must stay: the victim's tree, device nodes, settings, files and mounts of the machine, the interpreter that enters containers."""
        found = snapshot(self.victim)
        for path in (*(f"/dev/{name}" for name in DEVICES if os.path.exists(f"/dev/{name}")), *FILES, self.python):
            info = os.stat(path)
            found[path] = (info.st_rdev, info.st_mode, info.st_uid, info.st_gid, 0 if info.st_rdev else info.st_ctime_ns)
        for name in SETTINGS:
            found[name] = pathlib.Path("/proc/sys", name).read_text()
        found["mounts"] = [line for line in mounts() if line[0].startswith((self.victim, *(f"{place}/" for place in PLACES))) or line[0] in PLACES]
        found["interpreter"] = hashlib.sha256(pathlib.Path(self.python).read_bytes()).hexdigest()
        found["planted"] = [place for place in ("/", *PLACES) for name in os.listdir(place) if "pwned" in name]
        return found

    def rest(self):
        """Take the state that is now for the one to compare with."""
        self._before = self.state()

    def unchanged(self):
        after = self.state()
        changed = {key: (self._before.get(key), after.get(key)) for key in self._before.keys() | after.keys() if self._before.get(key) != after.get(key)}
        assert not changed, f"the host was reached: {changed}"


@functools.cache
def _busybox():
    return busybox_image()


def mounts(text=None):
    """Return (mount point, root of it, type) of each mount; of this process unless /proc/PID/mountinfo's text is given."""
    rows = [line.split() for line in (pathlib.Path("/proc/self/mountinfo").read_text() if text is None else text).splitlines()]
    return [(row[4], row[3], row[row.index("-") + 1]) for row in rows]


class Scene(Box):
    """A Box whose image is what was planted last. `close` asserts that the host is unchanged."""

    def __init__(self, lane, registry, place):
        super().__init__(lane, f"{registry.address}/busybox")
        self._registry, self._planted = registry, []
        self.host, self.place = Host(lane, place), place

    def plant(self, *entries, volumes=(), **config):
        """Make the image busybox with these entries on top, pulled from the registry."""
        settings = {"Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": {path: {} for path in volumes}, **config}
        base, top = _busybox(), layer(*entries)
        packed = [*base.layer_blobs, gzip.compress(top, 1, mtime=0)]
        image = Image(packed=packed, config=settings, rootfs={"type": "layers", "diff_ids": [*base.diffs, digest(top)]})
        self.image = self._registry.push("hostile", image, digest(image.config)[7:39])
        self.lane("pull", "--quiet", self.image, check=True)
        self._planted.append(self.image)

    def directory(self, name):
        """Make a directory of the lane's user, for -v; returns its path."""
        self.host._own(f"{self.place}/{name}", os.mkdir)
        return f"{self.place}/{name}"

    def ends(self, wanted, script="echo started", options=(), code=125):
        """Run a script. `wanted` "" means that it runs to its end; else it is what the one clear line of the refusal says. Either way the host is unchanged."""
        done = self.run("sh", "-c", script, options=options, check=False)
        self.host.unchanged()
        if wanted:
            one_line(done, wanted, code=code)
        else:
            assert (done.code, done.err) == (0, ""), done
            assert done.lines[-1] == "started"
        return done

    @contextlib.contextmanager
    def swapping(self, volume, first, second):
        """A container that exchanges two names in a volume as fast as the kernel does it, as long as the block runs; more than once while it does."""
        name = self.name()
        script = f'$|=1; my ($a, $b) = @ARGV; while (1) {{ syscall({EXCHANGE}, -100, $a, -100, $b, 2) == 0 or die "$!\n"; print ".\n" if ++$n % 5000 == 1 }}'
        self.lane("run", "-d", "--name", name, *STOCK, "-v", f"{volume}:/d", "host", "perl", "-e", script, f"/d/{first}", f"/d/{second}", check=True)
        before = len(eventually(lambda: self.logs(name)))
        yield name
        assert eventually(lambda: self.logs(name)[before:]), "nothing was swapped meanwhile"
        self.lane("rm", "-f", name, check=True)

    def close(self):
        super().close()
        if self._planted:
            self.lane("rmi", "--force", *dict.fromkeys(self._planted), check=True)
        self.host.unchanged()


def interpreted_by(path):
    """Return the smallest ELF program that asks for an interpreter. elf(5)"""
    text = path.encode() + b"\0"
    machine = {"amd64": 62, "arm64": 183}[MACHINE]
    size = 64 + 2 * 56 + len(text)
    head = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 64 + 2 * 56, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    interp = struct.pack("<IIQQQQQQ", 3, 4, 64 + 2 * 56, 64 + 2 * 56, 0, len(text), len(text), 1)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096)
    return head + interp + load + text
