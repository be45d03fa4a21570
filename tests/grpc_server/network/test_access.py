"""Who may call what: tokens, and the port on which a server is changed."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelwright import Client, UsageError
from modelwright.grpc_server.client import ServerError
from modelwright.grpc_server.errors import RequestError
from modelwright.grpc_server.network.access import Access
from modelwright.grpc_server.network.listening import Address
from modelwright.grpc_server.server import ServerOptions
from modelwright.v1 import inference_pb2, inference_pb2_grpc

HERE = Address(host="127.0.0.1", port=0)


def every_call(client):
    """The methods of a client that read and ask, and those that change the server."""
    use = {
        "generate": lambda: client.generate("hi", model="math"),
        "stream": lambda: client.stream("hi", model="math").generation(),
        "chat": lambda: client.chat("hi", model="math"),
        "chat_stream": lambda: client.chat_stream("hi", model="math").generation(),
        "tokenize": lambda: client.tokenize("hi", model="math"),
        "models": client.models,
        "get_model": lambda: client.get_model("math"),
        "watch_models": lambda: next(client.watch_models()),
    }
    admin = {
        "load_model": lambda: client.load_model("math"),
        "set_alias": lambda: client.set_alias("assistant", "math"),
        "unload_model": lambda: client.unload_model("math"),
    }
    return use, admin


def code_of(call):
    try:
        call()
    except ServerError as error:
        assert error.reason == error.code or error.code not in ("UNAUTHENTICATED", "PERMISSION_DENIED")  # noqa: PT017
        return error.code
    return "OK"


@pytest.fixture
def math(shelf):
    shelf.add("math")
    return shelf


@pytest.mark.parametrize("token", [None, "wrong", "secreT", "secret2", "s"])
def test_without_the_token_nothing_is_answered(math, serve, connect, token, wording):
    """For every call, also of what does not exist; and the token is in no message."""
    running = serve("math", token="secret")
    client = connect(running, token=token)
    use, admin = every_call(client)
    assert {code_of(call) for call in {**use, **admin}.values()} == {"UNAUTHENTICATED"}
    with pytest.raises(ServerError, match="token") as caught:
        client.models()
    assert "secret" not in caught.value.message.replace("secreT", "")
    wording(caught.value.message)
    with pytest.raises(grpc.RpcError) as caught:
        client._channel.unary_unary("/modelwright.v1.InferenceService/Nothing")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_with_the_token_everything_is_answered(math, serve, connect):
    """One token opens all where there is no other."""
    use, admin = every_call(connect(serve("math", token="secret"), token="secret"))
    assert {code_of(call) for call in use.values()} == {"OK"}
    assert {code_of(call) for call in admin.values()} == {"OK"}


def test_the_administrators_token_is_wanted_for_changes_and_opens_all_else(math, serve, connect):
    """The users' one does not reach so far, and the error says so."""
    running = serve("math", token="user", admin_token="admin")
    use, admin = every_call(connect(running, token="user"))
    assert {code_of(call) for call in use.values()} == {"OK"}
    assert {code_of(call) for call in admin.values()} == {"PERMISSION_DENIED"}
    use, admin = every_call(connect(running, token="admin"))
    assert {code_of(call) for call in use.values()} == {"OK"}
    assert {code_of(call) for call in admin.values()} == {"OK"}


def test_an_administrators_token_alone_leaves_asking_open(math, serve, connect):
    """Anyone asks; only who has it changes."""
    use, admin = every_call(connect(serve("math", admin_token="admin")))
    assert {code_of(call) for call in use.values()} == {"OK"}
    assert {code_of(call) for call in admin.values()} == {"UNAUTHENTICATED"}


def test_the_administrators_port_alone_takes_changes(math, serve, connect):
    """It answers nothing else but what is served; the other port says where to go."""
    running = serve("math", admin=HERE)
    use, admin = every_call(connect(running))
    assert {code_of(call) for call in use.values()} == {"OK"}
    for call in admin.values():
        with pytest.raises(ServerError, match="use the admin port") as caught:
            call()
        assert caught.value.code == "PERMISSION_DENIED"
    client = connect(running, running.bound.admin)
    use, admin = every_call(client)
    assert {name: code_of(call) for name, call in use.items()} == {
        **dict.fromkeys(("generate", "stream", "chat", "chat_stream", "tokenize"), "UNIMPLEMENTED"),
        **dict.fromkeys(("models", "get_model", "watch_models"), "OK"),
    }
    assert {code_of(call) for call in admin.values()} == {"OK"}


def test_beyond_this_machine_changes_need_a_port_of_their_own():
    """Other machines cannot switch models, with any token."""
    options = ServerOptions(listen=Address(host="0.0.0.0", port=0), insecure=True, token="user", admin_token="admin")
    access = options.grpc_access()
    access.check("Bearer user", "use")
    with pytest.raises(RequestError, match="--admin"):
        access.check("Bearer admin", "admin")
    options.admin_access().check("Bearer admin", "admin")


def test_the_health_is_open_and_says_no_more(math, serve, connect):
    """Probes have no token."""
    client = connect(serve("math", token="secret"))
    stub = health_pb2_grpc.HealthStub(client._channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "secret")],
        [("authorization", "Basic secret")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", "Bearer secret secret")],
        [("authorization", "Bearer secret"), ("authorization", "Bearer secret")],
        [("Authorization-bin", b"Bearer secret")],
        [("x-token", "secret")],
    ],
)
def test_a_token_has_one_form(math, serve, connect, metadata):
    """Anything else is none."""
    stub = inference_pb2_grpc.InferenceServiceStub(connect(serve("math", token="secret"))._channel)
    metadata = [(key.lower(), value) for key, value in metadata]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(inference_pb2.GenerateRequest(model="math", prompt="x"), timeout=10, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_schemes_name_has_no_case():
    """As HTTP says."""
    Access(token="secret").check("bearer secret", "use")
    Access(token="secret").check("BEARER   secret ", "use")
    with pytest.raises(RequestError):
        Access(token="secret").check("bearer sécret", "use")


@pytest.mark.parametrize("flag", ["listen", "http", "admin"])
def test_other_machines_are_kept_out_of_every_port_unless_it_is_encrypted_or_the_user_insists(flag, tls, wording):
    """Also with a token: it would travel in the open."""
    far = {flag: Address(host="0.0.0.0", port=0), "token": "user", "admin_token": "admin"}
    with pytest.raises(UsageError) as caught:
        ServerOptions(**far).check()
    assert f"--{flag} 0.0.0.0:0" in str(caught.value)
    wording(caught.value)
    ServerOptions(**far, tls=tls).check()
    ServerOptions(**far, insecure=True).check()


def test_an_administrators_port_that_others_reach_needs_a_token(tls, wording):
    """Encrypting does not say who calls."""
    options = {"admin": Address(host="0.0.0.0", port=0), "tls": tls}
    for others in ({}, {"token": "user"}):
        with pytest.raises(UsageError) as caught:
            ServerOptions(**options, **others).check()
        wording(caught.value)
    ServerOptions(**options, admin_token="admin").check()


@pytest.mark.parametrize(
    ("options", "takes"),
    [
        ({}, True),
        ({"admin": HERE}, False),
        ({"admin": HERE, "admin_token": "a"}, True),
        ({"http": Address(host="0.0.0.0", port=0)}, False),
        ({"http": Address(host="0.0.0.0", port=0), "admin_token": "a"}, True),
    ],
)
def test_http_takes_changes_on_this_machine_or_with_the_administrators_token(options, takes):
    """It has one port for everything."""
    access = ServerOptions(**{"http": HERE, **options}).http_access()
    assert (access.no_admin is None) == takes


def test_tokens_are_not_in_what_is_printed_of_options():
    """A traceback or a log line gives nothing away."""
    options = ServerOptions(token="hidden-one", admin_token="hidden-two")
    assert "hidden" not in f"{options!r} {options.grpc_access()!r}"


@pytest.mark.parametrize("token", ["", "a b", "a\n", "é"])
def test_a_client_refuses_an_invalid_token(token, wording):
    """Before anything is sent."""
    with pytest.raises(ValueError, match="token") as caught:
        Client("127.0.0.1:1", token=token)
    wording(caught.value)


def test_a_client_sends_no_token_unencrypted_to_another_machine(wording):
    """Unless the user insists."""
    with pytest.raises(ValueError, match="unencrypted") as caught:
        Client("models.example:50051", token="secret")
    wording(caught.value)
    Client("models.example:50051", token="secret", insecure=True).close()
    Client("models.example:50051", token="secret", tls=True).close()
    Client("localhost:50051", token="secret").close()
