"""The trained stretches of a rendered conversation, in characters and in tokens.

A trained turn runs from the end of its generation prompt to its end-of-turn token:

    rendering   <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎A<|im_end|>⏎
    prompt      <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎
    trained                                                        A<|im_end|>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import frozen

from modelwright.core.api.records import Message
from modelwright.core.chat.sentinels import Conversation
from modelwright.core.chat.served import Served
from modelwright.core.chat.tokenizer import Control, ControlledTokenizer, Encoded, Range
from modelwright.core.chat.turn_ends import TurnEnds

SpanKind = Literal["thinking", "answer", "end", "text"]

# The number of characters before a prompt's end that are compared in tokens, if no control token is nearer.
WINDOW = 64


@frozen
class Stretch:
    """A trained stretch of the rendering."""

    kind: SpanKind
    message: int
    start: int
    end: int


@frozen
class Span:
    """A stretch of trained tokens.

    Attributes:
        kind: "thinking" and "answer" with what the template writes before each, "end" (the end-of-turn token), or
            "text" (an example without turns). Thinking that is not trained has no span.
        message: which message it belongs to, from 0; -1 in a text without turns.
        start: its first token.
        end: the token after its last.
    """

    kind: SpanKind
    message: int
    start: int
    end: int


@frozen
class Layout:
    """A rendered conversation.

    Attributes:
        text: the rendering.
        stretches: the trained ones.
        prompts: where the prompts of trained turns end, if that is known, and the last tokens of each prompt alone, as
            far as they do not depend on the text before them.
        anomalies: deviations from the messages, with the names of `Rendered`.
        protected: the parts that a user typed and that look like control tokens.
        controls: the number of control tokens outside the protected parts; None if not counted.
        cut: a place where tokens end even if the tokenizer would join the text on both sides, as a prompt's do.
    """

    text: str
    stretches: tuple[Stretch, ...]
    prompts: Mapping[int, tuple[int, ...]]
    anomalies: tuple[str, ...]
    protected: tuple[Range, ...] = ()
    controls: int | None = None
    cut: int | None = None


def lay_out(
    conversation: Conversation,
    messages: Sequence[Message],
    wanted: Sequence[int],
    *,
    served: Served,
    tokenizer: ControlledTokenizer,
    turn_ends: TurnEnds,
) -> Layout:
    """Find the trained stretches.

    Args:
        conversation: the rendered messages.
        messages: the messages that it was rendered from.
        wanted: the indices of those to train.
        served: the conversation with trained turns behind their prompts.
        tokenizer: knows the control tokens.
        turn_ends: the tokens that end a turn.

    Raises:
        TemplateRefusedError: the tokenizer fails on the text.
    """
    controls = tokenizer.find_controls(served.text, served.protected)
    stretches: list[Stretch] = []
    prompts: dict[int, tuple[int, ...]] = {}
    anomalies: dict[str, None] = {}
    for index in wanted:
        turn = _Turn(conversation, served, messages, index, controls, tokenizer, turn_ends)
        prompt_end = turn.prompt_end()
        found, strange = turn.find(prompt_end)
        stretches += found
        anomalies.update(dict.fromkeys(strange))
        if found and prompt_end is not None:
            prompts[prompt_end] = _last_tokens(served, prompt_end, controls, tokenizer)
        if found and not served.begins(index):
            anomalies["prompt-boundary"] = None
    if any("content" in each.dropped and messages[index].role != "assistant" for index, each in served.fields.items()):
        anomalies["message-dropped"] = None
    if conversation.template_reads_content:
        anomalies["template-reads-content"] = None
    return Layout(
        text=served.text,
        stretches=tuple(stretches),
        prompts=prompts,
        anomalies=tuple(anomalies),
        protected=served.protected,
        controls=len(controls),
        cut=served.cut,
    )


def _last_tokens(
    served: Served,
    end: int,
    controls: Sequence[Control],
    tokenizer: ControlledTokenizer,
) -> tuple[int, ...]:
    """The last tokens of `text[:end]`: from its last control token or after its last field, whichever is nearer.

    Tokenizers encode the texts on both sides of a control token separately. After a field the first token is left out,
    since it could be another one after another text.
    """
    said = max((high for each in served.fields.values() for _, high in each.found.values() if high <= end), default=0)
    control = max((each.start for each in controls if each.end <= end), default=-1)
    apart = control >= max(said, end - WINDOW)
    begin = max(control, end - WINDOW, 0)
    said = max(said, begin)
    if said >= end and not apart:
        return ()
    text = served.text[begin:end]
    protected = [(max(low - begin, 0), high - begin) for low, high in served.protected if begin < high <= end]
    encoded = tokenizer.encode(text, protected)
    return encoded.ids if apart else encoded.ids[encoded.tokens(said - begin, said - begin + 1)[1] :]


@frozen
class _Turn:
    """One trained message."""

    conversation: Conversation
    served: Served
    messages: Sequence[Message]
    index: int
    controls: Sequence[Control]
    tokenizer: ControlledTokenizer
    turn_ends: TurnEnds

    def find(self, prompt_end: int | None) -> tuple[list[Stretch], list[str]]:
        """Its stretches and anomalies. It begins at the end of its prompt, or else at its first field."""
        index, fields = self.index, self.served.fields[self.index]
        start = self._first() if prompt_end is None else prompt_end
        if fields.lost or fields.dropped - {"thinking"} or start is None:
            return [], ["span-lost"]
        strange = ["thinking-dropped"] if fields.dropped else []
        last, control = self._end(max((end for _, end in fields.found.values()), default=start))
        if control is None and self._speaks():
            strange.append("end-missing")
        stretches = []
        middle = start
        if "thinking" in fields.found:
            middle = self._thought(last)
            if self.messages[index].train_thinking:
                stretches.append(Stretch("thinking", index, start, middle))
        stretches.append(Stretch("answer", index, middle, last))
        if control is not None:
            stretches.append(Stretch("end", index, last, control.end))
        return [each for each in stretches if each.start < each.end], strange

    def prompt_end(self) -> int | None:
        """Where the model's output begins, the end of the generation prompt; None if unknown.

        If a template changes earlier turns when a new one is added, the prompt is not a prefix of the rendering. Then
        the text that the generation prompt adds (`<|im_start|>assistant`) is searched for before the field.
        """
        if not self._speaks():
            return None
        prompt = self.served.prompts.get(self.index)
        if prompt is not None and self.served.begins(self.index):
            return len(prompt)
        first = self._first()
        # Templates may fail without messages.
        header = self.conversation.header if prompt is None else ""
        if prompt is not None and not header:
            history = self.conversation.before(self.index, add_generation_prompt=False)
            if history is None or not prompt.startswith(history):
                return None
            header = prompt[len(history) :] or self._from_last_control(prompt)
        return self._after(header, first) if header else None

    def _speaks(self) -> bool:
        return self.messages[self.index].role == "assistant"

    def _first(self) -> int | None:
        """The start of its first field."""
        return min((start for start, _ in self.served.fields[self.index].found.values()), default=None)

    def _from_last_control(self, prompt: str) -> str:
        """The header of a turn if the template adds none for it, such as Mistral's `[/INST]`."""
        controls = self.tokenizer.find_controls(prompt)
        return prompt[controls[-1].start :] if controls else ""

    def _after(self, header: str, first: int | None) -> int | None:
        """The end of the turn's header in the rendering: all of it, or without the tag that it opens for the model.

        R1's generation prompt opens `<think>`, which is not in the history.
        """
        text = self.served.text
        end = self._place(header, first)
        if end is None:
            opening = self.tokenizer.find_controls(header)[-1:]
            end = self._place(header[: opening[0].start], first) if opening else None
            if end is None or text.startswith(header[opening[0].start : opening[0].end], end):
                return None
        between = first is not None and any(
            control.id in self.turn_ends.ends and end <= control.start < first for control in self.controls
        )
        return None if between else end

    def _place(self, header: str, first: int | None) -> int | None:
        """The end of the last `header` before the first field; without fields, of the first one after earlier turns."""
        text = self.served.text
        if not header:
            return None
        if first is None:
            found = text.find(header, self._last_field(), self._next_field())
        else:
            found = text.rfind(header, 0, first)
        return None if found < 0 else found + len(header)

    def _end(self, last: int) -> tuple[int, Control | None]:
        """The end of the answer, and the end-of-turn token after `last`, the end of the turn's last field.

        After content only white space and closers may come before this token. After calls and thinking come brackets
        and tags, which the model has to write: there it is the first such token before the next field.
        """
        found, text = self.served.fields[self.index].found, self.served.text
        if "content" in found and "calls" not in found:
            control = self.turn_ends.after(text, last, self.controls)
            gap = "" if control is None else text[last : control.start]
            return (last + len(gap) if gap.strip() else last), control
        limit = self._next_field()
        between = (each for each in self.controls if last <= each.start < limit)
        control = next((each for each in between if each.id in self.turn_ends.ends), None)
        return (last if control is None else control.start), control

    def _thought(self, last: int) -> int:
        """The end of the thinking, including what the template writes after it.

        Before content, everything up to it belongs to the thinking. Before a call's name there is also the opening of
        the call, so thinking ends with the first control token and the white space after it.
        """
        found, text = self.served.fields[self.index].found, self.served.text
        answers = [(begin, kind) for kind, (begin, _) in found.items() if kind != "thinking"]
        middle, kind = min(answers, default=(last, "content"))
        closing = next((each.end for each in self.controls if found["thinking"][1] <= each.start < middle), None)
        if kind != "calls" or closing is None:
            return middle
        return closing + len(text[closing:middle]) - len(text[closing:middle].lstrip())

    def _last_field(self) -> int:
        """The end of the last field of earlier messages, or the start of the rendering."""
        earlier = (fields for index, fields in self.served.fields.items() if index < self.index)
        return max((end for fields in earlier for _, end in fields.found.values()), default=0)

    def _next_field(self) -> int:
        """The start of the first field of later messages, or the end of the rendering."""
        later = (fields for index, fields in self.served.fields.items() if index > self.index)
        places = [start for fields in later for start, _ in fields.found.values()]
        return min(places, default=len(self.served.text))


def token_spans(layout: Layout, encoded: Encoded) -> tuple[list[Span], bool]:
    """The stretches in tokens, and whether a prompt alone ends in other tokens.

    A stretch has every token that shares a character with it, except those that belong to the prompt before it.
    """
    spans: list[Span] = []
    taken, inside, left = 0, False, dict(layout.prompts)
    for stretch in sorted(layout.stretches, key=lambda each: each.start):
        low, high = encoded.tokens(stretch.start, stretch.end)
        prompt = left.pop(stretch.start, None)
        if prompt is not None:
            after = _first_after(stretch.start, prompt, low, encoded)
            inside, low = inside or after is None, after or low
        low = max(low, taken)
        if low < high:
            spans.append(Span(stretch.kind, stretch.message, low, high))
            taken = high
    # These prompts are followed by thinking that is not trained.
    for end, prompt in left.items():
        inside |= _first_after(end, prompt, encoded.tokens(end, end + 1)[0], encoded) is None
    return spans, inside


def _first_after(end: int, prompt: tuple[int, ...], low: int, encoded: Encoded) -> int | None:
    """The first token after a prompt; None if the prompt ends in other tokens here than alone.

    Args:
        end: the character at which the prompt ends.
        prompt: the last tokens of the prompt alone.
        low: the first token that shares a character with the text after the prompt.
        encoded: the whole rendering.
    """
    count = len(prompt)
    if not count:
        return low if end == 0 or encoded.tokens(end - 1, end)[1] == low else None
    if encoded.ids[low - count : low] == prompt:
        return low
    # Several tokens can share a place, and some (those that strip the white space after them) reach beyond the prompt.
    high = encoded.tokens(end, end + 1)[1]
    return next((at for at in range(low + 1, high + 1) if encoded.ids[at - count : at] == prompt), None)
