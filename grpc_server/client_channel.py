"""How both clients connect: TLS or plain, and the token that they show."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

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
        ValueError: the token is none, would travel unencrypted, or `tls_ca` holds no certificate.
        OSError: the file cannot be read.
    """

    target: str
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: str | Path | bytes | None = field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check what goes together."""
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError("a token is a word of printable ASCII characters, and this one is not")
        if self.token is not None and not (self.encrypted or self.insecure or is_loopback(self.target)):
            raise ValueError(
                f"the token would travel unencrypted to {self.target}: give tls or tls_ca, or insecure if the network "
                "is trusted"
            )
        self.authorities()

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls or self.tls_ca is not None

    def authorities(self) -> bytes | None:
        """The certificates to trust; None: the system's."""
        if self.tls_ca is None:
            return None
        given = self.tls_ca if isinstance(self.tls_ca, bytes) else Path(self.tls_ca).read_bytes()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=given.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
            name = "tls_ca" if isinstance(self.tls_ca, bytes) else str(self.tls_ca)
            raise ValueError(f"{name} holds no certificate in PEM") from error
        return given

    def open(self, kind: Any = grpc) -> Any:
        """A channel of `grpc`, or of `grpc.aio`; it connects when it is first used."""
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES)]
        if is_loopback(self.target):
            # A proxy of the environment has no way to this machine.
            options.append(("grpc.enable_http_proxy", 0))
        if not self.encrypted:
            return kind.insecure_channel(self.target, options=options)
        credentials = grpc.ssl_channel_credentials(root_certificates=self.authorities() or _system_authorities())
        return kind.secure_channel(self.target, credentials, options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every request."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def _system_authorities() -> bytes | None:
    """The file in which the system keeps them; gRPC itself would take the ones that it brings along."""
    path = ssl.get_default_verify_paths().cafile
    return Path(path).read_bytes() if path else None


def is_loopback(target: str) -> bool:
    """Whether `HOST:PORT` is on this machine."""
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
