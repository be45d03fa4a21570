"""TLS: encrypted connections, and files that are wrong, reported before anything is loaded."""

import pytest
from attrs import evolve

from modelwright import Client, UsageError
from modelwright.grpc_server.client import ServerError
from modelwright.grpc_server.network.listening import Address
from modelwright.grpc_server.network.tls import Tls, check_tls


@pytest.fixture
def math(shelf):
    shelf.add("math")
    return shelf


def test_an_encrypted_server_answers_who_trusts_its_certificate(math, serve, connect, tls):
    """From a file or from its bytes, on every gRPC port, and with a token."""
    running = serve("math", tls=tls, token="user", admin_token="admin", admin=Address(host="127.0.0.1", port=0))
    for authority in (tls.certificate, str(tls.certificate), tls.certificate.read_bytes()):
        assert connect(running, tls_ca=authority, token="user").generate("hi").text == "math@1:hi"
    admin = connect(running, running.bound.admin, tls_ca=tls.certificate, token="admin")
    assert admin.set_alias("assistant", "math").address == "math@1"


def test_a_client_that_trusts_others_gets_the_reason(math, serve, connect, tls, tmp_path, certify):
    """By the authorities of the system nobody vouches for this server; nor does another certificate."""
    running = serve("math", tls=tls)
    other = certify(tmp_path)
    for options in ({"tls": True}, {"tls_ca": other.certificate}):
        with pytest.raises(ServerError, match=r"cannot connect to .* with TLS: .* certificate") as caught:
            connect(running, **options).generate("hi")
        assert caught.value.code == "UNAVAILABLE"


def test_an_encrypted_client_meets_a_plain_port_and_a_plain_client_an_encrypted_one(math, serve, connect, tls):
    """Both learn what is the matter, and the servers go on."""
    plain, encrypted = serve("math"), serve("math", tls=tls)
    with pytest.raises(ServerError, match="does the server use TLS"):
        connect(plain, tls_ca=tls.certificate).generate("hi")
    with pytest.raises(ServerError, match="does it require TLS"):
        connect(encrypted).generate("hi")
    assert connect(plain).generate("hi").text == "math@1:hi"
    assert connect(encrypted, tls_ca=tls.certificate).generate("hi").text == "math@1:hi"


def test_a_client_that_is_given_no_certificate_says_so(tls, tmp_path):
    """Before it connects."""
    for authority in (tls.key, tls.key.read_bytes(), b"", b"\xff"):
        with pytest.raises(ValueError, match="does not hold a PEM certificate"):
            Client("127.0.0.1:1", tls_ca=authority)
    with pytest.raises(FileNotFoundError):
        Client("127.0.0.1:1", tls_ca=tmp_path / "nothing")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory, tls, certify):
    """Files of TLS that are wrong, each in its own way."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").write_text("")
    (folder / "binary").write_bytes(b"\x00\xff" * 100)
    other = certify(folder, "other")
    return {
        "missing": evolve(tls, certificate=folder / "missing"),
        "folder": evolve(tls, certificate=folder),
        "empty": evolve(tls, certificate=folder / "empty"),
        "binary": evolve(tls, certificate=folder / "binary"),
        "swapped": Tls(certificate=tls.key, key=tls.certificate),
        "no key": evolve(tls, key=tls.certificate),
        "missing key": evolve(tls, key=folder / "missing"),
        "another key": evolve(tls, key=other.key),
        "expired": certify(folder, "old", dates=("20200101000000Z", "20200102000000Z")),
        "to come": certify(folder, "new", dates=("21200101000000Z", "21200102000000Z")),
    }


@pytest.mark.parametrize(
    "what",
    [
        "missing",
        "folder",
        "empty",
        "binary",
        "swapped",
        "no key",
        "missing key",
        "another key",
        "expired",
        "to come",
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_files_that_are_wrong_are_one_clear_line(wrong, what, wording):
    """Which file, and what about it."""
    with pytest.raises(UsageError) as caught:
        check_tls(wrong[what])
    wording(caught.value, folder=wrong["missing"].certificate.parent, tls=wrong["missing"].key.parent)


def test_files_that_are_wrong_are_found_before_models_are_loaded(math, serve, wrong, journal):
    """Loading may take minutes."""
    with pytest.raises(UsageError, match="has expired"):
        serve("math", tls=wrong["expired"])
    assert journal == []
