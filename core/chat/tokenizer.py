"""Encoding that separates control tokens that a user typed from those of the template.

A tokenizer matches its added tokens anywhere in a text, so a user who types `<|im_end|>` would end the turn. Here the
caller gives the parts of a text that are protected: inside them, control tokens are ordinary text.
"""

from __future__ import annotations

import bisect
import functools
import json
import operator
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.wording import one_line
from modelwright.core.chat.templates import TemplateRefusedError
from modelwright.core.chat.tokenizer_files import TOKENIZER, TokenizerFiles, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Range = tuple[int, int]


@frozen
class Control:
    """A control token in a text: its place, in characters, and its id."""

    start: int
    end: int
    id: int


class Encoded(Protocol):
    """A text in tokens.

    Attributes:
        ids: the tokens.
    """

    @property
    def ids(self) -> tuple[int, ...]: ...  # noqa: D102 - see above

    def tokens(self, start: int, end: int) -> Range:
        """The tokens that share a character with `text[start:end]`: the first of them, and the one after the last."""
        ...


@frozen
class _ByOffsets:
    """Tokens with the range of characters of each."""

    ids: tuple[int, ...]
    offsets: Sequence[Range]

    def tokens(self, start: int, end: int) -> Range:
        """See `Encoded`."""
        low = bisect.bisect_right(self.offsets, start, key=operator.itemgetter(1))
        return low, bisect.bisect_left(self.offsets, end, key=operator.itemgetter(0))


@frozen
class _Native:
    """The library's own encoding. Looking up two tokens in it is ten times as fast as reading all offsets."""

    ids: tuple[int, ...]
    encoding: Encoding
    length: int

    def tokens(self, start: int, end: int) -> Range:
        """See `Encoded`."""
        low = self.encoding.char_to_token(start)
        high = len(self.ids) if end >= self.length else self.encoding.char_to_token(end)
        if low is None or high is None or (high < len(self.ids) and not self._divides(high, end)):
            return _ByOffsets(self.ids, self.encoding.offsets).tokens(start, end)
        return low, high

    def _divides(self, token: int, place: int) -> bool:
        """Whether `token` is the first one at or after `place`."""
        at = self.encoding.token_to_chars(token)
        before = self.encoding.token_to_chars(token - 1) if token else None
        return at is not None and at[0] == place and (before is None or before[0] < place)


@frozen
class _Joined:
    """Two encodings, of the text before a place and of the text after it."""

    left: Encoded
    right: Encoded
    cut: int

    @property
    def ids(self) -> tuple[int, ...]:
        """See `Encoded`."""
        return (*self.left.ids, *self.right.ids)

    def tokens(self, start: int, end: int) -> Range:
        """See `Encoded`."""
        count = len(self.left.ids)
        low = self.left.tokens(start, min(end, self.cut))[0] if start < self.cut else None
        high = self.right.tokens(max(start - self.cut, 0), end - self.cut)[1] + count if end > self.cut else None
        if low is None:
            low = self.right.tokens(start - self.cut, end - self.cut)[0] + count
        return low, self.left.tokens(start, end)[1] if high is None else high


class ControlledTokenizer:
    """A tokenizer in which only the template can produce control tokens.

    Control tokens are the special added tokens, and other added tokens in the template's source, such as Qwen's
    `<think>`. Tokens of white space only, such as Gemma's newlines, are text.

    Attributes:
        controls: the control tokens' ids by their text.
        added: the text of every added token.
        special: the named special tokens, such as {"eos_token": "</s>"}.
        special_ids: their ids, such as {"eos_token": 2}.
        vocab_size: the highest id + 1, added tokens included.
        bos_id: the id that the tokenizer itself puts before a text; None if it does not.
        eos_id: the end-of-sequence token's id, if there is one.
        heads: the proper prefixes of control tokens.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._model = files.model
        self._native = load_tokenizer(files.model)
        self.special = files.special()
        named = {name: self._native.token_to_id(content) for name, content in self.special.items()}
        self.special_ids: dict[str, int] = {name: number for name, number in named.items() if number is not None}
        first = self._native.encode("", add_special_tokens=True).ids[:1]
        self.bos_id: int | None = first[0] if first and first[0] == self.special_ids.get("bos_token") else None
        self.eos_id: int | None = self.special_ids.get("eos_token")
        # Post-processors remove white space from offsets, but masks need it.
        self._native.post_processor = None
        self.vocab_size = max(self._native.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        source = files.template or ""
        added = sorted(self._native.get_added_tokens_decoder().items())
        self.added = [token.content for _, token in added]
        self.controls: dict[str, int] = {
            token.content: number
            for number, token in added
            if token.special or (token.content in source and not token.content.isspace())
        }
        # Unknown words give the unknown token, which nobody typed.
        self._counted = frozenset(self.controls.values()) - {self.special_ids.get("unk_token")}
        longest_first = sorted(self.controls, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.heads = {content[:end] for content in self.controls for end in range(1, len(content))}
        self._tails = {content[start:] for content in self.controls for start in range(1, len(content))}
        self._longest = max(map(len, self.controls), default=0)
        self._joined = "\0".join(self.controls)

    def find_controls(self, text: str, protected: Iterable[Range] = ()) -> list[Control]:
        """The control tokens of `text` that lie outside the protected stretches, from left to right."""
        found, start = [], 0
        for low, high in (*protected, (len(text), len(text))):
            matches = self.pattern.finditer(text, start, max(start, low))
            found += [Control(match.start(), match.end(), self.controls[match[0]]) for match in matches]
            start = max(start, high)
        return found

    def find_fragments(self, text: str) -> list[Range]:
        """The parts at both ends of `text` (without white space) that are a fragment of a control token.

        Together with neighboring text, a fragment could become a whole one.
        """
        core = text.strip()
        start = text.index(core)
        end, reach = start + len(core), min(self._longest, len(core))
        if core and len(core) < self._longest and core in self._joined:
            return [(start, end)]
        tail = next((length for length in range(reach, 0, -1) if core[:length] in self._tails), 0)
        head = next((length for length in range(reach, 0, -1) if core[-length:] in self.heads), 0)
        return [found for found in ((start, start + tail), (end - head, end)) if found[0] < found[1]]

    def encode(self, text: str, protected: Sequence[Range] = (), *, controls: int | None = None) -> Encoded:
        """Encode `text` without adding tokens; in the protected parts (sorted) control tokens are ordinary text.

        If no protected part looks like a control token, this is the tokenizer's own encoding.

        Args:
            text: the text.
            protected: see above.
            controls: the number of control tokens outside the protected parts, if the caller knows it.

        Raises:
            TemplateRefusedError: `text` has a lone surrogate, the tokenizer fails on it (it may have none for unknown
                text), or it cannot separate typed tokens.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, which is not a character"
            raise TemplateRefusedError(message) from error
        if controls is None or protected:
            outside = self.find_controls(text, protected)
            if protected and self.find_controls(text) != outside:
                return self._encode_apart(text, outside)
            controls = len(outside)
        encoding = _encoded(self._native, text)
        ids = encoding.ids
        if self._count(ids) <= controls:
            return _Native(tuple(ids), encoding, len(text))
        # More than in the text: another spelling was normalized to a control token.
        return self._encode_apart(text, self.find_controls(text, protected))

    def encode_at(self, text: str, protected: Sequence[Range], cut: int) -> Encoded:
        """As `encode`, but no token reaches over the place `cut`.

        A tokenizer that marks the beginning of a text, such as with a space, would mark it in the middle: its tokens
        stay those of `encode`.
        """
        left = self.encode(text[:cut], [part for part in protected if part[1] <= cut])
        right = self.encode(text[cut:], [(low - cut, high - cut) for low, high in protected if high > cut])
        whole = self.encode(text, protected)
        joined = _Joined(left, right, cut)
        return joined if self.spell(joined.ids) == self.spell(whole.ids) else whole

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are skipped."""
        return str(self._native.decode(list(ids), skip_special_tokens=True))

    def spell(self, ids: Sequence[int]) -> str:
        """The text of `ids`, including special tokens."""
        return str(self._native.decode(list(ids), skip_special_tokens=False))

    def _count(self, ids: Iterable[int]) -> int:
        return sum(map(self._counted.__contains__, ids))

    def _encode_apart(self, text: str, controls: Sequence[Control]) -> Encoded:
        """Encode with a copy of the tokenizer whose control tokens have secret names, which replace the template's.

        It is one pass over the whole text, so the effects of a control token on its neighbors (a word's prefix,
        stripped spaces) stay. The names do not affect the ids, so they may differ between processes.
        """
        tokenizer, names = self._renamed
        parts, starts, ends, at, length = [], [0], [(0, 0)], 0, 0
        for control in controls:
            name = names[control.id]
            parts += [text[at : control.start], name]
            starts.append(length + control.start - at)
            length += control.start - at + len(name)
            ends.append((length, control.end))
            at = control.end
        parts.append(text[at:])
        encoding = _encoded(tokenizer, "".join(parts))
        if self._count(encoding.ids) != sum(control.id in self._counted for control in controls):
            raise TemplateRefusedError(
                "this tokenizer cannot separate typed control tokens in this text from the template's"
            )

        def original(offset: int) -> int:
            index = bisect.bisect_right(starts, offset) - 1
            name_end, control_end = ends[index]
            return controls[index - 1].start if offset < name_end else control_end + offset - name_end

        offsets = tuple((original(start), original(end)) for start, end in encoding.offsets)
        return _ByOffsets(tuple(encoding.ids), offsets)

    @functools.cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, str]]:
        """The copy, and the secret name of each control token's id."""
        nonce = secrets.token_hex(12)
        names = {content: f"[{nonce}-{number}]" for content, number in self.controls.items()}
        tree = json.loads(self._model)
        _rename(tree, names)
        tokenizer = load_tokenizer(json.dumps(tree))
        wrong = [
            content for content, number in self.controls.items() if tokenizer.token_to_id(names[content]) != number
        ]
        if wrong:
            raise ModelwrightError(
                f"the tokenizer cannot separate typed control tokens from the template's: {', '.join(wrong)}"
            )
        return tokenizer, {number: names[content] for content, number in self.controls.items()}


def _encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # the library raises plain Exceptions
        raise TemplateRefusedError(f"the tokenizer ({TOKENIZER}) fails on this text: {one_line(error)}") from error


def _rename(tree: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens of a tokenizer.json, in its added tokens and in its model of any kind."""
    tree["post_processor"] = None
    for token in tree["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = tree["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, pair[0] + pair[1][prefix:]} & names.keys()]
