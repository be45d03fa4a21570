"""Who may call what: access tokens."""

from __future__ import annotations

import hmac
from typing import Literal

import grpc
from attrs import field, frozen

from modelwright.grpc_server.errors import RequestError

Scope = Literal["use", "admin"]

_SCHEME = "bearer"


@frozen(kw_only=True)
class Access:
    """Who may call what on one of a server's ports.

    Attributes:
        token: opens all that uses models; None: nobody is asked for one.
        admin_token: opens what changes a server, and all else; None: `token` does.
        no_admin: why nothing that changes the server is taken on this port, with where it is; None: it is taken.
    """

    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    no_admin: str | None = None

    def check(self, authorization: str | None, scope: Scope) -> None:
        """Let a call pass, or not.

        Args:
            authorization: the value of the header of that name: `Bearer TOKEN`.
            scope: "use" for what asks models or reads what is served, "admin" for what changes it.

        Raises:
            RequestError: UNAUTHENTICATED without a right token, PERMISSION_DENIED with one that does not reach so far.
        """
        if scope == "admin" and self.no_admin is not None:
            raise _denied(self.no_admin)
        administrator = self.admin_token if self.admin_token is not None else self.token
        wanted = administrator if scope == "admin" else self.token
        if wanted is None:
            return
        given = _bearer(authorization)
        if given is None:
            raise _unknown("this server requires a token: send the header 'authorization: Bearer TOKEN'")
        # All comparisons are made, also after one has matched, and each takes as long for any wrong token.
        is_administrator = _same(given, administrator)
        is_user = _same(given, self.token)
        if is_administrator or (is_user and scope == "use"):
            return
        if is_user:
            raise _denied("this call changes the server: send the admin token")
        raise _unknown("the token is not valid for this server")


def _bearer(authorization: str | None) -> str | None:
    """The token of a header; the scheme's name has no case (RFC 9110, section 11.1)."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == _SCHEME and token.strip() else None


def _same(given: str, token: str | None) -> bool:
    return token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _unknown(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", message)


def _denied(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", message)
