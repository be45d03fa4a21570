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


def open_named(path: Path, *, streams: bool = False) -> BinaryIO:
    """Open a file for reading. A named pipe is refused: it would make the program wait until somebody writes into it.

    Args:
        path: a regular file, or a link to one.
        streams: whether it may also be a pipe or a terminal that this process was started with, as `/dev/stdin` and
            the shell's `<(COMMAND)` are.

    Raises:
        OSError: it is none of these, or cannot be read; `strerror` says why.
    """
    status = path.stat()
    # A folder says itself that it is one.
    fitting = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or (streams and _is_ours(status))
    if not fitting:
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def _is_ours(status: os.stat_result) -> bool:
    """Whether one of this process's open files is the one with that status."""
    for name in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else ():  # noqa: PTH112, PTH208 - numbers, not paths
        try:
            same = os.path.samestat(os.fstat(int(name)), status)
        except OSError:  # the listing's own, closed by now
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
        token: what the server asks for; None shows none.
        tls: whether to encrypt, and trust the authorities that the system trusts.
        tls_ca: the certificates of the authorities to trust instead, in PEM: a file, or its bytes. Implies `tls`.
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
        """Check what goes together."""
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
        _ = self.authorities  # errors in them are raised now

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
        """The certificates to trust; None: the system's."""
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
        """A channel of `grpc`, or of `grpc.aio`; it connects when it is first used."""
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES)]
        if self.stays_here:
            # A proxy of the environment has no way to this machine.
            options.append(("grpc.enable_http_proxy", 0))
        # By its scheme, or gRPC would take a host named "unix" for a socket's path.
        target = "dns:///" + urllib.parse.quote(self.target, safe="[]:")
        if not self.encrypted:
            return kind.insecure_channel(target, options=options)
        credentials = grpc.ssl_channel_credentials(root_certificates=self.authorities or _system_authorities())
        return kind.secure_channel(target, credentials, options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every request."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def _system_authorities() -> bytes | None:
    """The file in which the system keeps them; gRPC itself would take the ones that it brings along."""
    path = ssl.get_default_verify_paths().cafile
    return Path(path).read_bytes() if path else None


def _read(path: Path) -> bytes:
    with open_named(path, streams=True) as file:
        return file.read()
