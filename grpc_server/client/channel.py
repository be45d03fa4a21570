"""How both clients connect: the address, TLS or plain, and the token."""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import re
import ssl
import stat
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from modelwright.grpc_server.client.errors import ArgumentError

_FORM = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,5})")


def split_host_port(text: str) -> tuple[str, int] | None:
    """Split `HOST:PORT`; an IPv6 host loses its brackets. None if it is not of that form or the port exceeds 65535."""
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
    """Whether only programs on this machine can reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_named(path: Path, *, streams: bool = False) -> BinaryIO:
    """Open a file for reading. A named pipe is refused, because the program would wait until somebody writes into it.

    Args:
        path: a regular file, or a link to one.
        streams: whether it may also be a pipe or terminal that this process was started with, such as `/dev/stdin` or
            the shell's `<(COMMAND)`.

    Raises:
        OSError: it is something else, or cannot be read; `strerror` says why.
    """
    status = path.stat()
    # Opening a folder raises a clear error of its own.
    fitting = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or (streams and _is_ours(status))
    if not fitting:
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def _is_ours(status: os.stat_result) -> bool:
    """Whether this process has the file with that status open."""
    for name in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else ():  # noqa: PTH112, PTH208 - numbers, not paths
        try:
            same = os.path.samestat(os.fstat(int(name)), status)
        except OSError:  # the descriptor of the listing itself, closed by now
            continue
        if same:
            return True
    return False


DEFAULT_TARGET = "127.0.0.1:50051"

# Tokenizing a whole context answers with more than gRPC's 4 MiB.
_MAX_RESPONSE_BYTES = 64 * 1024 * 1024

_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What a client needs to know before it connects.

    Attributes:
        target: `HOST:PORT`.
        token: the server's token; None sends none.
        tls: whether to encrypt; the authorities that the system trusts are trusted.
        tls_ca: PEM file, or its bytes, with the certificates of the authorities to trust instead. Implies `tls`.
        insecure: whether the token may travel unencrypted to another machine.

    Raises:
        ArgumentError: the target is not `HOST:PORT`, the token is empty or would travel unencrypted, or `tls_ca` has no
            certificate.
        OSError: its file cannot be read.
    """

    target: str
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: str | Path | bytes | None = field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        parts = split_host_port(self.target)
        if parts is None or parts[1] == 0:
            raise ArgumentError(
                "{target} is {value!r}: expected HOST:PORT, with a port from 1 to 65535, such as 127.0.0.1:50051 or "
                "[::1]:50051",
                value=self.target,
            )
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ArgumentError("the token is not valid: expected printable ASCII characters without spaces")
        if self.token is not None and not (self.encrypted or self.insecure or self.stays_here):
            raise ArgumentError(
                "the token would be sent unencrypted to {value}: set {tls} or {tls_ca}, or {insecure} if the network "
                "is trusted",
                value=self.target,
            )
        _ = self.authorities  # to raise errors in them now

    @property
    def stays_here(self) -> bool:
        """Whether the server is on this machine."""
        parts = split_host_port(self.target)
        return parts is not None and is_loopback(parts[0])

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls or self.tls_ca is not None

    @functools.cached_property
    def authorities(self) -> bytes | None:
        """The certificates to trust; None means the system's."""
        if self.tls_ca is None:
            return None
        given = self.tls_ca if isinstance(self.tls_ca, bytes) else _read(Path(self.tls_ca))
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=given.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
            name = "" if isinstance(self.tls_ca, bytes) else f"{self.tls_ca} "
            raise ArgumentError("{tls_ca} {name}does not hold a PEM certificate", name=name) from error
        return given

    def open(self, kind: Any = grpc) -> Any:
        """Open a channel of `grpc` or `grpc.aio`, which connects on first use."""
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES)]
        if self.stays_here:
            # A proxy set in the environment cannot reach this machine.
            options.append(("grpc.enable_http_proxy", 0))
        # With the scheme, because gRPC would take a host named "unix" for a socket's path.
        target = "dns:///" + urllib.parse.quote(self.target, safe="[]:")
        if not self.encrypted:
            return kind.insecure_channel(target, options=options)
        credentials = grpc.ssl_channel_credentials(root_certificates=self.authorities or _system_authorities())
        return kind.secure_channel(target, credentials, options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every request."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def _system_authorities() -> bytes | None:
    """The system's file of trusted certificates. gRPC by itself would use the ones that it ships with."""
    path = ssl.get_default_verify_paths().cafile
    return Path(path).read_bytes() if path else None


def _read(path: Path) -> bytes:
    with open_named(path, streams=True) as file:
        return file.read()
