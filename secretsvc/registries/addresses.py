"""Which network addresses may be connected to: the guard against server-side request forgery.

Rules:

- Judged is the *address* that name resolution gave, never the text of a host: ``127.1``, ``0x7f000001`` and
  full-width digits all resolve to loopback.
- Never, whatever is configured: link-local, cloud metadata services (some sit in public space), multicast,
  unspecified and reserved addresses, and IPv6 forms that carry an IPv4 address inside (NAT64, 6to4, Teredo,
  mapped, compatible), which would lead around every other rule.
- Public addresses: yes. All others (loopback, private, shared, documentation) only as the registry's
  ``networks`` list them.

Pure: no resolution and no sockets here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",
        "168.63.129.16/32",  # Azure's wire server: looks public
        "192.0.0.0/24",  # protocol assignments, Oracle's metadata service 192.0.0.192 among them
        "100.100.100.200/32",  # Alibaba's metadata service, in shared space that might be listed
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",  # unspecified and IPv4-compatible; ::1 is let through below
        "::ffff:0:0/96",
        "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "fe80::/10",
        "fd00:ec2::254/128",  # Amazon's metadata service, in private space that might be listed
        "fd20:ce::254/128",  # Google's
        "ff00::/8",
    )
)
_GLOBAL_UNICAST_6 = ipaddress.IPv6Network("2000::/3")
"""All that is allocated as public; the rest (site-local, for one) only counts as public to ``ipaddress``."""
_LOOPBACK_6 = ipaddress.IPv6Address("::1")


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return the CIDRs of a registry's ``networks``; ValueError when one is none."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def address_verdict(address: Address, networks: Iterable[Network]) -> str:
    """Return why ``address`` may not be connected to, or an empty text when it may."""
    if address != _LOOPBACK_6 and any(address in network for network in _NEVER):
        return "it is link-local, a metadata service, multicast, reserved, or hides an IPv4 address"
    if _is_public(address) or any(address in network for network in networks):
        return ""
    return "it is not public and not listed in the registry's networks"


def _is_public(address: Address) -> bool:
    return address.is_global and (address.version == 4 or address in _GLOBAL_UNICAST_6)  # noqa: PLR2004
