"""The client for programs without asyncio, and its streams. It needs only grpcio and protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc

from modelwright.grpc_server.client.channel import DEFAULT_TARGET, Connection
from modelwright.grpc_server.client.errors import ended_without_end, server_error
from modelwright.grpc_server.client.messages import (
    AnswerSoFar,
    Messages,
    SamplingOptions,
    chat_request,
    choose_only,
    text_request,
    to_alias,
    to_change,
    to_generation,
    to_model,
    to_tokens,
    tokenize_request,
)
from modelwright.grpc_server.client.records import (
    Alias,
    Change,
    Generation,
    Model,
    Part,
    Tokens,
)
from modelwright.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc


class Client:
    """A connection to a Modelwright server. It connects on the first request; threads may share it.

    A method that takes `model` takes an address: `NAME`, `NAME@3` or `@ALIAS`. Without one it uses the server's
    only model. Every method raises `ServerError`, and `ValueError` for values that a message cannot hold: text with a
    lone surrogate, a number with too many digits, an unknown role.

    If the server has a separate admin port, `load_model`, `unload_model` and `set_alias` need a client of that port.

    Args:
        target: `HOST:PORT`; an IPv6 address has brackets: `[::1]:50051`.
        timeout: seconds that a request may take, for a stream until its end; None means no limit.
        token: the server's token.
        tls: whether to encrypt; the authorities that the system trusts are trusted.
        tls_ca: PEM file, or its bytes, with the certificates of the authorities to trust instead. Implies `tls`.
        insecure: whether the token may travel unencrypted to another machine.

    Raises:
        ValueError: the target is not `HOST:PORT`, the token would travel unencrypted, or `tls_ca` holds no certificate.
        OSError: its file cannot be read.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = 120.0,
        token: str | None = None,
        tls: bool = False,
        tls_ca: str | Path | bytes | None = None,
        insecure: bool = False,
    ) -> None:
        connection = Connection(target=target, token=token, tls=tls, tls_ca=tls_ca, insecure=insecure)
        self.target = target
        self.timeout = timeout
        self._metadata = connection.metadata
        self._channel = connection.open()
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._models: Any = model_pb2_grpc.ModelServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection and cancel running requests."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Requests to models

    def generate(self, prompt: str, *, model: str | None = None, **sampling: Unpack[SamplingOptions]) -> Generation:
        """Continue a prompt."""
        request = text_request(inference_pb2.GenerateRequest, self._address(model), prompt, sampling)
        response = self._ask(self._inference.Generate, request)
        return to_generation(response, response.text)

    def stream(self, prompt: str, *, model: str | None = None, **sampling: Unpack[SamplingOptions]) -> Stream:
        """Continue a prompt, piece by piece."""
        request = text_request(inference_pb2.GenerateStreamRequest, self._address(model), prompt, sampling)
        return Stream(self._call(self._inference.GenerateStream, request, self.timeout), self.target)

    def chat(self, messages: Messages, *, model: str | None = None, **sampling: Unpack[SamplingOptions]) -> Generation:
        """Answer a conversation.

        Args:
            messages: `{"role": "user", "content": "…"}` and so on, oldest first; a text is one turn of the user.
            model: an address.
            sampling: see `SamplingOptions`.
        """
        request = chat_request(inference_pb2.ChatRequest, self._address(model), messages, sampling)
        response = self._ask(self._inference.Chat, request)
        return to_generation(response, response.message.content, response.message.thinking)

    def chat_stream(
        self, messages: Messages, *, model: str | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Stream:
        """Answer a conversation, piece by piece."""
        request = chat_request(inference_pb2.ChatStreamRequest, self._address(model), messages, sampling)
        return Stream(self._call(self._inference.ChatStream, request, self.timeout), self.target)

    def tokenize(self, text: Messages, *, model: str | None = None) -> Tokens:
        """Tokenize a text as `generate` does, or messages as `chat` does."""
        return to_tokens(self._ask(self._inference.Tokenize, tokenize_request(self._address(model), text)))

    # Served models

    def models(self) -> list[Model]:
        """List the server's models by name, then version."""
        response = self._ask(self._models.ListModels, model_pb2.ListModelsRequest())
        return [to_model(model) for model in response.models]

    def only_model(self) -> Model:
        """Return the server's only model; if it has several, the error names them."""
        return choose_only(self.models(), self.target)

    def aliases(self) -> list[Alias]:
        """List the server's aliases, sorted."""
        response = self._ask(self._models.ListModels, model_pb2.ListModelsRequest())
        return [to_alias(route) for route in response.routes]

    def get_model(self, address: str) -> Model:
        """Describe the model at an address."""
        response = self._ask(self._models.GetModel, model_pb2.GetModelRequest(address=address))
        return to_model(response.model)

    def watch_models(self, *, timeout: float | None = None) -> Watch:
        """Yield all that the server has, then each change; without end, or for `timeout` seconds."""
        return Watch(self._call(self._models.WatchModels, model_pb2.WatchModelsRequest(), timeout), self.target)

    # Changes of the served models

    def load_model(self, address: str, *, engine: str | None = None, timeout: float | None = None) -> Model:
        """Load a model of the registry and serve it by its name. A model that is already loaded is not loaded again.

        Args:
            address: in the registry.
            engine: the name of the engine that runs it; None means the server's.
            timeout: seconds to wait instead of the client's timeout. The server finishes a loading that has begun.
        """
        request = model_pb2.LoadModelRequest(address=address, engine=engine)
        return to_model(self._ask(self._models.LoadModel, request, timeout=timeout).model)

    def unload_model(self, address: str) -> Model:
        """Stop serving a model by its name. It is freed after its last request, once no alias points to it."""
        response = self._ask(self._models.UnloadModel, model_pb2.UnloadModelRequest(address=address))
        return to_model(response.model)

    def set_alias(
        self, alias: str, target: str, *, etag: str | None = None, persist: bool = False, timeout: float | None = None
    ) -> Alias:
        """Switch an alias: the server loads and warms the target, swaps, and drains the old model.

        Args:
            alias: without the "@".
            target: the address of the new model.
            etag: the alias's etag as you read it, or "" if the alias did not exist. If it has changed since, the switch
                fails with ABORTED.
            persist: whether the registry's alias moves too.
            timeout: seconds to wait instead of the client's timeout. The server finishes a switch that has begun.
        """
        request = model_pb2.SetAliasRequest(alias=alias, target=target, etag=etag, persist=persist)
        response = self._ask(self._models.SetAlias, request, timeout=timeout)
        return to_alias(response.route)

    def _ask(self, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        try:
            return self._call(method, request, self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise server_error(error, self.target) from error

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        return method(request, timeout=timeout, metadata=self._metadata)

    def _address(self, model: str | None) -> str:
        return self.only_model().lasting_address if model is None else model


Item = TypeVar("Item")


class _Call(Iterator[Item], Generic[Item]):
    """A running call, which `close()` or leaving its `with` block cancels."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def close(self) -> None:
        """Cancel the request if it still runs."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stream(_Call[str]):
    """The pieces of an answer's text as they come; `served` and `prompt_tokens` are known at once.

    `thinking` is the model's thinking so far, `parts()` yields text and thinking as they come, and `generation()` waits
    for the whole answer. `close()`, or leaving its `with` block, cancels the request on the server.
    """

    def __init__(self, call: Any, target: str) -> None:
        super().__init__(call)
        self._target = target
        self._answer = AnswerSoFar(target)
        while not self._answer.started:
            self._answer.add(self._event())
        self.served = self._answer.served
        self.prompt_tokens = self._answer.prompt_tokens

    @property
    def thinking(self) -> str:
        """The model's thinking so far."""
        return self._answer.thinking

    def __next__(self) -> str:
        for part in self.parts():
            if part.text:
                return part.text
        raise StopIteration

    def parts(self) -> Iterator[Part]:
        """Yield the rest of the answer: pieces of its thinking and of its text.

        Raises:
            ServerError: the request failed.
        """
        while not self._answer.ended:
            part = self._answer.add(self._event())
            if part is not None:
                yield part

    def generation(self) -> Generation:
        """Wait for the end of the answer and return the whole of it.

        Raises:
            ServerError: the request failed.
        """
        for _ in self.parts():
            pass
        return self._answer.generation()

    def _event(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise server_error(error, self._target, answering=self._answer.started) from error
        except StopIteration:
            raise ended_without_end(self._target) from None


class Watch(_Call[Change]):
    """A `Snapshot` of all that a server has, then each change: a `Model`, one that is `Gone`, an `Alias` that moved.

    Another `Snapshot` replaces changes that were not read in time. End it with `close()` or a `with` block.
    """

    def __init__(self, call: Any, target: str) -> None:
        super().__init__(call)
        self._target = target

    def __next__(self) -> Change:
        while True:
            try:
                change = to_change(next(self._call))
            except grpc.RpcError as error:
                raise server_error(error, self._target) from error
            if change is not None:
                return change
