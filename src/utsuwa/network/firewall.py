"""What nftables does for our bridges: one table `ip utsuwa`, made once, filled by sets and maps.

Starting a container without published ports touches no rule; publishing is one small transaction that adds elements, and so is taking it back.
Leaves out: IPv6 (a later table `ip6 utsuwa`), isolation between user networks (its hook is the set `pairs`).
"""

from __future__ import annotations

import errno

from utsuwa.errors import DependencyMissing, RuntimeFailure
from utsuwa.kernel import nftables
from utsuwa.ledger import because
from utsuwa.spec.network import Binding, NetworkRecord, address_number, address_text

TABLE = "ip utsuwa"

SETS = (
    ("set", "bridges", "type ifname;"),                         # our bridges
    ("set", "pairs", "type ifname . ifname;"),                  # from which bridge to which traffic may pass: each to itself
    ("set", "subnets", "type ipv4_addr; flags interval;"),      # whose packets are masqueraded on their way out
    ("map", "ports", "type inet_proto . inet_service : ipv4_addr . inet_service;"),                     # published on every address
    ("map", "ports_at", "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;"),      # published on one address
)
# -300 is before connection tracking, -100 where destinations are translated, 100 where sources are: nft(8), "Standard priority names".
CHAINS = (
    ("raw", "type filter hook prerouting priority -300;", (
        # route_localnet (ports published to loopback) would let a container speak to the host's own 127.0.0.1: CVE-2020-8558.
        "iifname @bridges ip daddr 127.0.0.0/8 drop",
    )),
    ("prerouting", "type nat hook prerouting priority -100;", (
        # Nothing from outside is for 127.0.0.1: a neighbour who sends such packets does not reach ports published there (CVE-2021-20199's class).
        "ip daddr 127.0.0.0/8 return",
        "dnat ip to ip daddr . meta l4proto . th dport map @ports_at",
        "fib daddr type local dnat ip to meta l4proto . th dport map @ports",
    )),
    ("output", "type nat hook output priority -100;", (
        "dnat ip to ip daddr . meta l4proto . th dport map @ports_at",
        "fib daddr type local dnat ip to meta l4proto . th dport map @ports",
    )),
    ("postrouting", "type nat hook postrouting priority 100;", (
        "ip saddr @subnets oifname != @bridges masquerade",
        # A container that calls a published port, its own or a neighbour's: without this the answer would go straight back, untranslated.
        "ip saddr @subnets ip daddr @subnets ct status dnat masquerade",
        "ip saddr 127.0.0.0/8 oifname @bridges masquerade",
    )),
    ("forward", "type filter hook forward priority 0;", (
        "oifname @bridges ct state established,related accept",
        "oifname @bridges ct status dnat accept",
        "iifname . oifname @pairs accept",
        # A container's unpublished ports are not reached from outside, not even by a neighbour who routes to its subnet through us.
        "oifname @bridges drop",
    )),
)


def setup_text(network: NetworkRecord) -> str:
    """Return the transaction that makes the table and enters the network. Idempotent: chains are emptied and filled again in it."""
    lines = [f"add table {TABLE}"]
    lines += [f"add {kind} {TABLE} {name} {{ {form} }}" for kind, name, form in SETS]
    for name, hook, rules in CHAINS:
        lines += [f"add chain {TABLE} {name} {{ {hook} }}", f"flush chain {TABLE} {name}"]
        lines += [f"add rule {TABLE} {name} {rule}" for rule in rules]
    return "\n".join(lines + [f"add element {TABLE} {element}" for element in _elements(network)])


def _elements(network: NetworkRecord) -> list[str]:
    elements = [f'bridges {{ "{network.link}" }}', f'pairs {{ "{network.link}" . "{network.link}" }}']
    return elements if network.internal else [*elements, f"subnets {{ {network.cidr} }}"]


def setup(network: NetworkRecord) -> None:
    """Make the table and enter the network's bridge. Idempotent. Raises RuntimeFailure, DependencyMissing."""
    with because("containers leave through the host's address, and nobody reaches them but through published ports", "nft(8); RFC 3022", 4):
        _transaction(setup_text(network), f"set up address translation for network {network.name}")
    pass_foreign(network)


def is_set_up(network: NetworkRecord) -> bool:
    """Whether our table stands (someone may have flushed the rule set) and no foreign filter is in the way. Looks only, 0.1 ms."""
    return nftables.chain_policy("utsuwa", "forward") is not None and not _foreign_chain(network)


def _foreign_chain(network: NetworkRecord) -> str:
    """Return the chain of iptables' filter table that drops our forwarded packets and does not know our bridge yet; '' where there is none."""
    if nftables.chain_policy("filter", "FORWARD") != nftables.NF_DROP:
        return ""
    chain = "DOCKER-USER" if nftables.chain_policy("filter", "DOCKER-USER") is not None else "FORWARD"
    return "" if nftables.chain_mentions("filter", chain, network.link) else chain


def pass_foreign(network: NetworkRecord) -> None:
    """Let our bridge through a foreign FORWARD chain whose policy is to drop, as dockerd's is. Idempotent.

    An accept in our table does not help: a packet must pass every base chain of the hook. Docker reserves DOCKER-USER for such rules and leaves
    them alone when it starts again; without Docker the head of FORWARD takes them. Our own chain decides what may pass at all.
    """
    chain = _foreign_chain(network)
    if not chain:
        return
    with because("the policy of this host's iptables, set by Docker or an administrator, is to drop what is forwarded: let our bridge pass", "iptables-nft(8); Docker, packet filtering", 4):
        # Inserted, so the last comes first. Docker's own bridges stay behind its rules: their unpublished ports are not for our containers. Only what
        # iptables-nft can read: another expression in its table and `iptables -L` refuses the whole of it.
        rules = [f'oifname "{network.link}" counter accept', f'iifname "{network.link}" counter accept']
        if chain == "DOCKER-USER":
            rules += [f'iifname "{network.link}" oifname "{theirs}" counter return' for theirs in ("br-*", "docker0")]
        _transaction("\n".join(f"insert rule ip filter {chain} {rule}" for rule in rules), f"let network {network.name} pass chain {chain}")


def remove(network: NetworkRecord) -> None:
    """Take the network's bridge out of every rule; the table goes with the last one. Idempotent."""
    with because("the network is removed", "nft(8)", 4):
        stands = nftables.chain_policy("utsuwa", "forward") is not None
        delete([entry for _, address, entry in published() if network.holds(address_number(address))] if stands else [])
        # Added first, so that deleting does not fail for what is not there: of an interval set nft says EINVAL then.
        for text in ([f"add element {TABLE} {element}\ndelete element {TABLE} {element}" for element in _elements(network)] if stands else []) + _foreign_rules(network):
            try:
                nftables.run(text)
            except (FileNotFoundError, FileExistsError):  # somebody else's subnet that overlaps; rules and sets that are gone
                continue
        if stands and "elements" not in nftables.listing(f"list set {TABLE} bridges"):
            nftables.run(f"delete table {TABLE}")


def _foreign_rules(network: NetworkRecord) -> list[str]:
    """Return the commands that undo `pass_foreign`."""
    commands = []
    for chain in ("DOCKER-USER", "FORWARD"):
        if nftables.chain_mentions("filter", chain, network.link):
            for line in nftables.listing(f"list chain ip filter {chain}", handles=True).splitlines():
                rule, _, handle = line.rpartition(" # handle ")
                if rule.strip().startswith((f'iifname "{network.link}" ', f'oifname "{network.link}" ')):
                    commands.append(f"delete rule ip filter {chain} handle {handle}")
    return commands


# ------------------------------------------------------------------------------------------------------- published ports

def element(binding: Binding, address: int, owner: str) -> str:
    """Return one published port as nft(8) writes an element, with the first 12 digits of its sandbox's id as the comment."""
    place = f"{binding.address} . " if binding.address else ""
    return f'{"ports_at" if binding.address else "ports"} {{ {place}{binding.protocol} . {binding.port} comment "{owner[:12]}" : {address_text(address)} . {binding.target} }}'


def publish(bindings: list[Binding], address: int, owner: str) -> None:
    """Send the host's ports to the container, all in one transaction. Idempotent. Raises RuntimeFailure, DependencyMissing.

    Call with the ports reserved: an element that leads elsewhere was left by a container that is gone, and is replaced.
    """
    if not bindings:
        return
    text = "\n".join(f"add element {TABLE} {element(binding, address, owner)}" for binding in bindings)
    with because("published ports lead to the container: the kernel rewrites the destination, no proxy copies data", "nft(8), dnat; Docker, port publishing", 4):
        try:
            _transaction(text, "publish ports")
        except FileExistsError:
            keys = {_key(binding) for binding in bindings}
            delete([entry for _, _, entry in published() if entry in keys])
            _transaction(text, "publish ports")
    _forget_flows(bindings)


def unpublish(bindings: list[Binding], address: int, owner: str) -> None:
    """Take published ports back. Idempotent, also where some or all are gone."""
    if not bindings:
        return
    with because("the container is gone: its published ports lead nowhere", "nft(8)", 4):
        # Added first, so that deleting does not fail for what is not there: `destroy` is nftables 1.0.7 and Linux 6.3.
        texts = [f"add element {TABLE} {entry}\ndelete element {TABLE} {entry}" for entry in (element(binding, address, owner) for binding in bindings)]
        if not _done("\n".join(texts)) and len(texts) > 1:
            for text in texts:
                _done(text)
    _forget_flows(bindings)


def _done(text: str) -> bool:
    """Run a transaction; False where the table is gone, or a port leads to someone else by now."""
    try:
        nftables.run(text)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST):
            raise
        return False
    return True


def _forget_flows(bindings: list[Binding]) -> None:
    """A UDP flow that is known keeps its old translation for as long as packets come: Docker deletes such entries too."""
    for binding in bindings:
        if binding.protocol == "udp":
            with because("UDP clients that were talking to this port before are led by the new rule from now on", "conntrack(8); Docker, DeleteConntrackEntriesByPort", 4):
                nftables.conntrack_delete_udp(binding.port)


def _key(binding: Binding) -> str:
    """The element without its value, as `delete element` takes it and `published` returns it."""
    place = f"{binding.address} . " if binding.address else ""
    return f"{'ports_at' if binding.address else 'ports'} {{ {place}{binding.protocol} . {binding.port} }}"


def published() -> list[tuple[str, str, str]]:
    """Return (owner's 12 digits, container's address, element as delete takes it) of every published port. Looks only."""
    found = []
    for name in ("ports", "ports_at"):
        text = nftables.listing(f"list map {TABLE} {name}")
        for entry in text.partition("elements = {")[2].partition("}")[0].split(","):
            key, _, rest = entry.strip().partition(" comment ")
            comment, _, target = rest.partition(" : ")
            if target:
                found.append((comment.strip('" '), target.partition(" .")[0].strip(), f"{name} {{ {key} }}"))
    return found


def delete(entries: list[str]) -> None:
    """Delete elements that `published` returned, one transaction."""
    if entries:
        with because("these published ports belong to no container", "nft(8)", 4):
            nftables.run("\n".join(f"delete element {TABLE} {entry}" for entry in entries))


def _transaction(text: str, what: str) -> None:
    """Apply a transaction, or say what could not be done and why. What exists already stays FileExistsError."""
    try:
        nftables.run(text)
    except DependencyMissing as error:
        raise DependencyMissing(f"cannot {what}: {str(error).partition(': ')[2]}") from None
    except FileExistsError:
        raise
    except OSError as error:
        raise RuntimeFailure(f"cannot {what}: {error.strerror}; does this kernel have nf_tables with nat and fib?") from None
