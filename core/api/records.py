"""The records that flow through a run: messages, examples, outputs, scores, figures.

All are frozen and made of plain values, so that they travel as JSON. Interchange is JSONL, one Example a line.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import orjson
from attrs import field, frozen, validators

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


# `json.dumps` makes one at each call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_json(value: Any) -> str:
    """Canonical JSON of `value`, the same for equal values: sorted keys, no spaces, plain UTF-8."""
    return _CANONICAL.encode(value)


def digest_json(value: Any) -> str:
    """The sha256 of the canonical JSON of `value`, in hexadecimal."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # integers beyond 64 bits, lone surrogates
        text = canonical_json(value).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


@frozen(kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: the text of the message.
        thinking: the reasoning before the content; None if there is none.
        tool_calls: the calls as a JSON array, as text (Arrow would invent null fields in nested objects).
        tool_call_id: id of the call that a tool's message answers.
        name: the tool's name, in a tool's message.
        train: whether the model is trained on this turn; None leaves it to `[data.tokens] turns`.
        train_thinking: whether the thinking of a trained turn is trained as well.
    """

    role: Role = field(validator=validators.in_(ROLES))
    content: str = field(validator=validators.instance_of(str))
    thinking: str | None = None
    tool_calls: str | None = None
    tool_call_id: str | None = None
    name: str | None = None
    train: bool | None = None
    train_thinking: bool = True

    def to_row(self) -> dict[str, Any]:
        """This message as a JSON object; what is default is left out."""
        row: dict[str, Any] = {"role": self.role, "content": self.content}
        for key in ("thinking", "tool_calls", "tool_call_id", "name", "train"):
            value = getattr(self, key)
            if value is not None:
                row[key] = value
        if not self.train_thinking:
            row["train_thinking"] = False
        return row


def _messages(messages: Iterable[Message]) -> tuple[Message, ...]:
    # Named functions, because mypy cannot infer what a bare `tuple` or a lambda converts.
    return tuple(messages)


def _choices(choices: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if choices is None else tuple(choices)


@frozen(kw_only=True)
class Example:
    """One conversation or text to train on, or one question of a test set.

    Attributes:
        messages: the conversation; the model is trained on its assistant turns.
        answer: the reference answer that metrics grade against.
        choices: the options of a multiple-choice question.
        tools: the tools on offer as a JSON array, as text.
        text: plain text without turns; then `messages` is empty.
        source: where it came from, as `file:line`.
        meta: other JSON values that the format keeps.
    """

    messages: tuple[Message, ...] = field(converter=_messages, default=())
    answer: str | None = None
    choices: tuple[str, ...] | None = field(converter=_choices, default=None)
    tools: str | None = None
    text: str | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(factory=dict)

    @functools.cached_property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the sha256 of the canonical content (all but source and meta)."""
        content = {
            "messages": [message.to_row() for message in self.messages],
            "answer": self.answer,
            "choices": self.choices,
            "tools": self.tools,
            "text": self.text,
        }
        return digest_json(content)[:16]

    def to_row(self) -> dict[str, Any]:
        """This example as a JSON object; what is None, empty or default is left out."""
        row: dict[str, Any] = {"id": self.id}
        row["messages"] = [message.to_row() for message in self.messages]
        for key in ("answer", "tools", "text"):
            if getattr(self, key) is not None:
                row[key] = getattr(self, key)
        if self.choices is not None:
            row["choices"] = list(self.choices)
        row["source"] = self.source
        if self.meta:
            row["meta"] = dict(self.meta)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Example:
        """The inverse of `to_row`."""
        values = {key: value for key, value in row.items() if key not in ("id", "messages")}
        return cls(messages=tuple(Message(**message) for message in row.get("messages", ())), **values)


Finish = Literal["stop", "length", "cancelled"]


@frozen(kw_only=True)
class Output:
    """What a model wrote for one prompt.

    Attributes:
        text: the answer, decoded: without its thinking, the end token or the stop string.
        token_ids: the tokens that were generated.
        logprobs: the natural logarithm of each generated token's probability, if requested.
        finish: "stop" (end token or stop string), "length" (max_tokens reached) or "cancelled".
        thinking: the reasoning before the answer; None if there is none.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    finish: Finish = "stop"
    thinking: str | None = None


Verdict = Literal["correct", "wrong", "no_answer", "error"]


@frozen(kw_only=True)
class Score:
    """One example's grade.

    Attributes:
        value: the number that is aggregated, 0 to 1 for an accuracy.
        verdict: the grade in a word; "no_answer" and "error" count with their value like any other.
        reason: why it got this grade, for a person who reads the samples.
    """

    value: float
    verdict: Verdict
    reason: str = ""


@frozen(kw_only=True)
class Figure:
    """A metric over a whole suite: the value, its 95 % interval, and the number of examples."""

    value: float
    low: float
    high: float
    n: int


def wilson(value: float, n: int, z: float = 1.959963984540054) -> Figure:
    """The Wilson score interval of a share `value` of `n` trials, 95 % by default.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    Without any trials, the interval is 0 to 1.

    Raises:
        ValueError: `value` is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"a Wilson interval is of a share between 0 and 1, not of {value}")
    if n == 0:
        return Figure(value=0.0, low=0.0, high=1.0, n=0)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5)
    # At 0 and 1 the interval ends at the value itself, which rounding may miss by a bit.
    return Figure(value=value, low=max(0.0, min(value, centre - half)), high=min(1.0, max(value, centre + half)), n=n)


def wilson_mean(scores: Sequence[Score]) -> Figure:
    """The mean of the scores' values, as a share with its Wilson interval."""
    n = len(scores)
    return wilson(sum(score.value for score in scores) / n if n else 0.0, n)
