"""Names and ids of containers: made up, checked. On the hot path of `run`: no re, no random."""

from __future__ import annotations

import os

from utsuwa.errors import UsageError

ADJECTIVES = (
    "amber ample apricot autumn bamboo bright brisk calm candid cheerful cinnabar clear cobalt copper coral crisp dappled dewy early earthen "
    "easy even fair fern fine firm fleet fresh gentle gilded glad glazed golden grand honest humble indigo ivory jade jolly keen kind lacquered lively "
    "lucid lunar mellow merry mild misty mossy neat nimble noble novel opal patient pearly plain plucky polished quick quiet rainy ready robust round rustic "
    "sage serene silken simple smooth snowy sober solar sound spring spry stable steady sturdy sunny supple swift tidy tranquil true vivid warm willow wise"
).split()
"""Colours, surfaces, tempers: nothing that would make a bad name for somebody's production database."""

SURNAMES = (
    "akahori arakawa aida chojiro dohachi doppo eiraku fujimori fukai fukuyama furuta hamada hara hashimoto hayakawa hirata hirose honami hosoi iizuka "
    "ikeda imai inoue ishiguro ito iwamoto kaga kakiemon kaneshige kato kawai kikuchi kimura kinoshita kitazato kiyomizu kodaira koetsu koie kondo kuroda "
    "kusama maezawa matsui mikami miyake mokubei mori nagaoka nakamura nakaya ninsei nishina noguchi noyori oka okada okabe ohno rikyu sakai "
    "sakaida sasaki sen seki shibata shimaoka shimura shirakawa suzuki takaezu takamine takatsu tamba tanaka tomimoto tomonaga toyoda yagi yamada yanagi yoshida yukawa"
).split()
"""Potters, tea masters, scientists and engineers of Japan."""

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")
NAME_MAX = 255


def make_up(attempt: int = 0) -> str:
    """Return a new `adjective_surname`; from the fourth `attempt` on with a number, so that a full house still finds one."""
    one, two, three = os.urandom(3)
    number = "" if attempt < 3 else str((one << 16 | two << 8 | three) % 10 ** min(attempt - 2, 7))
    # 3 bytes for two draws: the small preference for the lists' first words does no harm in a name.
    return f"{ADJECTIVES[(one << 4 | three >> 4) % len(ADJECTIVES)]}_{SURNAMES[(two << 4 | three & 15) % len(SURNAMES)]}{number}"


def make_id() -> str:
    """Return a new container id: 64 lower-case hexadecimal digits. Never all decimal in its first twelve, which a host name may not be."""
    while True:
        new = os.urandom(32).hex()
        if not new[:12].isdigit():
            return new


def check(name: str) -> str:
    """Return a container's name without its leading slash. Raises UsageError in Docker's words."""
    bare = name.removeprefix("/")
    if len(bare) < 2 or bare[0] not in _ALNUM or not _NAME.issuperset(bare):
        raise UsageError(f"invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed" + ("; it needs two characters at least" if len(bare) == 1 else ""))
    if len(bare) > NAME_MAX:
        raise UsageError(f"invalid container name ({bare[:20]}…): {len(bare)} characters, {NAME_MAX} are allowed")
    return bare


def check_hostname(name: str) -> str:
    """Return a host name. Raises UsageError: it becomes a line of /etc/hosts, and the kernel holds 64 bytes. hostname(7)"""
    if not 0 < len(name) <= 64 or not _NAME.issuperset(name) or name[0] in "-.":
        raise UsageError(f"invalid hostname {name[:80]!r}: at most 64 letters, digits, hyphens, dots and underscores, and no hyphen or dot in front")
    return name


def is_id_prefix(text: str) -> bool:
    """Whether `text` may be the beginning of an id."""
    return 0 < len(text) <= 64 and frozenset("0123456789abcdef").issuperset(text)
