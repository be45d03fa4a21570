"""What is learnt of a rendered conversation, in characters: which stretches belong to the turns to be trained.

A trained turn runs from where its generation prompt ends to its end-of-turn token:

    rendering   <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎A<|im_end|>⏎
    prompt      <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎
    trained                                                        A<|im_end|>
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from attrs import frozen

from modelwright.core.api.records import Message
from modelwright.core.conversation import Conversation, Fields
from modelwright.core.tokenizer import Control, ControlledTokenizer, Range

SpanKind = Literal["thinking", "answer", "end", "text"]


@frozen
class Stretch:
    """A trained stretch of the rendering."""

    kind: SpanKind
    message: int
    start: int
    end: int


@frozen
class Layout:
    """A rendered conversation.

    Attributes:
        text: the rendering.
        stretches: what of it is learnt.
        anomalies: what is not as the messages say; the names are `Rendered`'s.
        protected: the parts of it that someone typed and that could be taken for control tokens.
        controls: how many control tokens there are outside of those; None where nobody has counted.
    """

    text: str
    stretches: tuple[Stretch, ...]
    anomalies: tuple[str, ...]
    protected: tuple[Range, ...] = ()
    controls: int | None = None


def lay_out(
    conversation: Conversation,
    messages: Sequence[Message],
    wanted: Sequence[int],
    *,
    tokenizer: ControlledTokenizer,
    turn_ends: frozenset[int],
) -> Layout:
    """Find what is learnt.

    Args:
        conversation: the rendered messages.
        messages: what it was rendered from.
        wanted: which of them are learnt.
        tokenizer: knows the control tokens.
        turn_ends: the tokens that end a turn.
    """
    controls = tokenizer.find_controls(conversation.text, conversation.protected)
    stretches: list[Stretch] = []
    anomalies: dict[str, None] = {}
    for index, fields in conversation.locate(wanted).items():
        turn = _Turn(conversation, messages, index, fields, controls, turn_ends)
        found, strange = turn.find()
        stretches += found
        anomalies.update(dict.fromkeys(strange))
    if conversation.template_reads_content:
        anomalies["template-reads-content"] = None
    return Layout(
        text=conversation.text,
        stretches=tuple(stretches),
        anomalies=tuple(anomalies),
        protected=conversation.protected,
        controls=len(controls),
    )


def next_control(text: str, position: int, controls: Iterable[Control]) -> Control | None:
    """The first control token at or after `position`, if nothing but white space lies between."""
    control = next((each for each in controls if each.start >= position), None)
    return None if control is None or text[position : control.start].strip() else control


@frozen
class _Turn:
    """One message that is learnt."""

    conversation: Conversation
    messages: Sequence[Message]
    index: int
    fields: Fields
    controls: Sequence[Control]
    turn_ends: frozenset[int]

    def find(self) -> tuple[list[Stretch], list[str]]:
        """Its stretches, and what is strange about it."""
        index, found = self.index, self.fields.found
        speaks = self.messages[index].role == "assistant"
        places = sorted(found.values())
        first = places[0][0] if places else None
        start = self._start(first) if speaks else first
        if self.fields.lost or self.fields.dropped - {"thinking"} or start is None:
            return [], ["span-lost"]
        strange = ["thinking-dropped"] if self.fields.dropped else []
        last = max((end for _, end in places), default=start)
        closing = "calls" in found or "content" not in found
        limit = self._next_field() if closing else None
        control = self._end(last, limit)
        if control is None and speaks:
            strange.append("end-missing")
        if control is not None and limit is not None:
            last = control.start
        stretches = []
        middle = start
        if "thinking" in found:
            answers = [place for kind, place in found.items() if kind != "thinking"]
            middle = min((begin for begin, _ in answers), default=last)
            if self.messages[index].train_thinking:
                stretches.append(Stretch("thinking", index, start, middle))
        stretches.append(Stretch("answer", index, middle, last))
        if control is not None:
            stretches.append(Stretch("end", index, last, control.end))
        return [each for each in stretches if each.start < each.end], strange

    def _start(self, first: int | None) -> int | None:
        """Where the model takes over: the end of the generation prompt, else the first field's start.

        Templates that show earlier turns in another way when a new one comes have prompts that are no prefix; then the
        generation prompt alone (`<|im_start|>assistant`) is looked for before the field.
        """
        text = self.conversation.text
        prompt = self.conversation.before(self.index, add_generation_prompt=True)
        limit = len(text) if first is None else first
        if prompt is None:
            return first
        if len(prompt) <= limit and text.startswith(prompt):
            return len(prompt)
        history = self.conversation.before(self.index, add_generation_prompt=False)
        if first is None or history is None or not prompt.startswith(history) or len(prompt) == len(history):
            return first
        header = prompt[len(history) :]
        found = text.rfind(header, 0, first)
        start = found + len(header)
        between = any(control.id in self.turn_ends and start <= control.start < first for control in self.controls)
        return first if found < 0 or between else start

    def _end(self, last: int, limit: int | None) -> Control | None:
        """The end-of-turn token after `last`, the end of the turn's last field.

        Content is followed by it, or by white space and it. With a limit, it is the first one before that: calls and
        thinking are closed by brackets and tags, which are the model's to write.
        """
        if limit is not None:
            between = (each for each in self.controls if last <= each.start < limit)
            return next((each for each in between if each.id in self.turn_ends), None)
        control = next_control(self.conversation.text, last, self.controls)
        return control if control is not None and control.id in self.turn_ends else None

    def _next_field(self) -> int:
        """Where the first field of the later messages begins; the rendering's end where there is none."""
        later = self.conversation.locate(range(self.index + 1, len(self.messages)))
        places = [place for fields in later.values() for place in fields.found.values()]
        return min((start for start, _ in places), default=len(self.conversation.text))
