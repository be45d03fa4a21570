"""The renderer: messages → token ids and a label mask, one object for training, evaluation and serving.

How a mask is made, for any template: private-use characters (sentinels, here ⟦⟧) are put around each trained field,

    messages    user(U)  assistant(⟦A⟧)
    rendering   <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎⟦A⟧<|im_end|>⏎
    trained                                                         A <|im_end|>

they are found in the rendering and removed, and what is left must be the rendering without them. A trained turn runs
from where the generation prompt ends, so that `<think>` is learnt where the model has to write it, to its end-of-turn
token; the newline after that is not trained.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, RowError, UsageError
from modelwright.core.api.files import read_json
from modelwright.core.api.records import Example, Message, digest_json
from modelwright.core.conversation import Conversation, Fields
from modelwright.core.templates import ChatTemplate, TemplateRefusedError, read_template
from modelwright.core.thinking import OPEN
from modelwright.core.tokenizer import Control, ControlledTokenizer, Encoded, TokenizerFiles

__all__ = [
    "RENDERER_VERSION",
    "Rendered",
    "Renderer",
    "Span",
    "TemplateRefusedError",
    "checked_renderer",
    "read_template",
]

# Part of every fingerprint: raised when the same messages begin to give other tokens or another mask.
RENDERER_VERSION = 1

# The file of a model folder that records, among other things, the fingerprint of its renderer.
MODEL_RECORD = "modelwright.json"

Turns = Literal["all", "last", "split"]
SpanKind = Literal["thinking", "answer", "end", "text"]


@frozen
class Span:
    """A stretch of trained tokens.

    Attributes:
        kind: "thinking" and "answer" with what the template writes before each, "end" (the end-of-turn token), or
            "text" (an example without turns). Thinking that is not to be learnt has no span.
        message: which message it belongs to, from 0; -1 in a text without turns.
        start: its first token.
        end: the token after its last.
    """

    kind: SpanKind
    message: int
    start: int
    end: int


@frozen
class Rendered:
    """An example as the model learns it.

    Attributes:
        ids: the tokens.
        trained: for each token, whether the model is taught to predict it.
        spans: what the trained tokens are, from left to right.
        anomalies: what is not as the example says, each name once:
            "thinking-dropped": the template leaves out the thinking of a trained turn;
            "span-lost": a trained turn cannot be found in the rendering, and is not trained;
            "end-missing": no end-of-turn token follows a trained turn, so the model would not learn to stop;
            "template-reads-content": the template acts upon control tokens typed in content;
            "begin-doubled": two begin-of-sequence tokens stand at the front;
            "nothing-trained": no token is trained.
        text: the rendering.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    spans: tuple[Span, ...]
    anomalies: tuple[str, ...]
    text: str


@frozen
class _Stretch:
    """A trained stretch of the rendering, in characters."""

    kind: SpanKind
    message: int
    start: int
    end: int


class Renderer:
    """A tokenizer with a chat template.

    Attributes:
        fingerprint: sha256 over the tokenizer's content, the template, the special tokens, the date that the template
            is told (where it asks), and `RENDERER_VERSION`; equal fingerprints give equal tokens.
        stop_token_ids: the tokens that end an answer: end-of-sequence, and what the template puts after one.
        special_ids: the named special tokens' ids, such as {"eos_token": 2}.
        vocab_size: the highest id + 1, added tokens included.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._files = files
        self._tokenizer = ControlledTokenizer(files)
        self._template = None if files.template is None else ChatTemplate(files.template, files.template_file)
        self.special_ids = self._tokenizer.special_ids
        self.vocab_size = self._tokenizer.vocab_size
        self.fingerprint = digest_json(
            {
                "version": RENDERER_VERSION,
                "tokenizer": files.digest(),
                "template": files.template,
                "special": files.special(),
                "date": self._template and self._template.date,
            }
        )
        eos = self._tokenizer.eos_id
        self._turn_ends: frozenset[int] = frozenset() if eos is None else frozenset({eos})
        self.stop_token_ids = self._turn_ends
        if self._template is not None:
            self._find_turn_ends()

    @classmethod
    def from_folder(cls, folder: Path, *, chat_template: str | None = None) -> Renderer:
        """Read a folder in Hugging Face layout; `chat_template`, a template's text, takes the place of its own.

        Raises:
            UsageError: there is no tokenizer.json, or a file or the template cannot be read.
            MissingDependencyError: the `train` extra is not installed.
        """
        return cls(TokenizerFiles.read(folder, template=chat_template))

    def save(self, folder: Path) -> None:
        """Write a folder that `from_folder` and transformers' `AutoTokenizer` read as this same tokenizer."""
        self._files.write(folder)

    def train(self, example: Example, turns: Turns = "all") -> list[Rendered]:
        """Render an example for training.

        Args:
            example: a conversation, or plain text, all of which is trained.
            turns: the assistant turns to train: "all", the "last", or "split": a rendering for each, ending with it. A
                message's own `train` goes before this.

        Raises:
            RowError: the template refuses the example, or it is not valid text.
            UsageError: the tokenizer has no chat template.
        """
        try:
            if example.text is not None:
                return [self._train_text(example.text)]
            wanted = _wanted(example.messages, turns)
            if turns != "split" or not wanted:
                return [self._train_conversation(example.messages, example.tools, wanted)]
            return [self._train_conversation(example.messages[: index + 1], example.tools, [index]) for index in wanted]
        except TemplateRefusedError as error:
            raise RowError(str(error)) from error

    def prompt(self, messages: Sequence[Message], *, tools: str | None = None) -> tuple[int, ...]:
        """The tokens after which the model answers.

        Raises:
            TemplateRefusedError: the template refuses the conversation, or it is not valid text.
            UsageError: the tokenizer has no chat template.
        """
        conversation = self._conversation(messages, tools, add_generation_prompt=True)
        ids = self._tokenizer.encode(conversation.text, conversation.protected).ids
        if not ids:
            raise TemplateRefusedError("the chat template makes nothing of this conversation")
        return ids

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a plain text that the model goes on from, as it is trained on such texts.

        Control tokens in it are ordinary text. The begin token stands first where the tokenizer's post-processor puts
        it there.

        Raises:
            TemplateRefusedError: `text` has a lone surrogate.
        """
        return (*self._begin, *self._encode_plain(text).ids)

    @functools.cached_property
    def opens_thinking(self) -> bool:
        """Whether a prompt ends inside `<think>` already: then what the model writes begins with its thinking."""
        if self._template is None:
            return False
        asked, opening = Message(role="user", content="Question"), Message(role="system", content="Rule")
        for messages in ((asked,), (opening, asked)):
            try:
                conversation = self._conversation(messages, None, add_generation_prompt=True)
            except TemplateRefusedError:
                continue
            return conversation.text.rstrip().endswith(OPEN)
        return False

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are skipped."""
        return self._tokenizer.decode(ids)

    def spell(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens as they are written."""
        return self._tokenizer.spell(ids)

    @property
    def _begin(self) -> tuple[int, ...]:
        return () if self._tokenizer.bos_id is None else (self._tokenizer.bos_id,)

    def _encode_plain(self, text: str) -> Encoded:
        return self._tokenizer.encode(text, ((0, len(text)),))

    def _conversation(
        self, messages: Sequence[Message], tools: str | None, *, add_generation_prompt: bool = False
    ) -> Conversation:
        if self._template is None:
            raise UsageError(
                'the tokenizer has no chat template: give one by [model] chat_template = "chatml", or a file'
            )
        return Conversation(
            self._template, self._tokenizer, messages, tools, add_generation_prompt=add_generation_prompt
        )

    def _find_turn_ends(self) -> None:
        """Find the tokens that the template puts after an answer, by rendering a conversation that it accepts.

        The last answer's goes into `stop_token_ids`; an earlier one's is only trained, since some templates (gpt-oss)
        put the same token after thinking.
        """
        asked, answered = Message(role="user", content="Question"), Message(role="assistant", content="Answer")
        opening = Message(role="system", content="Rule")
        short = (asked, answered)
        for messages in ((*short, *short), (opening, *short, *short), short, (opening, *short)):
            try:
                conversation = self._conversation(messages, None)
            except TemplateRefusedError:
                continue
            answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
            controls = self._tokenizer.find_controls(conversation.text)
            for index, fields in conversation.locate(answers).items():
                if "content" not in fields.found:
                    continue
                control = _next_control(conversation.text, fields.found["content"][1], controls)
                ends = frozenset() if control is None else frozenset({control.id})
                self._turn_ends |= ends
                if index == answers[-1]:
                    self.stop_token_ids |= ends
            return

    def _train_text(self, text: str) -> Rendered:
        """Plain text: all of it is trained, with the end-of-sequence token."""
        encoded = self._encode_plain(text)
        eos = self._tokenizer.eos_id
        before, after = self._begin, () if eos is None else (eos,)
        end = len(before) + len(encoded.ids)
        spans = [Span("text", -1, len(before), end), Span("end", -1, end, end + len(after))]
        anomalies = [
            name for name, found in (("end-missing", not after), ("nothing-trained", not encoded.ids)) if found
        ]
        return Rendered(
            ids=(*before, *encoded.ids, *after),
            trained=(False,) * len(before) + (True,) * (len(encoded.ids) + len(after)),
            spans=tuple(span for span in spans if span.start < span.end),
            anomalies=tuple(anomalies),
            text=text,
        )

    def _train_conversation(self, messages: Sequence[Message], tools: str | None, wanted: Sequence[int]) -> Rendered:
        conversation = self._conversation(messages, tools)
        controls = self._tokenizer.find_controls(conversation.text, conversation.protected)
        stretches: list[_Stretch] = []
        anomalies: dict[str, None] = {}
        for index, fields in conversation.locate(wanted).items():
            found, strange = self._turn(conversation, messages, index, fields, controls)
            stretches += found
            anomalies.update(dict.fromkeys(strange))
        if conversation.template_reads_content:
            anomalies["template-reads-content"] = None
        encoded = self._tokenizer.encode(conversation.text, conversation.protected)
        begin = self.special_ids.get("bos_token")
        if begin is not None and encoded.ids[:2] == (begin, begin):
            anomalies["begin-doubled"] = None
        spans = _token_spans(stretches, encoded)
        trained = [False] * len(encoded.ids)
        for span in spans:
            trained[span.start : span.end] = [True] * (span.end - span.start)
        if not any(trained):
            anomalies["nothing-trained"] = None
        return Rendered(
            ids=encoded.ids,
            trained=tuple(trained),
            spans=tuple(spans),
            anomalies=tuple(anomalies),
            text=conversation.text,
        )

    def _turn(
        self,
        conversation: Conversation,
        messages: Sequence[Message],
        index: int,
        fields: Fields,
        controls: Sequence[Control],
    ) -> tuple[list[_Stretch], list[str]]:
        """The trained stretches of one message, and what is strange about it."""
        speaks = messages[index].role == "assistant"
        places = sorted(fields.found.values())
        first = places[0][0] if places else None
        start = self._turn_start(conversation, index, first, controls) if speaks else first
        if fields.lost or fields.dropped - {"thinking"} or start is None:
            return [], ["span-lost"]
        strange = ["thinking-dropped"] if fields.dropped else []
        last = max((end for _, end in places), default=start)
        closing = "calls" in fields.found or "content" not in fields.found
        limit = _next_field(conversation, range(index + 1, len(messages))) if closing else None
        control = self._turn_end(conversation.text, last, controls, limit)
        if control is None and speaks:
            strange.append("end-missing")
        if control is not None and limit is not None:
            last = control.start
        stretches = []
        middle = start
        if "thinking" in fields.found:
            answers = [place for kind, place in fields.found.items() if kind != "thinking"]
            middle = min((begin for begin, _ in answers), default=last)
            if messages[index].train_thinking:
                stretches.append(_Stretch("thinking", index, start, middle))
        stretches.append(_Stretch("answer", index, middle, last))
        if control is not None:
            stretches.append(_Stretch("end", index, last, control.end))
        return [each for each in stretches if each.start < each.end], strange

    def _turn_start(
        self, conversation: Conversation, index: int, first: int | None, controls: Sequence[Control]
    ) -> int | None:
        """Where the model takes over: the end of the generation prompt, else the first field's start.

        Templates that show earlier turns in another way when a new one comes have prompts that are no prefix; then the
        generation prompt alone (`<|im_start|>assistant`) is looked for before the field.
        """
        prompt = conversation.before(index, add_generation_prompt=True)
        limit = len(conversation.text) if first is None else first
        if prompt is None:
            return first
        if len(prompt) <= limit and conversation.text.startswith(prompt):
            return len(prompt)
        history = conversation.before(index, add_generation_prompt=False)
        if first is None or history is None or not prompt.startswith(history) or len(prompt) == len(history):
            return first
        header = prompt[len(history) :]
        found = conversation.text.rfind(header, 0, first)
        start = found + len(header)
        between = any(control.id in self._turn_ends and start <= control.start < first for control in controls)
        return first if found < 0 or between else start

    def _turn_end(self, text: str, last: int, controls: Sequence[Control], limit: int | None) -> Control | None:
        """The end-of-turn token after `last`, the end of a turn's last field.

        Content is followed by it, or by white space and it. With a limit, it is the first one before that: calls and
        thinking are closed by brackets and tags, which are the model's to write.
        """
        if limit is not None:
            between = (each for each in controls if last <= each.start < limit)
            return next((each for each in between if each.id in self._turn_ends), None)
        control = _next_control(text, last, controls)
        return control if control is not None and control.id in self._turn_ends else None


def checked_renderer(folder: Path) -> Renderer:
    """The renderer of a model's folder, which must be the one that the model was trained with.

    Raises:
        ModelwrightError: its fingerprint is another than the one recorded in the folder's modelwright.json.
        UsageError: as `Renderer.from_folder`.
    """
    renderer = Renderer.from_folder(folder)
    record = read_json(folder / MODEL_RECORD) or {}
    recorded = record.get("renderer", renderer.fingerprint)
    if recorded != renderer.fingerprint:
        raise ModelwrightError(
            f"{folder}: its tokenizer or chat template is not the one that the model was trained with "
            f"(renderer {renderer.fingerprint[:12]}, trained with {str(recorded)[:12]}); restore the tokenizer's files"
        )
    return renderer


def _wanted(messages: Sequence[Message], turns: Turns) -> list[int]:
    """Which messages are trained."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    chosen = set(answers[-1:] if turns == "last" else answers)
    return [
        index for index, message in enumerate(messages) if (index in chosen if message.train is None else message.train)
    ]


def _next_field(conversation: Conversation, later: Sequence[int]) -> int:
    """Where the first field of the later messages begins; the rendering's end where there is none."""
    places = [place for fields in conversation.locate(later).values() for place in fields.found.values()]
    return min((start for start, _ in places), default=len(conversation.text))


def _next_control(text: str, position: int, controls: Iterable[Control]) -> Control | None:
    """The first control token at or after `position`, if nothing but white space lies between."""
    control = next((each for each in controls if each.start >= position), None)
    return None if control is None or text[position : control.start].strip() else control


def _token_spans(stretches: Iterable[_Stretch], encoded: Encoded) -> list[Span]:
    """The stretches in tokens: every token that shares a character with one."""
    starts = [start for start, _ in encoded.offsets]
    ends = [end for _, end in encoded.offsets]
    spans: list[Span] = []
    taken = 0
    for stretch in sorted(stretches, key=lambda each: each.start):
        low, high = bisect.bisect_right(ends, stretch.start), bisect.bisect_left(starts, stretch.end)
        low = max(low, taken)
        if low < high:
            spans.append(Span(stretch.kind, stretch.message, low, high))
            taken = high
    return spans
