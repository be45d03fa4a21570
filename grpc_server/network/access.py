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
        token: needed to use models; None if no token is needed.
        admin_token: needed for admin calls, and also accepted for others; None means `token`.
        no_admin: why this port refuses admin calls, and which port takes them; None if this port takes them.
    """

    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    no_admin: str | None = None

    def check(self, authorization: str | None, scope: Scope) -> None:
        """Check whether a call is allowed.

        Args:
            authorization: the value of the header of that name: `Bearer TOKEN`.
            scope: "use" for requests to models and for reading what is served, "admin" for changing it.

        Raises:
            RequestError: UNAUTHENTICATED without a valid token, PERMISSION_DENIED with one that is not the admin token.
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
        # Every comparison is made, even after a match, and takes the same time for any wrong token.
        is_administrator = _same(given, administrator)
        is_user = _same(given, self.token)
        if is_administrator or (is_user and scope == "use"):
            return
        if is_user:
            raise _denied("this call changes the server: send the admin token")
        raise _unknown("the token is not valid for this server")


def _bearer(authorization: str | None) -> str | None:
    """The token of a header; the scheme's name is case-insensitive (RFC 9110, section 11.1)."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == _SCHEME and token.strip() else None


def _same(given: str, token: str | None) -> bool:
    return token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _unknown(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", message)


def _denied(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", message)
