"""The renderer: messages → token ids and a label mask, one object for training, evaluation and serving.

The mask is made in the same way for any template: private-use characters (sentinels, here ⟦⟧) are put around each
trained field,

    messages    user(U)  assistant(⟦A⟧)
    rendering   <|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎⟦A⟧<|im_end|>⏎
    trained                                                         A <|im_end|>

then found in the rendering and removed, and the rest must equal the rendering without them. A trained turn runs from
the end of the generation prompt, so that `<think>` is trained if the model has to write it, to its end-of-turn token;
the newline after that is not trained.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
from attrs import frozen

from modelwright.core.api.answers import THINK_OPEN
from modelwright.core.api.errors import ModelwrightError, RowError, UsageError
from modelwright.core.api.files import read_json
from modelwright.core.api.records import Example, Message, digest_json
from modelwright.core.api.wording import closest, listed
from modelwright.core.chat.layout_cache import LayoutCache
from modelwright.core.chat.sentinels import Conversation
from modelwright.core.chat.served import ThinkingBlock, find_thinking_block
from modelwright.core.chat.spans import Layout, Span, token_spans
from modelwright.core.chat.templates import (
    ChatTemplate,
    TemplateRefusedError,
    read_template,
    with_end,
    without_opening,
)
from modelwright.core.chat.tokenizer import ControlledTokenizer, Encoded
from modelwright.core.chat.tokenizer_files import TokenizerFiles
from modelwright.core.chat.turn_ends import TurnEnds, find_turn_ends

__all__ = [
    "RENDERER_VERSION",
    "Rendered",
    "Renderer",
    "Span",
    "TemplateRefusedError",
    "checked_renderer",
    "read_template",
]

# Part of every fingerprint: increased when the same messages give other tokens or another mask than before.
RENDERER_VERSION = 2

# The file in a model's folder that records, among other things, the fingerprint of its renderer.
MODEL_RECORD = "modelwright.json"

Turns = Literal["auto", "all", "last", "split"]


@frozen
class Rendered:
    """An example in tokens, as the model is trained on it.

    Attributes:
        ids: the tokens.
        spans: the trained tokens, from left to right.
        anomalies: where the rendering deviates from the example, each name once:
            "thinking-dropped": the template leaves out the thinking of a trained turn;
            "span-lost": a trained turn cannot be found in the rendering, and is not trained;
            "end-missing": no end-of-turn token follows a trained turn, so the model does not learn to stop;
            "message-dropped": the template leaves out a system, user or tool message;
            "prompt-boundary": alone, the prompt of a trained turn has other tokens than it has here, so serving gives
                the model a prompt that it was not trained on;
            "template-reads-content": the template reacts to control tokens typed in content;
            "begin-doubled": it begins with two begin-of-sequence tokens;
            "nothing-trained": no token is trained.
        text: the rendering.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    anomalies: tuple[str, ...]
    text: str

    @property
    def trained(self) -> tuple[bool, ...]:
        """For each token, whether the model is taught to predict it."""
        trained = [False] * len(self.ids)
        for span in self.spans:
            trained[span.start : span.end] = [True] * (span.end - span.start)
        return tuple(trained)


class Renderer:
    """A tokenizer with a chat template.

    Args:
        files: the tokenizer and the template.
        empty_thinking: whether a trained turn without thinking closes the block that its prompt opens. It changes what
            `train` makes, and nothing that is served, so it is not part of the fingerprint.

    Attributes:
        fingerprint: sha256 of the tokenizer's content, the template, the special tokens, the date that the template
            gets (if it asks for one), and `RENDERER_VERSION`; equal fingerprints give equal tokens.
        stop_token_ids: the tokens that end an answer: end-of-sequence, and the one that the template puts after it.
        special_ids: the named special tokens' ids, such as {"eos_token": 2}.
        vocab_size: the highest id + 1, added tokens included.
    """

    def __init__(self, files: TokenizerFiles, *, empty_thinking: bool = False) -> None:
        self._files = files
        self.empty_thinking = empty_thinking
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
        eos = frozenset() if self._tokenizer.eos_id is None else frozenset({self._tokenizer.eos_id})
        self._turn_ends = TurnEnds(eos, eos)
        if self._template is not None:
            self._turn_ends = find_turn_ends(self._template, self._tokenizer)
        self.stop_token_ids = self._turn_ends.stops
        self._layouts: LayoutCache | None = None

    @classmethod
    def from_folder(cls, folder: Path, *, chat_template: str | None = None, empty_thinking: bool = False) -> Renderer:
        """Read a folder in Hugging Face layout; `chat_template`, the text of a template, replaces its own.

        Raises:
            UsageError: there is no tokenizer.json, or a file or the template cannot be read.
            MissingDependencyError: the `train` extra is not installed.
        """
        return cls(TokenizerFiles.read(folder, template=chat_template), empty_thinking=empty_thinking)

    def adapted(self, *, omit_thinking: bool = False, end: str | None = None) -> Renderer:
        """The same with a template that is changed for training and serving alike.

        Args:
            omit_thinking: generation prompts open no thinking block that the history does not show.
            end: the token that ends the last answer, for a template that puts none there.

        Raises:
            UsageError: the tokenizer does not have the token, or the template ends answers with another one.
        """
        source = self._files.template
        if source is None:
            return self
        if omit_thinking and self.thinking_block.opening:
            source = without_opening(source, self.thinking_block.opening, self.thinking_block.shared)
        if end is not None:
            source = self._ended(source, end)
        return Renderer(attrs.evolve(self._files, template=source), empty_thinking=self.empty_thinking)

    def save(self, folder: Path) -> None:
        """Write a folder that `from_folder` and transformers' `AutoTokenizer` read as the same tokenizer."""
        self._files.write(folder)

    def train(self, example: Example, turns: Turns = "all") -> list[Rendered]:
        """Render an example for training.

        Args:
            example: a conversation, or plain text, all of which is trained.
            turns: the assistant turns to train: "all" in one rendering, the "last", or "split": a rendering for each,
                ending with it. "auto" is "all", but "split" where that has fewer anomalies: where the template shows
                earlier turns otherwise than it serves them. A message's own `train` takes precedence.

        Raises:
            RowError: the template refuses the example, or it is not valid text.
            UsageError: the tokenizer has no chat template.
        """
        try:
            if example.text is not None:
                return [self._train_text(example.text)]
            return self._train_turns(example, turns)
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
            raise TemplateRefusedError("the chat template renders this conversation as an empty text")
        return ids

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a plain text that the model continues, in the same form as it is trained on such texts.

        Control tokens in it are ordinary text. The begin-of-sequence token comes first if the tokenizer's
        post-processor adds it.

        Raises:
            TemplateRefusedError: `text` has a lone surrogate.
        """
        return (*self._begin, *self._encode_plain(text).ids)

    @functools.cached_property
    def opens_thinking(self) -> bool:
        """Whether prompts end inside `<think>`, so that the model's output begins with its thinking."""
        if self._template is None:
            return False
        question, opening = Message(role="user", content="Question"), Message(role="system", content="Rule")
        for messages in ((question,), (opening, question)):
            try:
                conversation = self._conversation(messages, None, add_generation_prompt=True)
            except TemplateRefusedError:
                continue
            return conversation.text.rstrip().endswith(THINK_OPEN)
        return False

    @functools.cached_property
    def thinking_block(self) -> ThinkingBlock:
        """What generation prompts write that the history of a conversation does not show."""
        return ThinkingBlock() if self._template is None else find_thinking_block(self._template, self._tokenizer)

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    @property
    def date(self) -> str | None:
        """The fixed date that the template gets, in ISO 8601; None if it does not ask for one."""
        return None if self._template is None else self._template.date

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are skipped."""
        return self._tokenizer.decode(ids)

    def spell(self, ids: Sequence[int]) -> str:
        """The text of `ids`, including special tokens."""
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
            raise _without_template()
        return Conversation(
            self._template, self._tokenizer, messages, tools, add_generation_prompt=add_generation_prompt
        )

    def _ended(self, source: str, end: str) -> str:
        """The template's text with `end` after the last answer."""
        key = f'[data.tokens] end = "{end}"'
        if end not in self._tokenizer.added:
            close = closest(end, self._tokenizer.added)
            meant = f", did you mean {close}?" if close else f": choose one of {listed(self._tokenizer.added, 10)}"
            raise UsageError(f"{key}: the tokenizer has no such token{meant}")
        found = {self.spell([number]) for number in self._turn_ends.answers}
        if not found:
            return with_end(source, end)
        if end not in found:
            raise UsageError(f"{key}: the chat template ends answers with {listed(sorted(found), 3)}: remove the key")
        return source

    def _train_text(self, text: str) -> Rendered:
        """Render plain text, all of which is trained, with the end-of-sequence token."""
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
            spans=tuple(span for span in spans if span.start < span.end),
            anomalies=tuple(anomalies),
            text=text,
        )

    def _train_conversation(self, messages: Sequence[Message], tools: str | None, wanted: Sequence[int]) -> Rendered:
        layout = self._laid_out(messages, tools, wanted)
        encoded = self._tokenizer.encode(layout.text, layout.protected, controls=layout.controls)
        anomalies = list(layout.anomalies)
        begin = self.special_ids.get("bos_token")
        if begin is not None and encoded.ids[:2] == (begin, begin):
            anomalies.append("begin-doubled")
        spans, inside = token_spans(layout, encoded)
        if inside and layout.cut is not None:
            encoded = self._tokenizer.encode_at(layout.text, layout.protected, layout.cut)
            spans, inside = token_spans(layout, encoded)
        if inside and "prompt-boundary" not in anomalies:
            anomalies.append("prompt-boundary")
        if not spans:
            anomalies.append("nothing-trained")
        return Rendered(ids=encoded.ids, spans=tuple(spans), anomalies=tuple(anomalies), text=layout.text)

    def _train_turns(self, example: Example, turns: Turns) -> list[Rendered]:
        wanted = _wanted(example.messages, turns)
        if turns == "split" and wanted:
            return self._train_split(example, wanted)
        whole = self._train_conversation(example.messages, example.tools, wanted)
        if turns == "auto" and len(wanted) > 1 and whole.anomalies:
            # Templates may refuse a conversation that ends early, such as with a call.
            with contextlib.suppress(TemplateRefusedError):
                split = self._train_split(example, wanted)
                if {name for each in split for name in each.anomalies} < set(whole.anomalies):
                    return split
        return [whole]

    def _train_split(self, example: Example, wanted: Sequence[int]) -> list[Rendered]:
        return [self._train_conversation(example.messages[: index + 1], example.tools, [index]) for index in wanted]

    def _laid_out(self, messages: Sequence[Message], tools: str | None, wanted: Sequence[int]) -> Layout:
        if self._template is None:
            raise _without_template()
        if self._layouts is None:
            self._layouts = LayoutCache(
                self._template,
                self._tokenizer,
                self._turn_ends,
                block=self.thinking_block,
                empty=self.empty_thinking,
            )
        return self._layouts.lay_out(messages, tools, wanted)


def checked_renderer(folder: Path) -> Renderer:
    """The renderer of a model's folder, after checking that the model was trained with it.

    Raises:
        ModelwrightError: its fingerprint differs from the one recorded in the folder's modelwright.json.
        UsageError: as `Renderer.from_folder`.
    """
    renderer = Renderer.from_folder(folder)
    record = read_json(folder / MODEL_RECORD) or {}
    recorded = record.get("renderer", renderer.fingerprint)
    if recorded != renderer.fingerprint:
        raise ModelwrightError(
            f"{folder}: its tokenizer or chat template is not the one that the model was trained with "
            f"(renderer {renderer.fingerprint[:12]}, trained with {str(recorded)[:12]}): restore the tokenizer's files"
        )
    return renderer


def _without_template() -> UsageError:
    return UsageError('the tokenizer has no chat template: set [model] chat_template to "chatml" or to a template file')


def _wanted(messages: Sequence[Message], turns: Turns) -> list[int]:
    """The indices of the messages to train."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    chosen = set(answers[-1:] if turns == "last" else answers)
    return [
        index for index, message in enumerate(messages) if (index in chosen if message.train is None else message.train)
    ]
