"""Files of /proc and /sys that a container must not see, or must not write. They are the host's: no namespace covers them.

A masked file is covered by the container's /dev/null, a masked directory by an empty read-only tmpfs; runtime/ does both.
"""

from __future__ import annotations

import os

MASKED = (
    "/proc/asound",                    # sound hardware: tells hosts apart
    "/proc/acpi",                      # may switch hardware (CVE-2018-10892)
    "/proc/interrupts",                # timing of the host's devices: a side channel on keystrokes (GHSA-6fw5-f8r9-fgfm)
    "/proc/kcore",                     # the machine's memory
    "/proc/keys",                      # names of other containers' keys
    "/proc/latency_stats",             # the scheduler's view of every process
    "/proc/timer_list",                # kernel addresses, other containers' timers
    "/proc/timer_stats",
    "/proc/sched_debug",               # names of all processes of the host
    "/proc/scsi",                      # writing removes disks (CVE-2017-16539)
    "/sys/firmware",
    "/sys/devices/virtual/powercap",   # power readings leak what others compute (CVE-2020-8694)
)
READONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",                       # settings of the whole kernel; those of a namespace are written before (sysctls)
    "/proc/sysrq-trigger",             # writing one letter reboots the machine
)

_CPUS = "/sys/devices/system/cpu"


def masked() -> list[str]:
    """Return what Docker 28 and later mask, in its order; beside the fixed list every CPU's thermal counters, where this machine has them.

    Docker 20.10 masks the same but for interrupts, powercap and the thermal counters; fewer walls, none that we leave out.
    """
    paths = list(MASKED)
    # One look decides: a machine has the counters for every CPU or for none, and 256 lookups would cost every start a millisecond.
    if os.path.isdir(f"{_CPUS}/cpu0/thermal_throttle"):
        paths += [f"{_CPUS}/cpu{number}/thermal_throttle" for number in _possible()]
    return paths


def _possible() -> list[int]:
    """CPU numbers that the kernel may ever bring up: `0-3,8` in a file."""
    try:
        with open(f"{_CPUS}/possible", "rb") as file:
            text = file.read().strip().decode()
    except OSError:
        return list(range(os.cpu_count() or 1))
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def readonly() -> list[str]:
    """Return what Docker makes read-only, in its order."""
    return list(READONLY)
