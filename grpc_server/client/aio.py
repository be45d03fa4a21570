"""The client for asyncio and its streams, with the methods and records of `Client`."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc
import grpc.aio

from modelwright.grpc_server.client.channel import DEFAULT_TARGET, Connection
from modelwright.grpc_server.client.errors import ServerError, ended_without_end, server_error
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
    Served,
    Tokens,
)
from modelwright.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc


class AsyncClient:
    """A connection to a Modelwright server, for one event loop. It connects on the first request.

    Methods, arguments and errors are those of `Client`. Await every method except the streams.

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
        self._connection = Connection(target=target, token=token, tls=tls, tls_ca=tls_ca, insecure=insecure)
        self.target = target
        self.timeout = timeout
        self._metadata = self._connection.metadata

    # A channel belongs to the event loop in which it is made, which is that of the first request.

    @functools.cached_property
    def _channel(self) -> Any:
        return self._connection.open(grpc.aio)

    @functools.cached_property
    def _inference(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @functools.cached_property
    def _models(self) -> Any:
        return model_pb2_grpc.ModelServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Close the connection and cancel running requests."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # Requests to models

    async def generate(
        self, prompt: str, *, model: str | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Generation:
        """Continue a prompt."""
        request = text_request(inference_pb2.GenerateRequest, await self._address(model), prompt, sampling)
        response = await self._ask(self._inference.Generate, request)
        return to_generation(response, response.text)

    def stream(self, prompt: str, *, model: str | None = None, **sampling: Unpack[SamplingOptions]) -> AsyncStream:
        """Continue a prompt, piece by piece. Leaving the `async with` block cancels the request."""

        async def begin() -> Any:
            request = text_request(inference_pb2.GenerateStreamRequest, await self._address(model), prompt, sampling)
            return self._call(self._inference.GenerateStream, request, self.timeout)

        return AsyncStream(begin, self.target)

    async def chat(
        self, messages: Messages, *, model: str | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Generation:
        """Answer a conversation; see `Client.chat`."""
        request = chat_request(inference_pb2.ChatRequest, await self._address(model), messages, sampling)
        response = await self._ask(self._inference.Chat, request)
        return to_generation(response, response.message.content, response.message.thinking)

    def chat_stream(
        self, messages: Messages, *, model: str | None = None, **sampling: Unpack[SamplingOptions]
    ) -> AsyncStream:
        """Answer a conversation, piece by piece. Leaving the `async with` block cancels the request."""

        async def begin() -> Any:
            request = chat_request(inference_pb2.ChatStreamRequest, await self._address(model), messages, sampling)
            return self._call(self._inference.ChatStream, request, self.timeout)

        return AsyncStream(begin, self.target)

    async def tokenize(self, text: Messages, *, model: str | None = None) -> Tokens:
        """Tokenize a text as `generate` does, or messages as `chat` does."""
        request = tokenize_request(await self._address(model), text)
        return to_tokens(await self._ask(self._inference.Tokenize, request))

    # Served models

    async def models(self) -> list[Model]:
        """List the server's models by name, then version."""
        response = await self._ask(self._models.ListModels, model_pb2.ListModelsRequest())
        return [to_model(model) for model in response.models]

    async def only_model(self) -> Model:
        """Return the server's only model; if it has several, the error names them."""
        return choose_only(await self.models(), self.target)

    async def aliases(self) -> list[Alias]:
        """List the server's aliases, sorted."""
        response = await self._ask(self._models.ListModels, model_pb2.ListModelsRequest())
        return [to_alias(route) for route in response.routes]

    async def get_model(self, address: str) -> Model:
        """Describe the model at an address."""
        response = await self._ask(self._models.GetModel, model_pb2.GetModelRequest(address=address))
        return to_model(response.model)

    def watch_models(self, *, timeout: float | None = None) -> AsyncWatch:
        """Yield all that the server has, then each change; without end, or for `timeout` seconds."""

        async def begin() -> Any:
            return self._call(self._models.WatchModels, model_pb2.WatchModelsRequest(), timeout)

        return AsyncWatch(begin, self.target)

    # Changes of the served models

    async def load_model(
        self,
        address: str,
        *,
        engine: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as Client has it
    ) -> Model:
        """Load a model of the registry and serve it by its name; see `Client.load_model`."""
        request = model_pb2.LoadModelRequest(address=address, engine=engine)
        return to_model((await self._ask(self._models.LoadModel, request, seconds=timeout)).model)

    async def unload_model(self, address: str) -> Model:
        """Stop serving a model by its name. It is freed after its last request, once no alias points to it."""
        response = await self._ask(self._models.UnloadModel, model_pb2.UnloadModelRequest(address=address))
        return to_model(response.model)

    async def set_alias(
        self,
        alias: str,
        target: str,
        *,
        etag: str | None = None,
        persist: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - as Client has it
    ) -> Alias:
        """Switch an alias: the server loads and warms the target, swaps, and drains the old model.

        See `Client.set_alias`.
        """
        request = model_pb2.SetAliasRequest(alias=alias, target=target, etag=etag, persist=persist)
        response = await self._ask(self._models.SetAlias, request, seconds=timeout)
        return to_alias(response.route)

    async def _ask(self, method: Any, request: Any, *, seconds: float | None = None) -> Any:
        try:
            return await self._call(method, request, self.timeout if seconds is None else seconds)
        except grpc.RpcError as error:
            raise server_error(error, self.target) from error

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        return method(request, timeout=timeout, metadata=self._metadata)

    async def _address(self, model: str | None) -> str:
        return (await self.only_model()).lasting_address if model is None else model


Item = TypeVar("Item")
Begin = Callable[[], Awaitable[Any]]


class _AsyncCall(AsyncIterator[Item], Generic[Item]):
    """A call that starts with its `async with` block or the first read. Leaving the block cancels it."""

    def __init__(self, begin: Begin, target: str) -> None:
        self._begin = begin
        self._target = target
        self._call: Any = None

    async def _event(self, *, answering: bool = False) -> Any:
        try:
            if self._call is None:
                self._call = await self._begin()
            event = await self._call.read()
        except grpc.RpcError as error:
            raise server_error(error, self._target, answering=answering) from error
        if event is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise self._ended()
        return event

    def _ended(self) -> ServerError:
        return ended_without_end(self._target)

    async def close(self) -> None:
        """Cancel the request if it still runs."""
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStream(_AsyncCall[str]):
    """The pieces of an answer's text as they come.

    With `async with client.chat_stream(…) as stream:`, `served` and `prompt_tokens` are known in the block, and leaving
    it cancels the request on the server. Reading it directly with `async for` also works. `thinking` is the model's
    thinking so far, `parts()` yields text and thinking as they come, and `await stream.generation()` is the whole
    answer.
    """

    def __init__(self, begin: Begin, target: str) -> None:
        super().__init__(begin, target)
        self._answer = AnswerSoFar(target)

    @property
    def served(self) -> Served:
        """The model that answers; known once the stream has begun."""
        return self._answer.served

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens in the prompt, including the chat template; known once the stream has begun."""
        return self._answer.prompt_tokens

    @property
    def thinking(self) -> str:
        """The model's thinking so far."""
        return self._answer.thinking

    async def __aenter__(self) -> Self:
        try:
            while not self._answer.started:
                self._answer.add(await self._event())
        except BaseException:
            await self.close()
            raise
        return self

    async def __anext__(self) -> str:
        while not self._answer.ended:
            part = await self._next()
            if part is not None and part.text:
                return part.text
        raise StopAsyncIteration

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the rest of the answer: pieces of its thinking and of its text.

        Raises:
            ServerError: the request failed.
        """
        while not self._answer.ended:
            part = await self._next()
            if part is not None:
                yield part

    async def generation(self) -> Generation:
        """Wait for the end of the answer and return the whole of it.

        Raises:
            ServerError: the request failed.
        """
        while not self._answer.ended:
            await self._next()
        return self._answer.generation()

    async def _next(self) -> Part | None:
        return self._answer.add(await self._event(answering=self._answer.started))


class AsyncWatch(_AsyncCall[Change]):
    """A `Snapshot` of all that a server has, then each change; see `Watch`."""

    async def __anext__(self) -> Change:
        while True:
            change = to_change(await self._event())
            if change is not None:
                return change
