"""The TLS files, tried out first, so that errors in them are found before models are loaded."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
from attrs import frozen

from modelwright.core.api.errors import UsageError
from modelwright.grpc_server.client.channel import open_named


@frozen(kw_only=True)
class Tls:
    """The files that prove a server's identity, both PEM: the chain of certificates, and its private key."""

    certificate: Path
    key: Path


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """The credentials for a gRPC port.

    Raises:
        UsageError: as `check_tls`.
    """
    check_tls(tls)
    return grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])


def check_tls(tls: Tls) -> None:
    """Try the files in a handshake in memory.

    Raises:
        UsageError: a file cannot be read or is of another kind, they do not belong together, or no client would accept
            the certificate, because it has expired, for example.
    """
    for path, option in ((tls.certificate, "--tls-cert"), (tls.key, "--tls-key")):
        _check_readable(path, option)
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        client.load_verify_locations(tls.certificate)
    except ssl.SSLError as error:
        raise UsageError(f"--tls-cert {tls.certificate} does not hold a PEM certificate") from error
    try:
        server.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except _EncryptedError as error:
        raise UsageError(f"--tls-key {tls.key} is encrypted: expected a key without a passphrase") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"--tls-key {tls.key} is not the key of the certificate {tls.certificate}") from error
        raise UsageError(f"--tls-key {tls.key} does not hold a PEM private key") from error
    try:
        _shake_hands(server, client)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        raise UsageError(f"--tls-cert {tls.certificate}: clients would reject it: {why}") from error


class _EncryptedError(Exception):
    """The key has a password."""


def _no_password() -> str:
    raise _EncryptedError


def _check_readable(path: Path, option: str) -> None:
    try:
        open_named(path).close()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"{option} {path} cannot be read: {reason}") from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Connect a client that trusts exactly this certificate: what it refuses, every client refuses."""
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    # TLS 1.3 needs two rounds.
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
