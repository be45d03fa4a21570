"""What goes into an engine and what comes out: sampling, requests, deltas, and the answer that deltas add up to."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field, frozen, validators

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
        max_tokens: maximum number of tokens to generate, 1 or more.
        temperature: logits are divided by it before sampling; 0 takes the likeliest token each time.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum, in (0, 1].
        top_k: sample from this many likeliest tokens; 0 is no limit.
        stop: texts that end the output; they are not part of it.
        seed: makes sampling repeatable for this request; None draws a random seed.
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
        id: unique among the requests that are running.
        prompt: token ids, as the renderer made them; one or more.
        sampling: how to continue it.
        stop_token_ids: tokens that end the output, as the renderer names them; they are not part of the text.
        logprobs: whether deltas carry the log-probability of each token.
    """

    id: str
    prompt: tuple[int, ...] = field(converter=_token_ids, validator=validators.min_len(1))
    sampling: Sampling
    stop_token_ids: frozenset[int] = field(converter=_token_set, default=frozenset())
    logprobs: bool = False


@frozen(kw_only=True)
class Delta:
    """A piece of an answer; the last one of a request has `finish`.

    Attributes:
        text: what is new and certain not to be part of a stop text or of an unfinished character.
        token_ids: the tokens that are new; their text may follow in a later delta.
        logprobs: the natural logarithm of each token's probability, if the request asked for it.
        finish: why the answer ended; None in every delta but the last.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    finish: Finish | None = None


@define
class Answer:
    """An answer as far as its deltas have come; `add` takes the next one.

    Attributes:
        text: the text so far.
        token_ids: the tokens so far.
        logprobs: the natural logarithm of each token's probability; None if no delta had any.
        finish: why the answer ended; None until it has.
    """

    text: str = ""
    token_ids: list[int] = field(factory=list)
    logprobs: list[float] | None = None
    finish: Finish | None = None

    def add(self, delta: Delta) -> None:
        """Append the next delta of the stream."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *delta.logprobs]
        self.finish = delta.finish or self.finish

    def output(self) -> Output:
        """The finished answer, as metrics grade it; its thinking is still part of the text.

        Raises:
            ValueError: the stream ended without a delta that has `finish`.
        """
        if self.finish is None:
            raise ValueError("the stream of deltas ended before its last one, which has finish")
        logprobs = None if self.logprobs is None else tuple(self.logprobs)
        return Output(text=self.text, token_ids=tuple(self.token_ids), logprobs=logprobs, finish=self.finish)
