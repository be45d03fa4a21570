"""The aliases over HTTP, and who may come to what."""

import http.client
import ssl
import subprocess

import openai
import pytest

from modelwright import ModelwrightError, UsageError
from modelwright.grpc_server.network.access import Access
from modelwright.grpc_server.network.tls import Tls

ACCESS = Access(token="user-token", admin_token="admin-token")


@pytest.fixture
def math(shelf):
    """Two versions of math; @assistant points to the first."""
    shelf.add("math")
    shelf.add("math")
    shelf.point("assistant", "math", 1)
    return shelf


@pytest.fixture(scope="module")
def unguarded(serve_switchable):
    """A server that asks for no tokens."""
    return serve_switchable()


@pytest.fixture(scope="module")
def guarded(serve_switchable):
    """A server that asks for tokens."""
    return serve_switchable(access=ACCESS)


def bearer(token):
    return f"Bearer {token}"


# Aliases


def test_an_alias_is_read_and_switched(math, serve_http):
    """ETag guards it; the registry's alias stays where it was unless persist is asked for."""
    web = serve_http("@assistant")
    status, headers, answer = web.ask("GET", "/admin/aliases/assistant")
    assert (status, answer["name"], answer["version"], answer["generation"]) == (200, "math", 1, 1)
    first = headers["etag"]
    assert first == f'"{answer["etag"]}"'
    body = {"target": "math@2"}
    status, headers, answer = web.ask("PUT", "/admin/aliases/assistant", body, if_match=first)
    assert (status, answer["version"], answer["changed"], answer["persisted"]) == (200, 2, True, False)
    assert headers["etag"] != first
    assert math.registry.resolve("assistant").version == 1
    assert web.openai().completions.create(model="assistant", prompt="x").choices[0].text == "math@2:x"
    status, headers, answer = web.ask("PUT", "/admin/aliases/assistant", {"target": "math@1"}, if_match=first)
    assert (status, answer["error"]["code"]) == (412, "alias_conflict")
    assert headers["etag"] != first
    assert web.ask("PUT", "/admin/aliases/assistant", {**body, "persist": True})[2]["persisted"] is True
    assert math.registry.resolve("assistant").version == 2
    assert [alias["alias"] for alias in web.ask("GET", "/admin/aliases")[2]["data"]] == ["assistant"]


def test_a_new_alias_is_made_only_where_there_is_none(math, serve_http):
    """If-None-Match: * says that it must be new, If-Match: * that it must not."""
    web = serve_http("@assistant")
    body = {"target": "math@2"}
    assert web.ask("PUT", "/admin/aliases/next", body, if_match="*")[0] == 412
    assert web.ask("PUT", "/admin/aliases/next", body, if_none_match="*")[0] == 200
    assert web.ask("PUT", "/admin/aliases/next", body, if_none_match="*")[0] == 412
    assert web.ask("PUT", "/admin/aliases/next", body, if_match="*")[2]["changed"] is False


@pytest.mark.parametrize(
    ("alias", "body", "headers", "status"),
    [
        ("assistant", {}, {}, 400),
        ("assistant", {"target": ""}, {}, 400),
        ("assistant", {"target": 3}, {}, 400),
        ("assistant", {"target": "Math"}, {}, 400),
        ("assistant", {"target": "math@9"}, {}, 404),
        ("assistant", {"target": "nobody"}, {}, 404),
        ("assistant", {"target": "math@2", "persist": "yes"}, {}, 400),
        ("assistant", {"target": "math@2", "persits": True}, {}, 400),
        ("assistant", {"target": "math@2"}, {"if-match": "1-abc"}, 400),
        ("assistant", {"target": "math@2"}, {"if-match": 'W/"1"'}, 400),
        ("assistant", {"target": "math@2", "etag": "1"}, {"if-match": '"1"'}, 400),
        ("assistant", {"target": "math@2", "etag": "9-x"}, {}, 412),
        ("Upper", {"target": "math@2"}, {}, 400),
        ("a%2Fb", {"target": "math@2"}, {}, 400),
        ("7", {"target": "math@2"}, {}, 400),
        ("..%2F..%2Fetc", {"target": "math@2"}, {}, 400),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_switch_that_cannot_be_is_refused_and_changes_nothing(unguarded, alias, body, headers, status, wording):
    """With one line that says why."""
    web = unguarded
    got, _, answer = web.ask("PUT", f"/admin/aliases/{alias}", body, **headers)
    assert got == status, answer
    (alias,) = web.ask("GET", "/admin/aliases")[2]["data"]
    wording(answer["error"]["message"], etag=alias["etag"])
    assert [(a["alias"], a["version"]) for a in web.ask("GET", "/admin/aliases")[2]["data"]] == [("assistant", 1)]


def test_a_model_that_cannot_be_loaded_leaves_the_alias_where_it_was(math, serve_http):
    """409: the state of things, not the request, is in the way."""
    math.add("broken", broken=True)
    web = serve_http("@assistant")
    status, _, answer = web.ask("PUT", "/admin/aliases/assistant", {"target": "broken"})
    assert (status, answer["error"]["code"]) == (409, "model_not_loadable")
    assert web.ask("GET", "/admin/aliases/assistant")[2]["version"] == 1
    assert web.ask("GET", "/admin/aliases/nobody")[0] == 404


# Access


@pytest.mark.parametrize(
    ("authorization", "use", "admin"),
    [
        (None, 401, 401),
        (bearer("wrong"), 401, 401),
        ("user-token", 401, 401),
        ("Basic dXNlcjp0b2tlbg==", 401, 401),
        ("Bearer", 401, 401),
        (bearer("user-token") + "x", 401, 401),
        (bearer("user-token"), 200, 403),
        ("bearer user-token", 200, 403),
        (bearer("admin-token"), 200, 200),
    ],
)
def test_tokens_open_what_they_are_for(guarded, authorization, use, admin):
    """401 with WWW-Authenticate, 403 for a user at the administrator's door; health is open to all."""
    body = {"model": "assistant", "prompt": "x"}
    for method, path, sent, expected in [
        ("GET", "/v1/models", None, use),
        ("POST", "/v1/completions", body, use),
        ("GET", "/admin/aliases", None, admin),
        ("PUT", "/admin/aliases/assistant", {"target": "math@2"}, admin),
        ("GET", "/health", None, 200),
    ]:
        status, headers, answer = guarded.ask(method, path, sent, authorization=authorization)
        assert status == expected, (method, path, answer)
        assert headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert "token" not in str(answer).lower() or "-token" not in str(answer), "a token was shown"


def test_the_client_raises_authentication_and_permission_errors(math, serve_http):
    """The openai client sends its api_key as the bearer token."""
    web = serve_http("@assistant", access=ACCESS)
    assert web.openai(api_key="user-token").models.list().data
    with pytest.raises(openai.AuthenticationError) as caught:
        web.openai(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        web.openai(api_key="user-token", base_url=f"{web.url}/admin").get("/aliases", cast_to=object)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("", 403),
        ("10.0.0.1", 403),
    ],
)
def test_without_tokens_the_aliases_are_for_this_machine_only(unguarded, host, status):
    """A web page could make a browser here call under the page's name."""
    assert unguarded.ask("PUT", "/admin/aliases/assistant", {"target": "math@1"}, host=host)[0] == status
    assert unguarded.ask("GET", "/v1/models", host=host)[0] == 200


def test_a_port_that_takes_no_changes_says_why(math, serve_http):
    """For every caller."""
    web = serve_http("@assistant", access=Access(admin_token="admin-token", no_admin="changes are taken elsewhere"))
    authorization = bearer("admin-token")
    answer = web.ask("PUT", "/admin/aliases/assistant", {"target": "math@2"}, authorization=authorization)
    assert (answer[0], answer[2]["error"]["message"]) == (403, "changes are taken elsewhere")


# Listening


def test_a_port_in_use_is_one_clear_line(math, serve_http, wording):
    """Known when it is bound, before models are loaded."""
    from modelwright.grpc_server.network.listening import Address, bind_socket

    web = serve_http("@assistant")
    with pytest.raises(ModelwrightError) as caught:
        bind_socket(Address(host="127.0.0.1", port=web.port), "--http")
    wording(caught.value, port=web.port)
    with pytest.raises(ModelwrightError, match=r"cannot listen on nowhere\.invalid:80"):
        bind_socket(Address(host="nowhere.invalid", port=80), "--http")


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed, which makes the certificate")
    return Tls(certificate=certificate, key=key)


def test_tls_encrypts_and_proves_who_answers(math, serve_http, tls):
    """A client that trusts the certificate is answered; plain HTTP is not."""
    web = serve_http("@assistant", tls=tls)
    context = ssl.create_default_context(cafile=tls.certificate)
    connection = http.client.HTTPSConnection("127.0.0.1", web.port, context=context, timeout=10)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 200
    connection.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        web.ask("GET", "/health")


def test_wrong_files_of_tls_are_one_clear_line(math, serve_http, tls, tmp_path):
    """Known before anything is loaded."""
    (tmp_path / "no.pem").write_text("no certificate")
    for files in (
        Tls(certificate=tmp_path / "no.pem", key=tls.key),
        Tls(certificate=tls.certificate, key=tmp_path / "absent.pem"),
        Tls(certificate=tls.key, key=tls.certificate),
    ):
        with pytest.raises(UsageError, match="--tls-"):
            serve_http("@assistant", tls=files)


def test_the_server_does_not_tell_its_version(math, serve_http):
    """And trusts no proxy's word of who calls."""
    headers = serve_http("@assistant").ask("GET", "/health", x_forwarded_for="10.0.0.1")[1]
    assert headers["server"] == "modelwright"
