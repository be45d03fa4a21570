"""A cache of layouts by shape: conversations that differ only in their texts are laid out once.

Laying out a conversation takes four renderings. A shape is laid out with a placeholder for every text. A conversation
of that shape is then rendered once, and must equal the shape with its texts in place of the placeholders:

    shape       <|im_start|>user⏎[0]<|im_end|>⏎<|im_start|>assistant⏎[1]<|im_end|>⏎
    trained                                                         ├─────────────┤
    rendering   <|im_start|>user⏎2+2?<|im_end|>⏎<|im_start|>assistant⏎4<|im_end|>⏎

If it does not, since the template reads the texts, or if a text contains a control token, the conversation is laid out
without the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import attrs
from attrs import frozen

from modelwright.core.api.records import Message
from modelwright.core.chat.sentinels import Conversation, Fields
from modelwright.core.chat.served import Served, ThinkingBlock, serve
from modelwright.core.chat.spans import Layout, SpanKind, Stretch, lay_out
from modelwright.core.chat.templates import ChatTemplate, TemplateRefusedError, template_message
from modelwright.core.chat.tokenizer import ControlledTokenizer
from modelwright.core.chat.turn_ends import TurnEnds

# Real data have few shapes. If every conversation has its own, only the first are kept.
MAX_SHAPES = 1000
PLACEHOLDER = "Text"

# A place in a shape: the number of fields before it, and the number of characters outside fields before it.
_Place = tuple[int, int]


@frozen
class _Parts:
    """A text with a hole for each field.

    Attributes:
        literals: the text around and between the fields, one more than there are fields.
        fields: for each hole the number of its core, in the order of the messages.
    """

    literals: tuple[str, ...]
    fields: tuple[int, ...]

    @classmethod
    def of(cls, text: str, holes: Sequence[tuple[int, int, int]]) -> _Parts | None:
        """Cut holes, each its start, its end and the number of its core; None if they overlap."""
        edges = [0, *(edge for start, end, _ in holes for edge in (start, end)), len(text)]
        literals = tuple(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
        return cls(literals, tuple(number for _, _, number in holes)) if edges == sorted(edges) else None

    def filled(self, cores: Sequence[str]) -> list[str]:
        """Literals and cores in turn."""
        pieces = [""] * (2 * len(self.fields) + 1)
        pieces[::2], pieces[1::2] = self.literals, [cores[number] for number in self.fields]
        return pieces


@frozen
class _Shape:
    """A layout with a hole for each field.

    Attributes:
        parts: the text.
        rendering: that of the template, in which trained turns may lack what their prompts open.
        stretches: the trained stretches: kind, message, start and end.
        prompts: where the prompts of trained turns end, and their last tokens.
        anomalies: as in `Layout`.
        controls: the number of control tokens.
        cut: as in `Layout`.
        turns: trained turns and the ends of their prompts, if these can depend on texts.
        starts: for each character that a control token can begin with, how often it is in the literals.
    """

    parts: _Parts
    rendering: _Parts
    stretches: tuple[tuple[SpanKind, int, _Place, _Place], ...]
    prompts: tuple[tuple[_Place, tuple[int, ...]], ...]
    anomalies: tuple[str, ...]
    controls: int
    starts: tuple[int, ...]
    cut: _Place | None
    turns: tuple[tuple[int, _Place], ...]


class LayoutCache:
    """Lays out conversations, each shape once.

    Args:
        template: renders them.
        tokenizer: knows the control tokens.
        turn_ends: the tokens that end a turn.
        block: as `serve`.
        empty: as `serve`.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: ControlledTokenizer,
        turn_ends: TurnEnds,
        *,
        block: ThinkingBlock,
        empty: bool,
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._turn_ends = turn_ends
        self._empty = empty
        self._block = block
        self._starts = sorted({content[0] for content in tokenizer.controls})
        self._known: dict[Any, _Shape | None] = {}

    def lay_out(self, messages: Sequence[Message], tools: str | None, wanted: Sequence[int]) -> Layout:
        """Render messages and find the trained stretches.

        Raises:
            TemplateRefusedError: the template refuses them.
        """
        if tools is None and all(message.tool_calls is None for message in messages):
            key, cores = _split(messages, wanted)
            if key in self._known:
                shape = self._known[key]
            else:
                shape = self._shape(messages, wanted)
                if len(self._known) < MAX_SHAPES:
                    self._known[key] = shape
            layout = shape and self._filled(shape, messages, cores)
            if layout:
                return layout
        return self._alone(messages, tools, wanted)

    def _alone(self, messages: Sequence[Message], tools: str | None, wanted: Sequence[int]) -> Layout:
        return self._laid_out(Conversation(self._template, self._tokenizer, messages, tools), messages, wanted)[1]

    def _laid_out(
        self, conversation: Conversation, messages: Sequence[Message], wanted: Sequence[int]
    ) -> tuple[Served, Layout]:
        tokenizer, ends = self._tokenizer, self._turn_ends
        served = serve(conversation, messages, wanted, tokenizer=tokenizer, block=self._block, empty=self._empty)
        return served, lay_out(conversation, messages, wanted, served=served, tokenizer=tokenizer, turn_ends=ends)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self._template.render(
            [template_message(message) for message in messages],
            tools=None,
            special=self._tokenizer.special,
            add_generation_prompt=add_generation_prompt,
        )

    def _filled(self, shape: _Shape, messages: Sequence[Message], cores: Sequence[str]) -> Layout | None:
        """The layout of messages of this shape; None if the shape does not fit them."""
        pieces = shape.parts.filled(cores)
        text = "".join(pieces)
        rendering = self._render(messages, add_generation_prompt=False)
        if rendering != (text if shape.rendering is shape.parts else "".join(shape.rendering.filled(cores))):
            return None
        if tuple(map(text.count, self._starts)) != shape.starts and self._typed(text, shape, pieces):
            return None
        before = list(accumulate(map(len, pieces[1::2]), initial=0))
        for index, end in shape.turns:
            if self._render(messages[:index], add_generation_prompt=True) != text[: before[end[0]] + end[1]]:
                return None
        return Layout(
            text=text,
            stretches=tuple(
                Stretch(kind, message, before[start[0]] + start[1], before[end[0]] + end[1])
                for kind, message, start, end in shape.stretches
            ),
            prompts={before[end[0]] + end[1]: ids for end, ids in shape.prompts},
            anomalies=shape.anomalies,
            controls=shape.controls,
            cut=shape.cut and before[shape.cut[0]] + shape.cut[1],
        )

    def _typed(self, text: str, shape: _Shape, pieces: Sequence[str]) -> bool:
        """Whether the texts contain a control token, or complete one, besides the shape's own."""
        found = self._tokenizer.find_controls(text)
        edges = list(accumulate(map(len, pieces), initial=0))
        fields = list(zip(edges[1::2], edges[2::2], strict=False))
        return len(found) != shape.controls or any(
            control.start < end and start < control.end for control in found for start, end in fields
        )

    def _shape(self, messages: Sequence[Message], wanted: Sequence[int]) -> _Shape | None:
        """The shape of these messages; None if a field cannot be found, or a stretch begins or ends inside a field."""
        replaced = [_with_placeholders(message) for message in messages]
        try:
            conversation = Conversation(self._template, self._tokenizer, replaced, None)
            served, layout = self._laid_out(conversation, replaced, wanted)
        except TemplateRefusedError:
            return None
        located = conversation.locate(range(len(messages)))
        # Some prompts open a block or not as the system message says. The history shows neither.
        unsure = self._block.opening and "prompt-boundary" in layout.anomalies
        if unsure or layout.protected or any(fields.lost for fields in located.values()):
            return None
        numbers = {field: number for number, field in enumerate(_fields(replaced))}
        found = _holes(served.fields, numbers)
        parts = _Parts.of(layout.text, found)
        same = layout.text == conversation.text
        rendering = parts if same else _Parts.of(conversation.text, _holes(located, numbers))
        heads = tuple(self._tokenizer.heads)
        if parts is None or rendering is None or any(each.endswith(heads) for each in parts.literals[:-1]):
            return None

        def place(position: int) -> _Place | None:
            passed = [end - start for start, end, _ in found if end <= position]
            inside = any(start < position < end for start, end, _ in found)
            return None if inside else (len(passed), position - sum(passed))

        stretches = []
        for stretch in layout.stretches:
            start, end = place(stretch.start), place(stretch.end)
            if start is None or end is None:
                return None
            stretches.append((stretch.kind, stretch.message, start, end))
        prompts = [(place(end), ids) for end, ids in layout.prompts.items()]
        ends = [(index, place(len(prompt))) for index, prompt in served.prompts.items() if self._block.opening]
        assert layout.controls is not None
        return _Shape(
            parts=parts,
            rendering=rendering,
            stretches=tuple(stretches),
            prompts=tuple((end, ids) for end, ids in prompts if end is not None),
            anomalies=layout.anomalies,
            controls=layout.controls,
            cut=None if layout.cut is None else place(layout.cut),
            turns=tuple((index, end) for index, end in ends if end is not None),
            starts=tuple(sum(literal.count(start) for literal in parts.literals) for start in self._starts),
        )


def _holes(located: Mapping[int, Fields], numbers: Mapping[tuple[int, str], int]) -> list[tuple[int, int, int]]:
    """The places of fields, sorted: start, end and the number of the core."""
    return sorted(
        (start, end, numbers[index, kind])
        for index, fields in located.items()
        for kind, (start, end) in fields.found.items()
    )


def _fields(messages: Sequence[Message]) -> Iterator[tuple[int, str]]:
    """The fields that have text, as (message, kind), in the order of `_split`'s cores."""
    for index, message in enumerate(messages):
        if message.content.strip():
            yield index, "content"
        if message.thinking and message.thinking.strip():
            yield index, "thinking"


def _split(messages: Sequence[Message], wanted: Sequence[int]) -> tuple[Any, list[str]]:
    """The key of the messages' shape, and the texts of their fields without surrounding white space (the cores)."""
    key: list[Any] = [tuple(wanted)]
    cores: list[str] = []
    for message in messages:
        content = message.content
        core = content.strip()
        lead, _, trail = content.partition(core) if core else (content, "", "")
        key.append((message.role, message.name, message.tool_call_id, message.train_thinking, bool(core), lead, trail))
        if core:
            cores.append(core)
        if message.thinking is not None:
            core = message.thinking.strip()
            lead, _, trail = message.thinking.partition(core) if core else (message.thinking, "", "")
            key.append((bool(core), lead, trail))
            if core:
                cores.append(core)
    return tuple(key), cores


def _with_placeholders(message: Message) -> Message:
    thinking = message.thinking
    return attrs.evolve(
        message,
        content=_replaced(message.content),
        thinking=None if thinking is None else _replaced(thinking),
    )


def _replaced(text: str) -> str:
    core = text.strip()
    return text.replace(core, PLACEHOLDER, 1) if core else text
