"""What an engine is asked and what it answers: sampling, requests, deltas."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import field, frozen, validators

from modelwright.core.api.records import Finish


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
        max_tokens: the most tokens to generate, 1 or more.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it before sampling.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum, in (0, 1].
        top_k: sample from this many likeliest tokens; 0 is no limit.
        stop: texts that end the output; they are not part of it.
        seed: makes sampling repeatable for this request; None draws a fresh one.
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
        id: unique among the requests that run.
        prompt: token ids, as the renderer made them; one or more.
        sampling: how to continue it.
        stop_token_ids: tokens that end the output (the renderer knows them); they are not part of the text.
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
        logprobs: one natural logarithm a token, where asked for.
        finish: why it ended, in the last delta only.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    finish: Finish | None = None
