"""What the operator of a fleet allows jobs to name: folders of a node, and URLs."""

import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from thalweg.contract import addresses
from thalweg.learning.errors import NodeError

# Where clouds give a machine its credentials, besides link-local addresses.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))


@dataclass(frozen=True)
class Limits:
    """The folders below which `file://` is read, and the beginnings of other URLs that are read; None for all."""

    roots: tuple[str, ...] | None = None
    urls: tuple[str, ...] | None = None

    def check_path(self, field: str, path: Path, given: str) -> None:
        """Raises NodeError if a path, whose links are resolved, is not in a folder that is allowed."""
        if self.roots is None or any(path.is_relative_to(Path(root).resolve()) for root in self.roots):
            return
        problem = "is not in a folder that this fleet reads; its operator can allow one: thalweg fleet --data-root FOLDER"
        raise NodeError(f"{field}: {given} {problem}")

    def check_url(self, field: str, url: str) -> None:
        """Raises NodeError if a URL does not begin with one that is allowed, or names an address that never is."""
        with suppress(ValueError):
            check_peer(field, url, urlsplit(url).hostname or "")
        if self.urls is None or any(url == prefix or url.startswith(f"{prefix.rstrip('/')}/") for prefix in self.urls):
            return
        problem = "is not a URL that this fleet reads; its operator can allow it: thalweg fleet --data-url PREFIX"
        raise NodeError(f"{field}: {addresses.public(url)} {problem}")


ALL_ALLOWED = Limits()


def check_peer(field: str, url: str, address: str) -> None:
    """Raises NodeError if the address of a server is one where a machine gives out its own credentials.

    Raises ValueError if it is not an address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_link_local or ip in _METADATA:
        problem = f"is at the link-local address {ip}, from which a machine's own credentials can be read; it is not read"
        raise NodeError(f"{field}: {addresses.public(url)} {problem}")
