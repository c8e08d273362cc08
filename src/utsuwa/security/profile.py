"""Docker's default seccomp profile as a table: the system calls a container may make, and on which conditions.

Equal in meaning to the profile that Docker 28 ships (a unit test compares the two), told by purpose instead of by alphabet. One thing is
written differently: which sockets may be made. The kernel reads `socket`'s first argument as 32 bits, a filter compares 64; a range
(`family > 40`) lets AF_ALG through with a bit set above the 32. Here every bit pattern of the low 32 bits but AF_ALG and AF_VSOCK
is allowed by masks, so that the upper half does not matter.

What is not listed gets EPERM. What that closes: mounting, namespaces, modules, keys, kexec, swap, quotas, clock setting, userfaultfd,
io_uring and tracing by those who do not hold the capability for it.
"""

from __future__ import annotations

REVISION = 1
"""Part of the cache's key: raise it with every change of this table's meaning or of the compiler."""

ALWAYS = (
    # files and directories by path
    "access chdir chmod chown chown32 creat faccessat faccessat2 fchmodat fchmodat2 fchownat fstatat64 futimesat getcwd getxattr getxattrat lchown lchown32 "
    "lgetxattr link linkat listmount listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at "
    "newfstatat open openat openat2 readlink readlinkat removexattr removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs "
    "statfs64 statmount statx symlink symlinkat truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes "
    # open descriptors, reading and writing
    "_llseek cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fchdir fchmod fchown fchown32 fcntl fcntl64 "
    "fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 getdents getdents64 ioctl "
    "lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee "
    "vmsplice write writev "
    # waiting: poll, epoll, inotify, events, asynchronous I/O
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark "
    "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit "
    "poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime "
    "timerfd_settime64 "
    # memory
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock "
    "munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages "
    # processes, threads, scheduling
    "execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu getpgid "
    "getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid ioprio_get ioprio_set pidfd_open pidfd_send_signal prctl prlimit64 "
    "restart_syscall rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler "
    "sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list "
    "set_thread_area set_tid_address setpgid setpriority setrlimit setsid ugetrlimit uretprobe vfork wait4 waitid waitpid "
    # ids and capabilities of the caller; walls it may add
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid getresuid32 getuid getuid32 "
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 "
    "setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32 "
    # signals
    "alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 "
    "rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill tkill "
    # time
    "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer "
    "gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times "
    # sockets; which kinds may be made is decided by argument below
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto "
    "setsockopt shutdown socketcall socketpair "
    # System V and POSIX message queues, semaphores, shared memory
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd "
    "semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget "
    # the rest
    "getrandom riscv_hwprobe sysinfo uname "
)

EQ, MASKED_EQ = "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"
Argument = tuple[int, int, str, int]  # index, value (the mask where the operator has one), operator, valueTwo

AF_ALG, AF_VSOCK = 38, 40
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS CGROUP UTS IPC USER PID NET: none of them without CAP_SYS_ADMIN
_ENOSYS = 38


class Rule:
    """Calls allowed (`errno` 0) or refused with `errno`, when all `caps` are held, none of `without`, on these Go architectures, since this kernel."""

    __slots__ = ("arches", "args", "caps", "errno", "kernel", "names", "not_arches", "without")

    def __init__(self, names: str, *, args: tuple[Argument, ...] = (), caps: str = "", without: str = "", arches: str = "", not_arches: str = "",
                 kernel: tuple[int, int] = (0, 0), errno: int = 0) -> None:
        self.names, self.args, self.kernel, self.errno = tuple(names.split()), args, kernel, errno
        self.caps, self.without = caps.split(), without.split()
        self.arches, self.not_arches = arches.split(), not_arches.split()


def _families() -> list[Rule]:
    """socket(2) with every family but AF_ALG (CVE-2026-31431) and AF_VSOCK (which reaches the hypervisor past the network namespace)."""
    masks = [(1 << bit, 1 << bit) for bit in range(6, 32)]             # 64 and above
    masks += [(0xFFFFFFE0, 0), (0xFFFFFFF0, 48)]                       # 0–31, 48–63
    masks += [(0xFFFFFFFC, 32), (0xFFFFFFFE, 36), (0xFFFFFFFF, 39)]    # 32–37, 39
    masks += [(0xFFFFFFFF, 41), (0xFFFFFFFE, 42), (0xFFFFFFFC, 44)]    # 41–47
    return [Rule("socket", args=((0, mask, MASKED_EQ, value),)) for mask, value in masks]


_ADMIN = "CAP_SYS_ADMIN"


def rules() -> list[Rule]:
    """Return every rule, the unconditional one first."""
    return [
        Rule(ALWAYS),
        # Before 4.8 a tracer could change a call after the filter had seen it.
        Rule("process_vm_readv process_vm_writev ptrace", kernel=(4, 8)),
        *_families(),
        # personality(2): PER_LINUX, PER_LINUX32, UNAME26 with either, and the question what it is; not ADDR_NO_RANDOMIZE.
        *(Rule("personality", args=((0, value, EQ, 0),)) for value in (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)),
        Rule("sync_file_range2 swapcontext", arches="ppc64le"),
        Rule("arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls", arches="arm arm64"),
        Rule("arch_prctl", arches="amd64 x32"),
        Rule("modify_ldt", arches="amd64 x32 x86"),
        Rule("s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr", arches="s390 s390x"),
        Rule("riscv_flush_icache", arches="riscv64"),
        # Opens any file by number, past every directory: how containers were left in 2014 ("shocker").
        Rule("open_by_handle_at", caps="CAP_DAC_READ_SEARCH"),
        Rule(
            "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr "
            "mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
            caps=_ADMIN,
        ),
        # A new user namespace gives every capability inside it, and with them the kernel code that most exploits need.
        Rule("clone", args=((0, _NEW_NAMESPACES, MASKED_EQ, 0),), without=_ADMIN, not_arches="s390 s390x"),
        Rule("clone", args=((1, _NEW_NAMESPACES, MASKED_EQ, 0),), without=_ADMIN, arches="s390 s390x"),  # flags come second there
        # clone3's flags are in memory, out of a filter's sight: say that it does not exist, and libc takes clone.
        Rule("clone3", without=_ADMIN, errno=_ENOSYS),
        Rule("reboot", caps="CAP_SYS_BOOT"),
        Rule("chroot", caps="CAP_SYS_CHROOT"),
        Rule("delete_module init_module finit_module", caps="CAP_SYS_MODULE"),
        Rule("acct", caps="CAP_SYS_PACCT"),
        Rule("kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace", caps="CAP_SYS_PTRACE"),
        Rule("iopl ioperm", caps="CAP_SYS_RAWIO"),
        Rule("settimeofday stime clock_settime clock_settime64", caps="CAP_SYS_TIME"),
        Rule("vhangup", caps="CAP_SYS_TTY_CONFIG"),
        Rule("get_mempolicy mbind set_mempolicy set_mempolicy_home_node", caps="CAP_SYS_NICE"),
        Rule("syslog", caps="CAP_SYSLOG"),
        Rule("bpf", caps="CAP_BPF"),
        Rule("perf_event_open", caps="CAP_PERFMON"),
    ]


DECIDING = (
    "CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_SYS_NICE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON",
)
"""The capabilities on which the profile depends: two containers equal in these share one compiled program."""

ARCHITECTURES = {  # Docker's archMap: what else a kernel of this architecture can run
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
    "SCMP_ARCH_MIPS64": ("SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64N32"),
    "SCMP_ARCH_MIPS64N32": ("SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64"),
    "SCMP_ARCH_MIPSEL64": ("SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64N32"),
    "SCMP_ARCH_MIPSEL64N32": ("SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64"),
    "SCMP_ARCH_S390X": ("SCMP_ARCH_S390",),
    "SCMP_ARCH_RISCV64": (),
    "SCMP_ARCH_LOONGARCH64": (),
}
MACHINES = {  # uname -m: seccomp's name, Go's name
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"), "aarch64": ("SCMP_ARCH_AARCH64", "arm64"), "s390x": ("SCMP_ARCH_S390X", "s390x"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"), "loongarch64": ("SCMP_ARCH_LOONGARCH64", "loong64"), "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
}
