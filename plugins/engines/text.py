"""From tokens to text that can be shown at once: no half characters, nothing of a stop string.

Both halves answer one question for each new token: how much of the text so far can no longer change?
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"

# How many tokens are decoded again for each new one: as many as give the newest ones their context.
_CONTEXT = 16


class Decoder(Protocol):
    """What is used of a `tokenizers.Tokenizer`."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the tokens."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The token's id, if there is such a token."""
        ...


def byte_tokens(tokenizer: Decoder) -> frozenset[int]:
    """The ids of the tokens `<0x00>` to `<0xFF>` by which some vocabularies spell bytes; empty for the others."""
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token for token in ids if token is not None)


class Detokenizer:
    """Decodes tokens one by one; what it gives, joined, is the decoding of all of them, special tokens skipped.

    A trailing U+FFFD may still become a character. So may a run of byte tokens, which is decoded as a whole: one wrong
    byte turns all its characters into U+FFFD, so nothing of a run is given before the run is over.

    Args:
        tokenizer: decodes.
        byte_tokens: what `byte_tokens(tokenizer)` gives.
    """

    def __init__(self, tokenizer: Decoder, byte_tokens: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_tokens = byte_tokens
        self._window: list[int] = []  # the last tokens
        self._given = 0  # characters of the window's text that were given

    def push(self, token: int) -> str:
        """Take a token; give the text that became certain."""
        self._window.append(token)
        if token in self._byte_tokens:
            return ""
        text = self._decode(self._window)
        certain = text.rstrip(REPLACEMENT)
        new = certain[self._given :]
        self._given += len(new)
        if len(self._window) > 2 * _CONTEXT and len(certain) == len(text):
            self._shorten(text)
        return new

    def finish(self) -> str:
        """Give the rest: no more tokens come."""
        new = self._decode(self._window)[self._given :]
        self._given += len(new)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _shorten(self, text: str) -> None:
        """Forget old tokens, so that each token costs the same however long the text is.

        Some decoders treat the first token otherwise than the rest (no space before it), and a cut may fall inside a
        character. So the tokens that stay must decode to the end of the text, and to more than spaces.
        """
        tail = self._window[-_CONTEXT:]
        kept = self._decode(tail)
        if kept.strip() and text.endswith(kept):
            self._window, self._given = tail, len(kept)


class StopStrings:
    """Cuts a text at the first stop string, holding back what may be the beginning of one.

    The first is the one that ends first, whatever the pieces in which the text arrives; of two that end together, the
    longer.

    Args:
        stops: the stop strings, none of them empty.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take text; give what is certain to be before any stop string, and whether one was found."""
        if not self._stops:
            return text, False
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        certain = len(text) - self._open(text)
        self._held = text[certain:]
        return text[:certain], False

    def finish(self) -> str:
        """Give what was held: no more text comes."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop string begins."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


class TextStream:
    """A `Detokenizer` whose text runs through `StopStrings`."""

    def __init__(self, tokenizer: Decoder, byte_tokens: Collection[int], stops: Iterable[str]) -> None:
        self._tokens = Detokenizer(tokenizer, byte_tokens)
        self._stops = StopStrings(stops)

    def push(self, token: int) -> tuple[str, bool]:
        """Take a token; give the text that became certain, and whether a stop string was found."""
        return self._stops.push(self._tokens.push(token))

    def finish(self) -> tuple[str, bool]:
        """Give the rest, and whether a stop string was found in it."""
        text, stopped = self._stops.push(self._tokens.finish())
        return (text, True) if stopped else (text + self._stops.finish(), False)
