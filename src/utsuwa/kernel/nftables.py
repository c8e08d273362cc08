"""nftables through libnftables: one transaction is one call and one ledger line, its text as nft(8) takes it.

A transaction is applied whole or not at all. The library is loaded at the first one (1.5 ms; a transaction then takes 0.1). Two look-ups that
have to be cheap on every run do not need it: they ask the kernel over nfnetlink. Leaves out: which rules (network/firewall.py).
"""

from __future__ import annotations

import ctypes
import errno
from _struct import pack
from _thread import allocate_lock

import _socket

from utsuwa.errors import DependencyMissing
from utsuwa.kernel.door import call_os, is_real
from utsuwa.kernel.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attributes, split

SONAME = "libnftables.so.1"
NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE = 12, 10, 4, 7
NFTA_CHAIN_TABLE = NFTA_RULE_TABLE = 1
NFTA_RULE_CHAIN, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY = 2, 3, 5
NF_DROP, NF_ACCEPT = 0, 1
_ERRNO = {"No such file or directory": errno.ENOENT, "File exists": errno.EEXIST, "Operation not permitted": errno.EPERM, "Operation not supported": errno.EOPNOTSUPP}

_lock = allocate_lock()
_context: tuple[ctypes.CDLL, int] | None = None


def run(text: str) -> None:
    """Apply one transaction. Raises OSError(errno, "nft …: reason"), and DependencyMissing where the library is not there. libnftables(3)."""
    call_os("nft", (text,), text.partition("\n")[0], lambda: _run(text))


def listing(text: str) -> str:
    """Return what a `list …` command prints, '' where the object is not there. Looks only. Raises OSError otherwise."""
    if not is_real():
        return ""
    try:
        return _run(text)
    except FileNotFoundError:
        return ""


def _run(text: str) -> str:
    with _lock:
        library, context = _load()
        status = library.nft_run_cmd_from_buffer(context, text.encode())
        output: bytes = library.nft_ctx_get_output_buffer(context)
        problem: bytes = library.nft_ctx_get_error_buffer(context)
    if status:
        reason = problem.decode(errors="replace").partition("\n")[0].rpartition(": ")[2].strip()
        raise OSError(_ERRNO.get(reason, errno.EINVAL), reason)
    return output.decode(errors="replace")


def _load() -> tuple[ctypes.CDLL, int]:
    global _context
    if _context is None:
        try:
            library = ctypes.CDLL(SONAME)
        except OSError:
            raise DependencyMissing("cannot set up network address translation: libnftables is not installed; install the package libnftables1") from None
        pointer = ctypes.c_void_p
        library.nft_ctx_new.restype, library.nft_ctx_new.argtypes = pointer, (ctypes.c_uint32,)
        library.nft_run_cmd_from_buffer.argtypes = (pointer, ctypes.c_char_p)
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            function = getattr(library, name)
            function.restype, function.argtypes = ctypes.c_char_p, (pointer,)
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = (pointer,)
        context: int = library.nft_ctx_new(0)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        _context = (library, context)
    return _context


def chain_policy(table: str, chain: str) -> int | None:
    """Return the policy of an IPv4 chain: NF_DROP, NF_ACCEPT (also for a chain without a hook), None where there is no such chain. Looks only, 0.03 ms."""
    for body in _ask(NFT_MSG_GETCHAIN, 0, _text(NFTA_CHAIN_TABLE, table) + _text(NFTA_CHAIN_NAME, chain)):
        return int.from_bytes(attributes(body, 4).get(NFTA_CHAIN_POLICY, b"\1"), "big")
    return None


def chain_mentions(table: str, chain: str, name: str) -> bool:
    """Whether a rule of an IPv4 chain compares with the interface `name`. Looks only."""
    wanted = name.encode() + b"\0"
    return any(wanted in body for body in _ask(NFT_MSG_GETRULE, NLM_F_DUMP, _text(NFTA_RULE_TABLE, table) + _text(NFTA_RULE_CHAIN, chain)))


def _text(kind: int, value: str) -> bytes:
    data = value.encode() + b"\0"
    return pack("HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _ask(message: int, flags: int, body: bytes) -> list[bytes]:
    """One question to nf_tables in the address family ip. linux/netfilter/nfnetlink.h, struct nfgenmsg."""
    if not is_real():
        return []
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        data = pack("BBH", _socket.AF_INET, 0, 0) + body
        sock.send(pack("IHHII", 16 + len(data), NFNL_SUBSYS_NFTABLES << 8 | message, NLM_F_REQUEST | flags, 1, 0) + data)
        found: list[bytes] = []
        while True:
            for kind, _, part in split(sock.recv(1 << 16)):
                if kind in (NLMSG_DONE, NLMSG_ERROR):  # ENOENT is the usual answer: there is no such table or chain
                    return found
                found.append(part)
            if not flags & NLM_F_DUMP:
                return found
    except OSError:  # no nf_tables in this kernel: nothing there that could stand in the way
        return []
    finally:
        sock.close()
