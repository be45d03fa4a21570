"""An answer that comes piece by piece, as both clients gather it."""

from __future__ import annotations

from typing import Any

from modelwright.grpc_server.client.errors import ended_without_end
from modelwright.grpc_server.client.records import Generation, Part, Served, to_finish, to_served, to_usage
from modelwright.v1 import inference_pb2


class Gathered:
    """What has come of an answer."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._start: inference_pb2.StreamStart | None = None
        self._end: inference_pb2.StreamEnd | None = None
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []

    @property
    def started(self) -> bool:
        """Whether the server has said who answers."""
        return self._start is not None

    @property
    def ended(self) -> bool:
        """Whether the server has said why the answer ended."""
        return self._end is not None

    @property
    def served(self) -> Served:
        """What answers."""
        assert self._start is not None, "the stream has not begun"
        return to_served(self._start.served)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, the chat template's included."""
        assert self._start is not None, "the stream has not begun"
        return self._start.prompt_tokens

    @property
    def thinking(self) -> str:
        """What the model has thought so far."""
        return "".join(self._thinking)

    def add(self, event: Any) -> Part | None:
        """Take an event in; gives what is new of text and thinking, None where nothing is."""
        kind = event.WhichOneof("event")
        if kind == "start":
            self._start = event.start
        elif kind == "end":
            self._end = event.end
        elif kind == "delta":
            return self._delta(event.delta)
        return None

    def _delta(self, delta: inference_pb2.StreamDelta) -> Part | None:
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs
        if not (delta.text or delta.thinking):
            return None
        self._text.append(delta.text)
        self._thinking.append(delta.thinking)
        return Part(text=delta.text, thinking=delta.thinking)

    def generation(self) -> Generation:
        """The whole answer.

        Raises:
            ServerError: its end has not come.
        """
        if self._end is None:
            raise ended_without_end(self._target)
        return Generation(
            text="".join(self._text),
            thinking=self.thinking,
            finish=to_finish(self._end.finish_reason),
            usage=to_usage(self._end.usage),
            served=self.served,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
        )
