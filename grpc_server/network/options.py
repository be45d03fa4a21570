"""How a server behaves, and which wishes do not go together."""

from __future__ import annotations

from attrs import field, frozen, validators

from modelwright.core.api.errors import UsageError
from modelwright.grpc_server.network.access import Access, Tls
from modelwright.grpc_server.network.listening import Address

_ELSEWHERE = "this port takes no calls that change the server: ask on the administrators' port"
_NOWHERE = "this server takes no calls that change it: it was started without an administrators' port (--admin)"


@frozen(kw_only=True)
class ServerOptions:
    """How a server behaves.

    Attributes:
        listen: where it answers gRPC.
        http: where it answers HTTP; None: nowhere.
        admin: where it takes calls that change it; None: where it answers, if only programs on this machine reach that.
        tls: the files of TLS, for every port; None: nothing is encrypted.
        token: what callers must show; None: nothing.
        admin_token: what callers must show that change the server; None: `token`.
        insecure: whether it may listen where other machines reach it, though nothing is encrypted, or nobody who
            changes it is asked who they are.
        max_message_bytes: the most bytes of a request.
        max_requests: how many requests may run or wait at once.
        grace: how long running requests may take after a signal, in seconds.
    """

    listen: Address = field(factory=lambda: Address(host="127.0.0.1", port=50051))
    http: Address | None = None
    admin: Address | None = None
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    insecure: bool = False
    max_message_bytes: int = field(
        default=4 * 1024 * 1024, validator=validators.and_(validators.ge(1024), validators.le(2**30))
    )
    max_requests: int = field(default=256, validator=validators.ge(1))
    grace: float = field(default=30.0, validator=validators.ge(0.0))

    def check(self) -> None:
        """Look whether somebody reaches what they should not.

        Raises:
            UsageError: other machines do, and `insecure` is not set; or whoever may ask may change the server, though
                that has a token of its own.
        """
        if self.token is not None and self.token == self.admin_token:
            raise UsageError(
                "--admin-token-file has the same token as --token-file, so whoever may ask may change the server: give "
                "it another one, or leave it out if that is wanted"
            )
        if self.insecure:
            return
        for flag, address in (("--listen", self.listen), ("--http", self.http), ("--admin", self.admin)):
            if address is not None and not address.is_loopback and self.tls is None:
                raise UsageError(
                    f"{flag} {address} can be reached from other machines, and nothing is encrypted: give --tls-cert "
                    "and --tls-key, listen on 127.0.0.1, or say --insecure if the network is trusted"
                )
        if self.admin is not None and not self.admin.is_loopback and self.admin_token is None:
            raise UsageError(
                f"--admin {self.admin} can be reached from other machines, and nobody is asked who they are: give "
                "--admin-token-file, listen on 127.0.0.1, or say --insecure if the network is trusted"
            )

    def grpc_access(self) -> Access:
        """Who may call what on the gRPC port."""
        closed = _ELSEWHERE if self.admin is not None else None if self.listen.is_loopback else _NOWHERE
        return self._access(closed)

    def admin_access(self) -> Access:
        """Who may call what on the administrators' port."""
        return self._access(None)

    def http_access(self) -> Access:
        """Who may call what over HTTP: it has one port, and the administrator's token opens it for changes."""
        closed = _ELSEWHERE if self.admin is not None else _NOWHERE
        is_open = self.http is None or (self.http.is_loopback and self.admin is None)
        return self._access(None if is_open or self.admin_token is not None else closed)

    def _access(self, no_admin: str | None) -> Access:
        return Access(token=self.token, admin_token=self.admin_token, no_admin=no_admin)
