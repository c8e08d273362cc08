"""Which calls the ledger must hold: the ones that change the state of the kernel for a container.

The completeness test compares this table with `strace -f` of a run. Left out on purpose: reading, the database, logs, the ledger
itself, and files beneath the engine's own state directory.
"""

STATE_CHANGING = frozenset({
    "unshare", "setns", "sethostname", "setdomainname",
    "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr", "fspick",
    "setgroups", "setresuid", "setresgid", "setuid", "setgid", "capset", "seccomp",
    "bpf", "mknodat", "mknod", "kill", "pidfd_send_signal", "execve", "keyctl", "setsid",
})
"""System calls recorded one to one under their own names."""

PRCTL = frozenset({
    "PR_SET_DUMPABLE", "PR_SET_NO_NEW_PRIVS", "PR_CAPBSET_DROP", "PR_CAP_AMBIENT", "PR_SET_KEEPCAPS", "PR_SET_PDEATHSIG",
    "PR_SET_CHILD_SUBREAPER", "PR_SET_SECUREBITS",
})
"""Operations of prctl(2) that are recorded, as `prctl` with the operation first."""

COMPOSED = {
    "write": "one write to a file of /proc or a cgroup: (path, text)",
    "mkdir": "a cgroup, or a directory beneath a container's root: (path, mode)",
    "rmdir": "a cgroup: (path,)",
    "symlinkat": "beneath a container's root: (target, path)",
    "clone": "the container's first process, born in its new namespaces and v2 group: (namespaces, role, group)",
    "fork": "a process of ours that becomes or enters a container: (role,) or (role, group)",
    "posix_spawn": "the monitor, the rootless holder, newuidmap and newgidmap, a worker: (path, argv…)",
    "netlink": "one rtnetlink message: (text in the manner of ip(8),)",
    "nft": "one nftables transaction: (text in the manner of nft(8),)",
    "bind": "a socket that reserves a published port: (protocol, address, port)",
}
"""Calls that the ledger tells as one line although strace shows several, or under a plainer name."""
