"""The addresses on which a server listens."""

from __future__ import annotations

import errno
import socket

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.grpc_server.client.channel import is_loopback, split_host_port

# Maximum number of connections that wait to be accepted.
BACKLOG = 2048


@frozen(kw_only=True)
class Address:
    """A host and a port to listen on; port 0 lets the system choose. `str()` gives `HOST:PORT`."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT` (`[::1]:50051` for IPv6).

        Raises:
            UsageError: it is not of this form.
        """
        parts = split_host_port(text)
        if parts is None:
            raise UsageError(
                f"{text!r} is not an address to listen on: expected HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051"
            )
        host, port = parts
        return cls(host=host, port=port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return is_loopback(self.host)


def check_free(listen: Address, flag: str) -> None:
    """Bind for a moment, because gRPC does not say why it could not.

    Args:
        listen: the address.
        flag: the option of the command line, for the error.

    Raises:
        ModelwrightError: the address cannot be used.
    """
    if listen.port != 0:
        _bound(listen, flag).close()


def bind_socket(listen: Address, flag: str) -> socket.socket:
    """Open a listening socket, so that no other program can take the port.

    Args:
        listen: the address; port 0 takes a free one.
        flag: the option of the command line, for the error.

    Raises:
        ModelwrightError: the address cannot be used.
    """
    bound = _bound(listen, flag)
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise _cannot_listen(listen, flag, error) from error
    bound.setblocking(False)  # noqa: FBT003 - it takes no name
    return bound


def _bound(listen: Address, flag: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            # Connections of a server that has just ended do not block the port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(listen, flag, error) from error
    return bound


def _cannot_listen(listen: Address, flag: str, error: OSError | UnicodeError) -> ModelwrightError:
    reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not a valid host name"
    taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    advice = f"{'stop the program that listens there, or ' if taken else ''}choose another address with {flag}"
    return ModelwrightError(f"cannot listen on {listen}: {reason}: {advice}")
