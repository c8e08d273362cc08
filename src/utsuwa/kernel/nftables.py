"""nftables through libnftables: one transaction is one call and one ledger line, its text as nft(8) takes it.

A transaction is applied whole or not at all. The library is loaded at the first one (1.5 ms; a transaction then takes 0.1). Two look-ups that
have to be cheap on every run do not need it: they ask the kernel over nfnetlink. Leaves out: which rules (network/firewall.py).
"""

from __future__ import annotations

import errno
import os
from _struct import pack, unpack_from
from _thread import allocate_lock

import _socket

from utsuwa.errors import DependencyMissing
from utsuwa.kernel import ffi as ctypes
from utsuwa.kernel.door import call_os, is_real
from utsuwa.kernel.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attribute, attributes, split

SONAME = "libnftables.so.1"
NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE = 12, 10, 4, 7
NFTA_CHAIN_TABLE = NFTA_RULE_TABLE = 1
NFTA_RULE_CHAIN, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY = 2, 3, 5
NF_DROP, NF_ACCEPT = 0, 1
NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE, NLA_F_NESTED = 1, 2, 0x8000
CTA_TUPLE_ORIG, CTA_FILTER, CTA_TUPLE_PROTO, CTA_PROTO_NUM, CTA_PROTO_DST_PORT, CTA_FILTER_ORIG_FLAGS = 1, 25, 2, 1, 3, 1
CTA_FILTER_F_CTA_PROTO_NUM, CTA_FILTER_F_CTA_PROTO_DST_PORT = 1 << 3, 1 << 5
NFT_CTX_OUTPUT_HANDLE = 1 << 3
_ERRNO = {"No such file or directory": errno.ENOENT, "element does not exist": errno.ENOENT, "File exists": errno.EEXIST, "Operation not permitted": errno.EPERM, "Operation not supported": errno.EOPNOTSUPP}

_lock = allocate_lock()
_context: tuple[ctypes.CDLL, int] | None = None
_owner = 0


def run(text: str) -> None:
    """Apply one transaction. Raises OSError(errno, "nft …: reason"), and DependencyMissing where the library is not there. libnftables(3)."""
    call_os("nft", (text,), text.partition("\n")[0], lambda: _run(text))


def listing(text: str, handles: bool = False) -> str:
    """Return what a `list …` command prints, with ` # handle N` if asked, '' where the object is not there. Looks only. Raises OSError otherwise."""
    if not is_real():
        return ""
    try:
        return _run(text, NFT_CTX_OUTPUT_HANDLE if handles else 0)
    except FileNotFoundError:
        return ""


def _run(text: str, flags: int = 0) -> str:
    with _lock:
        library, context = _load()
        library.nft_ctx_output_set_flags(context, flags)
        status = library.nft_run_cmd_from_buffer(context, text.encode())
        output: bytes = library.nft_ctx_get_output_buffer(context)
        problem: bytes = library.nft_ctx_get_error_buffer(context)
    if status:
        reason = problem.decode(errors="replace").partition("\n")[0].rpartition(": ")[2].strip()
        raise OSError(_ERRNO.get(reason, errno.EINVAL), reason)
    return output.decode(errors="replace")


def _load() -> tuple[ctypes.CDLL, int]:
    global _context, _owner
    # A context holds a netlink socket: a forked child that used its parent's would read the parent's answers (libnftnl then calls exit).
    if _context is None or _owner != os.getpid():
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
        library.nft_ctx_output_set_flags.argtypes = (pointer, ctypes.c_uint)
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = (pointer,)
        context: int = library.nft_ctx_new(0)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        _context, _owner = (library, context), os.getpid()
    return _context


# ------------------------------------------------------------------------------------- nfnetlink, without the library

def chain_policy(table: str, chain: str) -> int | None:
    """Return the policy of an IPv4 chain: NF_DROP, NF_ACCEPT (also for a chain without a hook), None where there is no such chain. Looks only, 0.03 ms."""
    body = _text(NFTA_CHAIN_TABLE, table) + _text(NFTA_CHAIN_NAME, chain)
    for answer in _look(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, 0, body):
        return int.from_bytes(attributes(answer, 4).get(NFTA_CHAIN_POLICY, b"\1"), "big")
    return None


def chain_mentions(table: str, chain: str, name: str) -> bool:
    """Whether a rule of an IPv4 chain compares with the interface `name`. Looks only."""
    wanted = name.encode() + b"\0"
    body = _text(NFTA_RULE_TABLE, table) + _text(NFTA_RULE_CHAIN, chain)
    return any(wanted in answer for answer in _look(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, NLM_F_DUMP, body))


def conntrack_delete_udp(port: int) -> None:
    """Forget all UDP flows to a port, so that their next packet is translated anew. Idempotent. Raises OSError. conntrack(8), -D."""
    numbers = attribute(CTA_PROTO_NUM, bytes((_socket.IPPROTO_UDP,))) + attribute(CTA_PROTO_DST_PORT, port.to_bytes(2, "big"))
    flags = attribute(CTA_FILTER_ORIG_FLAGS, pack("I", CTA_FILTER_F_CTA_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT))
    body = attribute(NLA_F_NESTED | CTA_TUPLE_ORIG, attribute(NLA_F_NESTED | CTA_TUPLE_PROTO, numbers)) + attribute(NLA_F_NESTED | CTA_FILTER, flags)
    text = f"conntrack -D -p udp --orig-port-dst {port}"
    call_os("netlink", (text,), text, lambda: _ask(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, NLM_F_ACK, body) and None)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _look(message: int, flags: int, body: bytes) -> list[bytes]:
    """`_ask`, with no answer where there is no such object, or no nf_tables: nothing there that could stand in the way."""
    if not is_real():
        return []
    try:
        return _ask(message, flags, body)
    except OSError:
        return []


def _ask(message: int, flags: int, body: bytes) -> list[bytes]:
    """Put one question to netfilter for the address family ip; returns the bodies of the answers. linux/netfilter/nfnetlink.h, struct nfgenmsg."""
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        data = pack("BBH", _socket.AF_INET, 0, 0) + body
        sock.send(pack("IHHII", 16 + len(data), message, NLM_F_REQUEST | flags, 1, 0) + data)
        found: list[bytes] = []
        while True:
            for kind, _, part in split(sock.recv(1 << 16)):
                number = -unpack_from("i", part)[0] if kind == NLMSG_ERROR else 0
                if number:
                    raise OSError(number, os.strerror(number))
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                found.append(part)
            if not flags & (NLM_F_DUMP | NLM_F_ACK):
                return found
    finally:
        sock.close()
