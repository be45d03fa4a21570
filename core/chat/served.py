"""Trained turns behind the very prompt that serving puts before them.

Some templates' generation prompts write what the history of a conversation never shows: they open a thinking block, or
close an empty one. A trained turn gets it too:

    history     <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎A<|im_end|>⏎
    prompt      <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎<think>⏎
    as served   <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎<think>⏎⏎</think>⏎⏎A<|im_end|>⏎
    trained                                                                ├──────────────────────┤
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs
from attrs import field, frozen

from modelwright.core.api.answers import THINK_OPEN
from modelwright.core.api.records import Message
from modelwright.core.chat.sentinels import Conversation, FieldKind, Fields
from modelwright.core.chat.templates import ChatTemplate, TemplateRefusedError
from modelwright.core.chat.tokenizer import ControlledTokenizer, Range

_RULE, _ASKED = Message(role="system", content="Rule"), Message(role="user", content="Question")

# What looks like a tag: <think>, [THINK], <|START_THINKING|>, <|channel>.
_TAG = re.compile(r"[<\[◁][^\s<>\[\]◁▷]+[>\]▷]")
_STARTS = (("<|START_", "<|END_"), ("<|start_", "<|end_"), ("<|begin_", "<|end_"))


@frozen
class ThinkingBlock:
    r"""What a template's generation prompt writes that the history of a conversation does not show.

    Attributes:
        opening: that text, such as "<think>\n"; empty if there is none.
        shared: what prompts have after it, and history too, such as Command-R's `<|START_RESPONSE|>`.
        closing: what the model writes to close the block without thinking, such as "\n</think>\n\n"; empty if the
            opening closes it; None if unknown.
    """

    opening: str = ""
    shared: str = ""
    closing: str | None = ""

    def closing_of(self, opening: str) -> str | None:
        """As `closing`, for another opening of the same template."""
        return self.closing if opening == self.opening else _closing(opening)


@frozen
class Served:
    """A conversation in which trained turns stand behind their prompts; places are in characters of `text`.

    Attributes:
        text: the rendering.
        protected: the parts that a user typed and that look like control tokens.
        fields: the fields of every message.
        prompts: the prompts alone by trained turn, where the template makes one.
        cut: the end of the last prompt that opens or closes a block, where the prompt's tokens end, too.
    """

    text: str
    protected: tuple[Range, ...]
    fields: Mapping[int, Fields]
    prompts: Mapping[int, str] = field(factory=dict)
    cut: int | None = None

    def limit(self, index: int) -> int:
        """Where the message's first field begins; without fields, the next message's."""
        later = [self.fields[index], *(fields for other, fields in self.fields.items() if other > index)]
        starts = (min((start for start, _ in each.found.values()), default=None) for each in later)
        return next((start for start in starts if start is not None), len(self.text))

    def begins(self, index: int) -> bool:
        """Whether the turn's prompt, if there is one, is the beginning of the text up to the turn's first field."""
        prompt = self.prompts.get(index)
        return prompt is None or (len(prompt) <= self.limit(index) and self.text.startswith(prompt))

    def behind(self, prompt: str, start: int, end: int, written: str = "") -> Served:
        """Put a turn behind its prompt and the text that the model writes first.

        Args:
            prompt: begins as the text up to `start`.
            start: where the text differs from the prompt.
            end: where the turn goes on after the end of the prompt; no field lies between.
            written: see above.
        """
        text = prompt[start:] + written
        shift = len(text) - (end - start)

        def moved(place: Range) -> Range:
            return place if place[1] <= start else (place[0] + shift, place[1] + shift)

        fields = {
            index: attrs.evolve(each, found={kind: moved(place) for kind, place in each.found.items()})
            for index, each in self.fields.items()
        }
        protected = tuple(map(moved, self.protected))
        whole = self.text[:start] + text + self.text[end:]
        return attrs.evolve(self, text=whole, protected=protected, fields=fields, cut=len(prompt))

    def with_thinking(self, index: int, place: Range, *, protected: bool) -> Served:
        """Note where the message's thinking is, which the template left out, and whether it must be protected."""
        own = self.fields[index]
        found: dict[FieldKind, Range] = {"thinking": place, **own.found}
        fields = {**self.fields, index: attrs.evolve(own, found=found, dropped=own.dropped - {"thinking"})}
        parts = (*self.protected, place) if protected else self.protected
        return attrs.evolve(self, fields=fields, protected=tuple(sorted(parts)))


def serve(
    conversation: Conversation,
    messages: Sequence[Message],
    wanted: Sequence[int],
    *,
    tokenizer: ControlledTokenizer,
    block: ThinkingBlock,
    empty: bool,
) -> Served:
    """Put trained turns behind their prompts, as far as the history before them is the prompt's.

    Args:
        conversation: the rendered messages.
        messages: the messages that it was rendered from.
        wanted: the indices of those to train.
        tokenizer: knows the control tokens.
        block: the template's.
        empty: whether a turn without thinking closes an open block; if not, it stays as the history shows it.
    """
    served = Served(conversation.text, conversation.protected, conversation.locate(range(len(messages))))
    for index in wanted:
        prompt = conversation.before(index, add_generation_prompt=True)
        if prompt is None or messages[index].role != "assistant":
            continue
        with_prompt = attrs.evolve(served, prompts={**served.prompts, index: prompt})
        # Nothing is served before the first message; templates write something without messages, or fail.
        if index or (with_prompt.begins(index) and prompt.endswith(conversation.header)):
            served = with_prompt
        if served.begins(index):
            if prompt.rstrip().endswith(THINK_OPEN):
                served = attrs.evolve(served, cut=len(prompt))
        else:
            served = _behind(conversation, served, messages[index], index, tokenizer, block, empty=empty)
    return served


def _behind(
    conversation: Conversation,
    served: Served,
    message: Message,
    index: int,
    tokenizer: ControlledTokenizer,
    block: ThinkingBlock,
    *,
    empty: bool,
) -> Served:
    """Put a turn behind its prompt; unchanged if they differ in more than what the prompt opens, or it stays open."""
    prompt, fields = served.prompts[index], served.fields[index]
    history = conversation.before(index, add_generation_prompt=False)
    gap = None if history is None else _gap(served, index, history, tokenizer)
    if gap is None:
        return served
    start, end = gap
    opening = prompt[start : len(prompt) - (end - start)]
    if "thinking" in fields.found and _TAG.search(opening):
        return served
    closing = block.closing_of(opening)
    if not closing:
        return served if closing is None else served.behind(prompt, start, end)
    if "thinking" in fields.dropped and message.thinking:
        thinking = message.thinking.strip()
        typed = bool(tokenizer.find_controls(thinking) or tokenizer.find_fragments(thinking))
        made = served.behind(prompt, start, end, thinking + closing)
        return made.with_thinking(index, (len(prompt), len(prompt) + len(thinking)), protected=typed)
    return served.behind(prompt, start, end, closing) if empty else served


def _gap(served: Served, index: int, history: str, tokenizer: ControlledTokenizer) -> Range | None:
    """The part of the text that a prompt's opening replaces; None if they differ before the turn or in its header.

    It is empty, or white space and tags that the opening ends with too.
    """
    text, prompt, limit = served.text, served.prompts[index], served.limit(index)
    pairs = enumerate(zip(text[:limit], prompt, strict=False))
    start = next((place for place, (one, other) in pairs if one != other), min(limit, len(prompt)))
    for control in (*tokenizer.find_controls(prompt), *tokenizer.find_controls(text, served.protected)):
        if control.start < start < control.end:
            start = control.start
    earlier = (end for other, each in served.fields.items() if other < index for _, end in each.found.values())
    if not prompt.startswith(history) or start < max(len(history), *earlier, 0):
        return None
    shared = range(min(limit, len(prompt)) - start, 0, -1)
    end = start + next((count for count in shared if prompt.endswith(text[start : start + count])), 0)
    return None if start == len(history) and text[end:limit].strip() else (start, end)


def find_thinking_block(template: ChatTemplate, tokenizer: ControlledTokenizer) -> ThinkingBlock:
    """Find what a template's generation prompt opens, by rendering conversations with known texts."""
    for asked in ((_ASKED,), (_RULE, _ASKED)):
        index = len(asked)
        messages = [*asked, Message(role="assistant", content="Answer")]
        thinking = [*asked, Message(role="assistant", content="Answer", thinking="Thought")]
        try:
            plain = Conversation(template, tokenizer, messages, None)
            thought = Conversation(template, tokenizer, thinking, None)
            prompt, history = (plain.before(index, add_generation_prompt=adds) or "" for adds in (True, False))
        except TemplateRefusedError:
            continue
        served = Served(plain.text, (), plain.locate(range(index + 1)), {index: prompt})
        gap = None if served.begins(index) else _gap(served, index, history, tokenizer)
        if gap is None:
            return ThinkingBlock()
        opening = prompt[gap[0] : len(prompt) - (gap[1] - gap[0])]
        found = thought.locate([index])[index].found
        if thought.text.startswith(f"{prompt}Thought") and {"thinking", "content"} <= found.keys():
            written = thought.text[found["thinking"][1] : found["content"][0]]
            closing: str | None = written.removesuffix(plain.text[gap[1] : served.limit(index)])
        else:
            closing = _closing(opening)
        return ThinkingBlock(opening, plain.text[gap[0] : gap[1]], closing)
    return ThinkingBlock()


def _closing(opening: str) -> str | None:
    r"""What closes an opening: its tag's counterpart, between white space as after the tag and the double of it.

    So "<think>\n" is closed by "\n</think>\n\n", as DeepSeek's and Qwen's templates do. Empty if no tag of it is
    open, None if the counterpart is unknown.
    """
    still_open: list[str] = []
    for tag in _TAG.findall(opening):
        if still_open and tag == _counterpart(still_open[-1]):
            still_open.pop()
        else:
            still_open.append(tag)
    if not still_open:
        return ""
    counterpart, space = _counterpart(still_open[-1]), opening[len(opening.rstrip()) :]
    return None if counterpart is None or len(still_open) > 1 else f"{space}{counterpart}{space * 2}"


def _counterpart(tag: str) -> str | None:
    """The tag that closes a tag; None if unknown."""
    for start, end in _STARTS:
        if tag.startswith(start):
            return end + tag.removeprefix(start)
    if tag.startswith("<|"):
        return None if tag.endswith("|>") else f"<{tag[2:-1]}|>"
    return f"{tag[0]}/{tag[1:]}"
