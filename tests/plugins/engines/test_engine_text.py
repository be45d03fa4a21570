"""From tokens to text that can be shown at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from modelwright.plugins.engines.decoding import Detokenizer, StopStrings, TextStream, byte_tokens


def byte_level():
    """GPT-2's way: every token is bytes; some hold several, some parts of characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("â", "Ĥ"), ("âĤ", "¬"), ("ð", "Ł"), ("h", "e"), ("Ġt", "he")]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def byte_fallback():
    """Llama 2's way: words with ▁ for spaces, and `<0x..>` for the bytes of what no word has."""
    tokens = ["<unk>", "▁", "▁the", "the", "a", "▁€", "\ufffd", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def words():
    """Whole words without a decoder: they are joined by spaces; the special token is skipped."""
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, ".": 2, "é": 3}, unk_token="one"))
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def word_pieces():
    """BERT's way: `##` continues a word, and spaces before punctuation go."""
    tokenizer = Tokenizer(models.WordPiece({"play": 0, "##ing": 1, ".": 2, "it": 3, "'": 4, "s": 5}, unk_token="it"))
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def word_ends():
    """GPT-1's way: `</w>` ends a word, and is not a space at the end of the text."""
    tokenizer = Tokenizer(models.BPE({"low": 0, "er</w>": 1, "new</w>": 2, "est": 3}, []))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def metaspace():
    """SentencePiece's way without bytes: the first space is dropped."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -1.0), ("▁", -1.0)], unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


KINDS = {make.__name__: make() for make in (byte_level, byte_fallback, words, word_pieces, word_ends, metaspace)}


def pieces(tokenizer, ids, stops=()):
    """What a stream gives at each token and at its end, and whether it stopped."""
    stream = TextStream(tokenizer, byte_tokens(tokenizer), stops)
    given = []
    for token in ids:
        text, stopped = stream.push(token)
        given.append(text)
        if stopped:
            return given, True
    text, stopped = stream.finish()
    return [*given, text], stopped


def reference_cut(text, stops):
    """The text before the stop string that ends first, read character by character."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


class TestDetokenizer:
    @pytest.mark.parametrize("kind", KINDS)
    @settings(max_examples=120, deadline=None)
    @given(data=st.data())
    def test_pieces_join_to_the_decoding_of_all_tokens(self, kind, data):
        """With any tokens and any decoder, valid text or not, nothing is lost, doubled or different."""
        tokenizer = KINDS[kind]
        ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=120))
        given, _ = pieces(tokenizer, ids)
        assert "".join(given) == tokenizer.decode(ids)

    @pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
    @settings(max_examples=80, deadline=None)
    @given(text=st.text(st.sampled_from("a the€🙂日é \n"), max_size=60))
    def test_no_piece_holds_half_a_character(self, kind, text):
        """For a valid text every piece is a part of it, however its characters are spread over tokens."""
        tokenizer = KINDS[kind]
        ids = bytes_to_ids(tokenizer, kind, text)
        given, _ = pieces(tokenizer, ids)
        assert not any("\ufffd" in piece for piece in given)
        assert "".join(given) == tokenizer.decode(ids)

    def test_text_comes_as_soon_as_it_is_certain(self):
        """A whole character is given with its last byte, not at the end."""
        tokenizer = KINDS["byte_level"]
        ids = bytes_to_ids(tokenizer, "byte_level", "a€b")
        assert pieces(tokenizer, ids)[0] == ["a", "", "", "€", "b", ""]

    def test_an_unknown_token_is_not_text(self):
        """A model may have more tokens than its tokenizer (padding of its matrices)."""
        tokenizer = KINDS["words"]
        assert "".join(pieces(tokenizer, [0, 900, 1])[0]) == "one two"

    @pytest.mark.parametrize("silent", [15, 16, 17, 40, 80])
    def test_a_long_silence_changes_nothing(self, silent):
        """After many tokens without text the next word still has its space before it."""
        tokenizer = KINDS["words"]
        ids = [0] * 20 + [tokenizer.token_to_id("<end>")] * silent + [1, 2]
        assert "".join(pieces(tokenizer, ids)[0]) == tokenizer.decode(ids)

    def test_the_cost_of_a_token_does_not_grow(self):
        """After thousands of tokens only the last few are decoded again."""
        counted = []

        class Counting:
            def decode(self, ids, skip_special_tokens=True):
                counted.append(len(ids))
                return KINDS["byte_level"].decode(ids, skip_special_tokens=skip_special_tokens)

        stream = Detokenizer(Counting(), frozenset())
        for token in bytes_to_ids(KINDS["byte_level"], "byte_level", "the € " * 500):
            stream.push(token)
        assert max(counted) < 50


def bytes_to_ids(tokenizer, kind, text):
    """One token a byte."""
    if kind == "byte_fallback":
        return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.token_to_id(character) for piece, _ in spelt for character in piece]


class TestStopStrings:
    @settings(max_examples=300, deadline=None)
    @given(
        chunks=st.lists(st.text(st.sampled_from("ab€"), max_size=4), max_size=8),
        stops=st.lists(st.text(st.sampled_from("ab€"), min_size=1, max_size=4), max_size=3),
    )
    def test_the_cut_does_not_depend_on_the_pieces(self, chunks, stops):
        """The text ends before the stop string that ends first, and nothing given is ever taken back."""
        matcher, given, stopped = StopStrings(stops), "", False
        expected, expected_stop = reference_cut("".join(chunks), stops)
        for chunk in chunks:
            text, stopped = matcher.push(chunk)
            given += text
            assert expected.startswith(given)
            if stopped:
                break
        else:
            given += matcher.finish()
        assert (given, stopped) == (expected, expected_stop)

    def test_only_a_possible_beginning_is_held_back(self):
        """What cannot become a stop string is given at once; what might is given when it did not."""
        matcher = StopStrings(["END"])
        assert matcher.push("the E") == ("the ", False)
        assert matcher.push("N") == ("", False)
        assert matcher.push("TER") == ("ENTER", False)
        assert matcher.push("EN") == ("", False)
        assert matcher.finish() == "EN"


class TestTextStream:
    @pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "words"])
    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_stops_are_found_across_tokens_and_characters(self, kind, data):
        """A stop string taken from the text is cut out wherever tokens and bytes divide it."""
        tokenizer = KINDS[kind]
        ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40))
        text = tokenizer.decode(ids)
        stops = ["@@"]
        if text:
            start = data.draw(st.integers(0, len(text) - 1))
            stops.append(text[start : start + data.draw(st.integers(1, 6))])
        given, stopped = pieces(tokenizer, ids, stops)
        assert ("".join(given), stopped) == reference_cut(text, stops)

    def test_a_stop_string_of_many_byte_characters(self):
        """Neither the stop string nor any byte of it is given."""
        tokenizer = KINDS["byte_level"]
        ids = bytes_to_ids(tokenizer, "byte_level", "price: 5 €🙂 or more")
        given, stopped = pieces(tokenizer, ids, ["€🙂"])
        assert ("".join(given), stopped) == ("price: 5 ", True)
        assert len(given) == len("price: 5 €🙂".encode())
