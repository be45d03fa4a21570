"""A conversation rendered by a chat template: where each field is in the rendering, and what users typed.

Both are found by private-use characters that go through the template with the messages: in every rendering, guards
around typed control tokens; and sentinels around the fields that are trained. They are put inside leading and trailing
white space, which templates trim, and are characters that do not occur in the conversation.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import field, frozen

from modelwright.core.api.records import Message
from modelwright.core.chat.templates import ChatTemplate, TemplateRefusedError, parse_array, template_message
from modelwright.core.chat.tokenizer import ControlledTokenizer, Range

FieldKind = Literal["thinking", "content", "calls"]

_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0xE000, 0xF900))


@frozen
class Fields:
    """The places of a message's fields in the rendering, in characters.

    Attributes:
        found: by kind; a field without text has no place.
        dropped: the fields that the template leaves out.
        lost: whether a place is unknown, since the template shows a field in part or twice, or reads the sentinels.
    """

    found: Mapping[FieldKind, Range] = field(factory=dict)
    dropped: frozenset[FieldKind] = frozenset()
    lost: bool = False


class Conversation:
    """Messages and tools rendered by a template; all positions are in characters of `text`.

    Attributes:
        text: the rendering without guards.
        protected: the parts that a user typed and that look like control tokens.

    Raises:
        TemplateRefusedError: the template refuses the conversation, or its JSON is broken.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: ControlledTokenizer,
        messages: Sequence[Message],
        tools: str | None,
        *,
        add_generation_prompt: bool = False,
    ) -> None:
        if not messages:
            raise TemplateRefusedError("a conversation needs at least one message")
        self._template = template
        self._tokenizer = tokenizer
        plain = [template_message(message) for message in messages]
        plain_tools = None if tools is None else parse_array(tools, "tools")
        used = set(template.source).union(*_texts([plain, plain_tools]))
        ranges = itertools.chain(*_PRIVATE_USE)
        self._unused = (character for character in map(chr, ranges) if character not in used)
        self._guards = next(self._unused), next(self._unused)
        self._typed: set[str] = set()
        self._messages = [self._guarded_message(message) for message in plain]
        self._tools = self._guarded_data(plain_tools)
        self.text, self.protected = self._render(self._messages, add_generation_prompt=add_generation_prompt)
        # If guards change what the template does, it reacts to typed control tokens.
        self.template_reads_content = bool(self._typed) and self.text != self._apply(
            plain, plain_tools, add_generation_prompt=add_generation_prompt
        )

    @functools.cached_property
    def header(self) -> str:
        """The text that the generation prompt adds to a question; empty if the template refuses one."""
        question, opening = {"role": "user", "content": "Question"}, {"role": "system", "content": "Rule"}
        for messages in ([question], [opening, question]):
            try:
                history, _ = self._render(messages, add_generation_prompt=False)
                prompt, _ = self._render(messages, add_generation_prompt=True)
            except TemplateRefusedError:
                continue
            return prompt[len(history) :] if prompt.startswith(history) else ""
        return ""

    def before(self, index: int, *, add_generation_prompt: bool) -> str | None:
        """The rendering of the messages before `index`; None if the template refuses them."""
        try:
            return self._render(self._messages[:index], add_generation_prompt=add_generation_prompt)[0]
        except TemplateRefusedError:
            return None

    def locate(self, wanted: Sequence[int]) -> dict[int, Fields]:
        """The places of the wanted messages' fields."""
        together = self._locate(wanted)
        if together is not None:
            return together
        # The sentinels of some message change the rendering: only that message's places are lost.
        return {index: (self._locate([index]) or {index: Fields(lost=True)})[index] for index in wanted}

    def _locate(self, wanted: Sequence[int]) -> dict[int, Fields] | None:
        """As `locate`; None if the rendering without the sentinels differs from the plain one."""
        messages = list(self._messages)
        marks: dict[int, list[tuple[FieldKind, str, str]]] = {}
        for index in wanted:
            messages[index], marks[index] = _with_sentinels(self._messages[index], self._unused)
        sentinels = {character for marked in marks.values() for _, *pair in marked for character in pair}
        try:
            rendering = self._apply(messages, self._tools, add_generation_prompt=False)
        except TemplateRefusedError:
            return None
        text, places = _without(rendering, sentinels | set(self._guards))
        if text != self.text:
            return None
        positions: dict[str, list[int]] = {}
        for character, position in places:
            positions.setdefault(character, []).append(position)
        return {index: _fields(marks[index], positions) for index in wanted}

    def _apply(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, add_generation_prompt: bool) -> str:
        return self._template.render(
            messages, tools=tools, special=self._tokenizer.special, add_generation_prompt=add_generation_prompt
        )

    def _render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
    ) -> tuple[str, tuple[Range, ...]]:
        """The rendering without guards, and the parts that they protect."""
        rendering = self._apply(messages, self._tools, add_generation_prompt=add_generation_prompt)
        if not self._typed:
            return rendering, ()
        text, places = _without(rendering, set(self._guards))
        if any(json.dumps(guard)[1:-1] in text for guard in self._guards):
            raise TemplateRefusedError("the chat template escapes control tokens typed in tools or tool calls")
        protected, start = [], None
        for guard, position in places:
            if guard == self._guards[0]:
                start = position
            elif start is not None:
                # A template that splits content can put its own text between two guards.
                if text[start:position] in self._typed:
                    protected.append((start, position))
                start = None
        return text, tuple(protected)

    def _guarded_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        guarded = {"role": message["role"]}
        for key, value in message.items():
            if key in ("content", "reasoning_content", "thinking"):
                guarded[key] = self._guarded(value, edges=True)
            elif key != "role":
                guarded[key] = self._guarded_data(value)
        return guarded

    def _guarded_data(self, value: Any) -> Any:
        if isinstance(value, str):
            # Whole tokens only: templates compare such values ("type" with "string").
            return self._guarded(value, edges=False)
        if isinstance(value, dict):
            return {self._guarded_data(key): self._guarded_data(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._guarded_data(item) for item in value]
        return value

    def _guarded(self, text: str, *, edges: bool) -> str:
        """Put guards around typed control tokens, and around fragments that could become one with neighboring text."""
        ranges = [match.span() for match in self._tokenizer.pattern.finditer(text)]
        if edges:
            ranges += self._tokenizer.find_fragments(text)
        if not ranges:
            return text
        before, after = self._guards
        for start, end in reversed(_merged(ranges)):
            self._typed.add(text[start:end])
            text = f"{text[:start]}{before}{text[start:end]}{after}{text[end:]}"
        return text


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _merged(ranges: Sequence[Range]) -> list[Range]:
    """The union of ranges, sorted; ranges that only touch stay separate."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _without(rendering: str, characters: set[str]) -> tuple[str, list[tuple[str, int]]]:
    """The rendering without `characters`, and the place of each of them in it."""
    parts, places, at, length = [], [], 0, 0
    for match in re.finditer(f"[{re.escape(''.join(sorted(characters)))}]", rendering) if characters else ():
        parts.append(rendering[at : match.start()])
        length += match.start() - at
        places.append((match[0], length))
        at = match.end()
    parts.append(rendering[at:])
    return "".join(parts), places


def _call_names(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects with a name in a message's tool calls: `function`, or the call itself in the short form."""
    calls = [call for call in message.get("tool_calls", ()) if isinstance(call, dict)]
    objects = [call.get("function", call) for call in calls]
    return [each for each in objects if isinstance(each, dict) and str(each.get("name") or "").strip()]


def _with_sentinels(
    message: Mapping[str, Any], unused: Iterator[str]
) -> tuple[dict[str, Any], list[tuple[FieldKind, str, str]]]:
    """The message with sentinels around its non-empty fields, and the sentinels of each."""
    marked = json.loads(json.dumps(message)) if "tool_calls" in message else dict(message)
    marks: list[tuple[FieldKind, str, str]] = []

    def mark(kind: FieldKind, text: str) -> str:
        core = text.strip()
        before, after = next(unused), next(unused)
        marks.append((kind, before, after))
        start = text.index(core)
        return f"{text[:start]}{before}{core}{after}{text[start + len(core) :]}"

    if message.get("thinking", "").strip():
        marked["thinking"] = marked["reasoning_content"] = mark("thinking", message["thinking"])
    if message["content"].strip():
        marked["content"] = mark("content", message["content"])
    for named in _call_names(marked):
        named["name"] = mark("calls", str(named["name"]))
    return marked, marks


def _fields(marks: Sequence[tuple[FieldKind, str, str]], positions: Mapping[str, Sequence[int]]) -> Fields:
    found: dict[FieldKind, Range] = {}
    dropped: set[FieldKind] = set()
    for kind, before, after in marks:
        starts, ends = positions.get(before, ()), positions.get(after, ())
        if not starts and not ends:
            dropped.add(kind)
        elif len(starts) == len(ends) and starts[0] <= ends[0] and (len(starts) == 1 or kind == "calls"):
            # A call's name appears again in the tool's answer.
            start, end = found.get(kind, (starts[0], ends[0]))
            found[kind] = (min(start, starts[0]), max(end, ends[0]))
        else:
            return Fields(lost=True)
    return Fields(found=found, dropped=frozenset(dropped))
