"""Streams of the client: an answer piece by piece, and what changes on a server."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from modelwright.grpc_server.client.answer import Gathered
from modelwright.grpc_server.client.errors import ended_without_end, server_error
from modelwright.grpc_server.client.records import Change, Generation, Part, to_change

Item = TypeVar("Item")


class _Call(Iterator[Item], Generic[Item]):
    """A running call that may be left early, with `close()` or by a `with` block."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def close(self) -> None:
        """Cancel the request, if it still runs."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stream(_Call[str]):
    """The pieces of an answer's text as they come; `served` and `prompt_tokens` are known at once.

    `thinking` is what the model has thought so far; `parts()` gives both as they come. When all has come,
    `generation()` is the whole answer. Leave early with `close()` or by a `with` block, which cancels the request on
    the server.
    """

    def __init__(self, call: Any, target: str) -> None:
        super().__init__(call)
        self._target = target
        self._gathered = Gathered(target)
        while not self._gathered.started:
            self._gathered.add(self._event())
        self.served = self._gathered.served
        self.prompt_tokens = self._gathered.prompt_tokens

    @property
    def thinking(self) -> str:
        """What the model has thought so far."""
        return self._gathered.thinking

    def __next__(self) -> str:
        for part in self.parts():
            if part.text:
                return part.text
        raise StopIteration

    def parts(self) -> Iterator[Part]:
        """The rest of the answer: pieces of its thinking and of its text.

        Raises:
            ServerError: the request failed.
        """
        while not self._gathered.ended:
            part = self._gathered.add(self._event())
            if part is not None:
                yield part

    def generation(self) -> Generation:
        """The whole answer; what has not come yet is waited for.

        Raises:
            ServerError: the request failed.
        """
        for _ in self.parts():
            pass
        return self._gathered.generation()

    def _event(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise server_error(error, self._target, answering=self._gathered.started) from error
        except StopIteration:
            raise ended_without_end(self._target) from None


class Watch(_Call[Change]):
    """What a server has, a `Snapshot` first, then each change: a `Model`, one that is `Gone`, an `Alias` that moved.

    Another `Snapshot` may come in place of changes that were not read in time. Leave with `close()` or by a `with`
    block.
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
