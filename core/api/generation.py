"""Requests to an engine and what it streams back: sampling, requests, deltas, and the answer that deltas add up to."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, evolve, field, frozen, validators

from modelwright.core.api.answers import ThinkingSplitter
from modelwright.core.api.records import Finish, Output


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _token_ids(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _token_set(values: Iterable[int]) -> frozenset[int]:
    return frozenset(values)


@frozen(kw_only=True)
class Sampling:
    """How the next tokens are chosen.

    Attributes:
        max_tokens: maximum number of tokens to generate, at least 1.
        temperature: divides the logits before sampling; 0 always takes the likeliest token.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum, in (0, 1].
        top_k: sample from this many likeliest tokens; 0 means no limit.
        stop: strings that end the output; they are not part of it.
        seed: makes this request's sampling repeatable; None draws a new seed.
    """

    max_tokens: int = field(default=256, validator=validators.ge(1))
    temperature: float = field(default=0.0, validator=validators.ge(0.0))
    top_p: float = field(default=1.0, validator=validators.and_(validators.gt(0.0), validators.le(1.0)))
    top_k: int = field(default=0, validator=validators.ge(0))
    stop: tuple[str, ...] = field(converter=_texts, default=())
    seed: int | None = None


@frozen(kw_only=True)
class GenerationRequest:
    """One prompt for an engine.

    Attributes:
        id: unique among the running requests.
        prompt: token ids from the renderer, at least one.
        sampling: how to continue the prompt.
        stop_token_ids: tokens that end the output (from the renderer); they are not part of its text.
        logprobs: whether deltas carry each token's log-probability.
    """

    id: str
    prompt: tuple[int, ...] = field(converter=_token_ids, validator=validators.min_len(1))
    sampling: Sampling
    stop_token_ids: frozenset[int] = field(converter=_token_set, default=frozenset())
    logprobs: bool = False


@frozen(kw_only=True)
class Delta:
    """A piece of a streamed answer; the last one has `finish`.

    Attributes:
        text: new text; never part of a stop string or of an unfinished character.
        thinking: new text of the thinking; engines leave it empty, `Answer.add` separates it from `text`.
        token_ids: the new tokens; their text may follow in a later delta.
        logprobs: the natural logarithm of each new token's probability, if requested.
        finish: why the answer ended, in the last delta only.
    """

    text: str = ""
    thinking: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    finish: Finish | None = None


@define
class Answer:
    """A streamed answer so far: the sum of its deltas.

    Args:
        splitter: separates the thinking from the text; without one, `text` is everything that the model wrote.

    Attributes:
        text: the answer.
        thinking: what the model thought before it.
        token_ids: all generated tokens.
        logprobs: the natural logarithm of each token's probability; None if not requested.
        finish: why it ended; None while it has not.

    Example:
        answer = Answer(splitter=ThinkingSplitter())
        async for delta in engine.submit(request):
            print(answer.add(delta).text, end="")
    """

    text: str = field(default="", init=False)
    thinking: str = field(default="", init=False)
    token_ids: list[int] = field(factory=list, init=False)
    logprobs: list[float] | None = field(default=None, init=False)
    finish: Finish | None = field(default=None, init=False)
    _splitter: ThinkingSplitter | None = field(default=None, kw_only=True)

    def add(self, delta: Delta) -> Delta:
        """Append the next delta, and return it with its thinking separated from its text."""
        if self._splitter is not None:
            thinking, text = self._splitter.feed(delta.text)
            if delta.finish is not None:
                rest = self._splitter.finish()
                thinking, text = thinking + rest[0], text + rest[1]
            delta = evolve(delta, text=text, thinking=thinking)
        self.text += delta.text
        self.thinking += delta.thinking
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = self.logprobs if self.logprobs is not None else []
            self.logprobs += delta.logprobs
        self.finish = delta.finish or self.finish
        return delta

    def output(self) -> Output:
        """The finished answer as a record.

        Raises:
            ValueError: it has not finished.
        """
        if self.finish is None:
            raise ValueError("the answer has not finished: no delta had `finish`")
        return Output(
            text=self.text,
            token_ids=tuple(self.token_ids),
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
            finish=self.finish,
            thinking=self.thinking or None,
        )
