"""Requests while they run: clients that disconnect, a server that shuts down, and streamed answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelwright.grpc_server.errors import shutting_down
from modelwright.grpc_server.gateway.errors import error_object, http_error

Result = TypeVar("Result")

# Seconds in which a stream that is cut can say so to a client that does not read.
_PARTING = 1.0


# Seconds in which a client has to read what it is sent; after that its place goes to another.
READING_PATIENCE = 60.0


class ClientGoneError(Exception):
    """The client disconnected or stopped reading before its answer was complete, so nobody would read an error."""


class ServerState:
    """The state of the server: serving, draining, or cutting the requests that still run.

    Attributes:
        draining: whether new requests are refused.
        cut: set when running requests must end.
        idle: set while no request runs.
    """

    def __init__(self) -> None:
        self.draining = False
        self.cut = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._running = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request while it runs."""
        self._running += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self.idle.set()

    async def ended(self, seconds: float) -> bool:
        """Wait with a time limit until no request runs; returns whether none runs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.idle.wait()
        return self.idle.is_set()

    async def until_cut(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do work until it ends or the server cuts it.

        Raises:
            RequestError: the server cut it (UNAVAILABLE); the work was cancelled.
        """
        return await _first(work, {asyncio.ensure_future(self.cut.wait()): shutting_down()})


async def attend(receive: Receive, state: ServerState, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work of a request whose body has been read, as long as its client waits.

    Raises:
        ClientGoneError: the client disconnected; the work was cancelled.
        RequestError: the server shut down first (UNAVAILABLE); the work was cancelled.
    """
    left, cut = asyncio.ensure_future(_left(receive)), asyncio.ensure_future(state.cut.wait())
    return await _first(work, {left: ClientGoneError(), cut: shutting_down()})


async def _first(work: Coroutine[Any, Any, Result], ends: Mapping[asyncio.Future[Any], Exception]) -> Result:
    """Return the work's result, or raise the error of the first of `ends` that came before it."""
    doing = asyncio.ensure_future(work)
    tasks: list[asyncio.Future[Any]] = [doing, *ends]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise next(error for end, error in ends.items() if end.done())
    finally:
        for task in tasks:
            task.cancel()
        # so that the engine has stopped before anything else happens
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer of server-sent events, the last one `[DONE]`; an error ends it with an error event.

    Args:
        events: the JSON objects to send.
        held: released when the stream has ended in any way.
        state: of the server.
        names: the request's names of the protocol's fields, for errors.
    """

    def __init__(
        self,
        events: AsyncGenerator[dict[str, Any], None],
        held: contextlib.AsyncExitStack,
        state: ServerState,
        names: Mapping[str, str],
    ) -> None:
        # A proxy that buffers the whole answer would defeat streaming.
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type="text/event-stream"
        )
        # The length is not known in advance.
        del self.headers["content-length"]
        self._events = events
        self._held = held
        self._state = state
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the interface's
        """Send the answer."""
        async with self._held:
            try:
                await attend(receive, self._state, self._send_all(send))
            except ClientGoneError:
                return
            except Exception as error:  # noqa: BLE001 - a partial stream must not end like a whole one
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PARTING):
                        await send(_body(error_object(http_error(error, self._names)), last=True))

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in events:
                await _send_patiently(send, _body(event))
        await _send_patiently(send, _body("[DONE]", last=True))


async def _send_patiently(send: Send, message: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(READING_PATIENCE):
            await send(message)
    except TimeoutError as error:
        raise ClientGoneError from error


def _body(event: dict[str, Any] | str, *, last: bool = False) -> dict[str, Any]:
    # In ASCII, because some readers end an event at other line ends of Unicode.
    text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode("ascii"), "more_body": not last}
