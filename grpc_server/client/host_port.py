"""`HOST:PORT`, as servers and clients read it."""

from __future__ import annotations

import ipaddress
import re

_FORM = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,5})")


def split_host_port(text: str) -> tuple[str, int] | None:
    """The host, an IPv6 address without its brackets, and the port, 0 to 65535; None where it is something else."""
    match = _FORM.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        return None
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            return None
    return match["ipv6"] or match["name"], int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
