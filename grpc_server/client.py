"""The client. It needs grpcio and protobuf, and nothing of what runs models.

Example:
    from modelwright import Client

    with Client("127.0.0.1:50051") as client:
        print(client.generate("2 + 3 =", model="@assistant", max_tokens=16).text)
        for piece in client.chat_stream("How much is 2 + 3?", model="@assistant"):
            print(piece, end="", flush=True)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import grpc

from modelwright.grpc_server.client_records import (
    Alias,
    Generation,
    Model,
    Served,
    Tokens,
    Usage,
    to_alias,
    to_finish,
    to_generation,
    to_model,
    to_served,
    to_usage,
)
from modelwright.v1 import common_pb2, inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

__all__ = [
    "Alias",
    "Client",
    "Generation",
    "Model",
    "SamplingOptions",
    "Served",
    "ServerError",
    "Stream",
    "Tokens",
    "Usage",
]

DEFAULT_TARGET = "127.0.0.1:50051"

# Tokenizing a whole context answers with more than gRPC's 4 MiB.
_MAX_RESPONSE_BYTES = 64 * 1024 * 1024

Messages = str | Iterable[Mapping[str, str]]


class ServerError(Exception):
    """A request that got an error; `__cause__` is the `grpc.RpcError`.

    Attributes:
        code: the name of the gRPC status code, such as "NOT_FOUND".
        message: one clear line.
        reason: which of the proto's ErrorReason it is, such as "MODEL_NOT_FOUND". None if the error is not the
            server's, or the package googleapis-common-protos is not installed.
        metadata: the facts of the error, such as {"field": "prompt"}; empty where `reason` is None.
        retry_after: seconds after which trying again may help, where the server says so.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after


class SamplingOptions(TypedDict, total=False):
    """How the next tokens are chosen; what is left out takes the server's default.

    Attributes:
        max_tokens: the most tokens to generate.
        temperature: 0 takes the likeliest token.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum.
        top_k: sample from this many likeliest tokens; 0 is no limit.
        seed: makes sampling repeatable.
        stop: a text, or several, that end the answer.
        logprobs: whether the answer carries each token's log-probability.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str]
    logprobs: bool


class Stream(Iterator[str]):
    """The pieces of an answer as they come; `served` and `prompt_tokens` are known at once.

    When it is exhausted, `generation()` is the whole answer. Leave early with `close()` or by a `with` block, which
    cancels the request on the server.
    """

    def __init__(self, call: Any, target: str) -> None:
        self._call = call
        self._target = target
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._end: inference_pb2.StreamEnd | None = None
        self._answering = False
        start = self._event().start
        self._answering = True
        self.served = to_served(start.served)
        self.prompt_tokens: int = start.prompt_tokens

    def __next__(self) -> str:
        while self._end is None:
            event = self._event()
            if event.HasField("end"):
                self._end = event.end
                break
            self._text.append(event.delta.text)
            self._token_ids += event.delta.token_ids
            self._logprobs += event.delta.logprobs
            if event.delta.text:
                text: str = event.delta.text
                return text
        raise StopIteration

    def generation(self) -> Generation:
        """The whole answer; what has not come yet is waited for.

        Raises:
            ServerError: the request failed.
        """
        for _ in self:
            pass
        assert self._end is not None
        return Generation(
            text="".join(self._text),
            finish=to_finish(self._end.finish_reason),
            usage=to_usage(self._end.usage),
            served=self.served,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
        )

    def close(self) -> None:
        """Cancel the request, if it still runs."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _event(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise _server_error(error, self._target, answering=self._answering) from error
        except StopIteration:
            message = f"the server at {self._target} ended a stream without its last event"
            raise ServerError("INTERNAL", message) from None


class Client:
    """A connection to a Modelwright server. It connects on the first request; threads may share it.

    A method that takes `model` takes an address: `NAME`, `NAME@3` or `@ALIAS`. Without one it asks the only model that
    the server has. Every method raises `ServerError`, and `ValueError` for what a message cannot hold: text with a lone
    surrogate, a number with too many digits, a role that does not exist.

    Args:
        target: `HOST:PORT`.
        timeout: seconds that a request may take, a stream to its end; None waits for ever.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, timeout: float | None = 120.0) -> None:
        self.target = target
        self.timeout = timeout
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES)]
        if _is_loopback(target):
            # A proxy of the environment has no way to this machine.
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.insecure_channel(target, options=options)
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._models: Any = model_pb2_grpc.ModelServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """End the connection; requests that run are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def generate(self, prompt: str, *, model: str | None = None, **sampling: Unpack[SamplingOptions]) -> Generation:
        """Continue a prompt."""
        request = inference_pb2.GenerateRequest(model=self._address(model), prompt=prompt, **_asked(sampling))
        response = self._ask(self._inference.Generate, request)
        return to_generation(response, response.text)

    def stream(self, prompt: str, *, model: str | None = None, **sampling: Unpack[SamplingOptions]) -> Stream:
        """Continue a prompt, piece by piece."""
        request = inference_pb2.GenerateStreamRequest(model=self._address(model), prompt=prompt, **_asked(sampling))
        return Stream(self._inference.GenerateStream(request, timeout=self.timeout), self.target)

    def chat(self, messages: Messages, *, model: str | None = None, **sampling: Unpack[SamplingOptions]) -> Generation:
        """Answer a conversation.

        Args:
            messages: `{"role": "user", "content": "…"}` and so on, oldest first; a text is one turn of the user.
            model: an address.
            sampling: see `SamplingOptions`.
        """
        request = inference_pb2.ChatRequest(
            model=self._address(model), messages=_messages(messages), **_asked(sampling)
        )
        response = self._ask(self._inference.Chat, request)
        return to_generation(response, response.message.content)

    def chat_stream(
        self, messages: Messages, *, model: str | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Stream:
        """Answer a conversation, piece by piece."""
        request = inference_pb2.ChatStreamRequest(
            model=self._address(model), messages=_messages(messages), **_asked(sampling)
        )
        return Stream(self._inference.ChatStream(request, timeout=self.timeout), self.target)

    def tokenize(self, text: Messages, *, model: str | None = None) -> Tokens:
        """The tokens of a text as `generate` would see it, or of messages as `chat` would."""
        request = inference_pb2.TokenizeRequest(model=self._address(model))
        if isinstance(text, str):
            request.text = text
        else:
            request.conversation.messages.extend(_messages(text))
        response = self._ask(self._inference.Tokenize, request)
        return Tokens(
            token_ids=tuple(response.token_ids),
            context_length=response.context_length,
            served=to_served(response.served),
        )

    def models(self) -> list[Model]:
        """The models that the server has, by name, then version."""
        response = self._ask(self._models.ListModels, model_pb2.ListModelsRequest())
        return [to_model(model) for model in response.models]

    def only_model(self) -> Model:
        """The model that the server has, where it has only one; otherwise the error names the choices."""
        served = [model for model in self.models() if model.state == "ready"]
        if len(served) == 1:
            return served[0]
        choices = [f"@{alias}" for model in served for alias in model.aliases] + [model.address for model in served]
        message = f"the server at {self.target} has several models: name one of {', '.join(choices)}"
        raise ServerError("INVALID_ARGUMENT", message if served else f"the server at {self.target} has no model")

    def aliases(self) -> list[Alias]:
        """The aliases that the server routes, sorted."""
        response = self._ask(self._models.ListModels, model_pb2.ListModelsRequest())
        return [to_alias(route) for route in response.routes]

    def set_alias(
        self, alias: str, target: str, *, etag: str | None = None, persist: bool = False, timeout: float | None = None
    ) -> Alias:
        """Switch an alias: the server loads and warms the target, swaps, and drains the old model.

        Args:
            alias: without the "@".
            target: the address of the model that it shall point to.
            etag: of the alias as you read it: the switch fails with ABORTED if it has moved since; "" says that there
                was none.
            persist: whether the registry's alias moves too.
            timeout: seconds to wait, where loading takes longer than the client's requests; the server finishes a
                switch that has begun.
        """
        request = model_pb2.SetAliasRequest(alias=alias, target=target, etag=etag, persist=persist)
        response = self._ask(self._models.SetAlias, request, timeout=timeout)
        return to_alias(response.route)

    def _ask(self, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        try:
            return method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise _server_error(error, self.target) from error

    def _address(self, model: str | None) -> str:
        return self.only_model().lasting_address if model is None else model


def _asked(sampling: SamplingOptions) -> dict[str, Any]:
    values: dict[str, Any] = {key: value for key, value in sampling.items() if value is not None}
    logprobs = values.pop("logprobs", None)
    stop = values.pop("stop", ())
    message = common_pb2.Sampling(stop=[stop] if isinstance(stop, str) else stop, **values)
    return {"sampling": message, "logprobs": logprobs}


def _messages(messages: Messages) -> list[common_pb2.Message]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return [_message(message) for message in messages]


def _message(message: Mapping[str, str]) -> common_pb2.Message:
    fields = dict(message)
    role = fields.pop("role", "")
    try:
        return common_pb2.Message(role=common_pb2.Role.Value(f"ROLE_{role.upper()}"), **fields)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{message!r} is no message: {error}") from error


def _is_loopback(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _server_error(error: Any, target: str, *, answering: bool = False) -> ServerError:
    code = error.code().name
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if details is None and code == "UNAVAILABLE" and answering:
        return ServerError(code, f"the server at {target} ended the answer before its end ({error.details()})")
    if details is None and code == "UNAVAILABLE":
        return ServerError(code, f"no server answers at {target} ({error.details()})")
    if details is None and code == "DEADLINE_EXCEEDED":
        return ServerError(code, f"the server at {target} did not answer in time: allow more with timeout")
    reason, metadata, retry_after = _details(details) if details is not None else (None, {}, None)
    return ServerError(code, error.details() or code, reason=reason, metadata=metadata, retry_after=retry_after)


def _details(data: bytes) -> tuple[str | None, dict[str, str], float | None]:
    try:
        from google.rpc import error_details_pb2, status_pb2
    except ImportError:
        # The classes of google.rpc come with the extra `serve`; without them code and message say what there is.
        return None, {}, None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status_pb2.Status.FromString(data).details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return info.reason or None, dict(info.metadata), retry_after
