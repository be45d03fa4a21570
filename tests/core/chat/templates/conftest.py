"""Families of chat templates, and for each the masks that conversations of every shape must get, written by hand.

`NAME.jinja` is the template and `NAME.txt` what it makes of each shape. In the transcripts

    «…»  is the trained stretch of an assistant's turn, one for every such turn, and in it
    ‹…›  what belongs to its thinking: with `train_thinking=False` it is not trained;
    †    the template drops this turn's thinking;  ✗  it hides or cuts this turn's fields: nothing of it is trained;
    ␣    is a space at the end of a line;
    ¶    at the beginning: the template leaves out a message that is not an answer.

A section that begins with REFUSED holds a piece of what the template says instead.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from attrs import field, frozen
from tokenizers import AddedToken, Tokenizer

from modelwright.core.api import Message
from modelwright.core.chat.renderer import Renderer, read_template

HERE = Path(__file__).parent
FAMILIES = sorted(path.stem for path in HERE.glob("*.txt"))
KINDS = ("byte_level", "unigram", "llama2")

TOOLS = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}])
ADD, SUB = (
    {"id": number, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    for number, name, arguments in (("call00001", "add", {"a": 2, "b": [3]}), ("call00002", "sub", {"c": "x"}))
)


def _system(content):
    return Message(role="system", content=content)


def _user(content):
    return Message(role="user", content=content)


def _says(content, thinking=None, calls=None):
    return Message(
        role="assistant", content=content, thinking=thinking, tool_calls=None if calls is None else json.dumps(calls)
    )


FIVE = Message(role="tool", content="five", tool_call_id="call00001", name="add")
EIGHT = Message(role="tool", content="eight", tool_call_id="call00002", name="sub")

SHAPES = {
    "single": (_user("Ask"), _says("Reply")),
    "turns": (_user("Ask"), _says("Reply"), _user("More"), _says("Later")),
    "system": (_system("Rule"), _user("Ask"), _says("Reply"), _user("More"), _says("Later")),
    "thinking": (_user("Ask"), _says("Reply", "Muse")),
    "earlier_thinking": (_user("Ask"), _says("Reply", "Muse"), _user("More"), _says("Later", "Ponder")),
    "call": (_user("Ask"), _says("", calls=[ADD]), FIVE, _says("Later")),
    "call_content": (_user("Ask"), _says("Wait", calls=[ADD]), FIVE, _says("Later")),
    "call_thinking": (_user("Ask"), _says("", "Muse", [ADD]), FIVE, _says("Later", "Ponder")),
    "parallel": (_user("Ask"), _says("", calls=[ADD, SUB]), FIVE, EIGHT, _says("Later")),
    "assistant_first": (_says("Reply"), _user("Ask"), _says("Later")),
    "two_users": (_user("Ask"), _user("More"), _says("Reply")),
    "empty": (_user("Ask"), _says(""), _user("More"), _says("Later")),
    "spaces": (_user("  Ask \n"), _says("\n Reply  ")),
}
# What each turn of a shape is when the conversation ends with it.
BEGINNINGS = {"turns": "single", "earlier_thinking": "thinking"}
WITH_TOOLS = ("call", "call_content", "call_thinking", "parallel")


@frozen
class Turn:
    """An assistant's turn in a transcript: its trained stretches, those of them that are thinking, what is strange."""

    trained: tuple[tuple[int, int], ...]
    thinking: tuple[tuple[int, int], ...]
    anomalies: frozenset[str]


@frozen
class Transcript:
    """A rendering, in characters what is trained of it, and what is strange about the whole."""

    text: str
    turns: tuple[Turn, ...]
    anomalies: frozenset[str] = frozenset()
    refusal: str | None = None


@frozen
class Family:
    """A template, its tokens, and its transcripts by shape."""

    name: str
    template: str = field(repr=False)
    tokens: dict[str, str]
    sections: dict[str, str] = field(repr=False)

    @property
    def control(self):
        """Every control token."""
        named = [self.tokens["bos"], self.tokens["eos"]]
        return [*dict.fromkeys(named + self.tokens.get("special", "").split())]

    @property
    def tags(self):
        return self.tokens.get("tags", "").split()

    @property
    def opening(self):
        """What the generation prompt shows and the history never does."""
        return self.tokens.get("opening", "").replace("⏎", "\n")

    def added(self):
        strips = "stripping" in self.tokens
        special = [AddedToken(token, normalized=False, special=True, rstrip=strips) for token in self.control]
        return special + [AddedToken(tag, normalized=False) for tag in self.tags]

    def transcript(self, shape, said=()):
        """The transcript of a shape; `said` replaces words in it."""
        return _read_marks(_replaced(self.sections[shape], said))


def _replaced(text, said):
    for word, other in dict(said).items():
        text = text.replace(word, other)
    return text


def _read_marks(body):
    if body.startswith("REFUSED "):
        return Transcript("", (), refusal=body.removeprefix("REFUSED "))
    whole = {"message-dropped"} if body.startswith("¶") else set()
    strange = {"†": "thinking-dropped", "✗": "span-lost"}
    text, turns, start, think, thinking, anomalies = "", [], None, None, [], set()
    for character in body.removeprefix("¶"):
        if character == "«":
            start, thinking, anomalies = len(text), [], set()
        elif character == "‹":
            think = len(text)
        elif character == "›":
            thinking.append((think, len(text)))
        elif character == "»":
            trained = ((start, len(text)),) if start < len(text) else ()
            turns.append(Turn(trained, tuple(thinking), frozenset(anomalies)))
        elif character in strange:
            anomalies.add(strange[character])
        else:
            text += " " if character == "␣" else character
    return Transcript(text, tuple(turns), frozenset(whole))


@functools.cache
def _family(name):
    head, *parts = (HERE / f"{name}.txt").read_text(encoding="utf-8").split("\n=== ")
    tokens = dict(line.split(" ", 1) for line in head.splitlines() if line)
    sections = dict(part.split("\n", 1) for part in parts if part.strip() != "end")
    file = HERE / f"{name}.jinja"
    template = file.read_text(encoding="utf-8") if file.exists() else read_template(name)
    return Family(name, template, tokens, sections)


def pytest_generate_tests(metafunc):
    """Every family, kind of tokenizer and shape: of `shape`s all, of `shown_shape`s those that the family shows."""
    names, own = metafunc.fixturenames, [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    shown = [(family, shape) for family in FAMILIES for shape in SHAPES if _family(family).transcript(shape).turns]
    longer = [(family, shape) for family, shape in shown if len(_family(family).transcript(shape).turns) > 1]
    for name, cases in (("shown_shape", shown), ("longer_shape", longer)):
        if name in names:
            metafunc.parametrize(("family_name", name), cases)
            own.append("family_name")
    for name, values in (("family_name", FAMILIES), ("kind", KINDS), ("shape", tuple(SHAPES))):
        if name in names and not any(name in argument for argument in own):
            metafunc.parametrize(name, values)


@pytest.fixture
def family(family_name):
    return _family(family_name)


@pytest.fixture(scope="session")
def families():
    """A name → the family."""
    return _family


@pytest.fixture(scope="session")
def conversation():
    """(a shape, replaced words) → its messages and its tools."""

    def make(shape, said=()):
        messages = []
        for message in SHAPES[shape]:
            row = message.to_row()
            messages.append(Message(**{**row, "content": _replaced(message.content, said)}))
        return tuple(messages), TOOLS if shape in WITH_TOOLS else None

    return make


@pytest.fixture(scope="session")
def beginnings():
    """The shape that is another one's first turns."""
    return BEGINNINGS


@pytest.fixture(scope="session")
def folder_of(make_folder, tmp_path_factory):
    """(a family's name, a tokenizer's kind) → a model folder."""

    @functools.cache
    def make(name, kind):
        family = _family(name)
        folder = tmp_path_factory.mktemp("family")
        named = {"bos_token": family.tokens["bos"], "eos_token": family.tokens["eos"]}
        unknown = {} if kind == "byte_level" else {"unk_token": "<unk>"}
        return make_folder(
            folder, kind, family.template, added=family.added(), **{"unk_token": None, **named, **unknown}
        )

    return make


@pytest.fixture(scope="session")
def renderer_of(folder_of):
    """(a family's name, a tokenizer's kind) → our renderer."""
    return functools.cache(lambda name, kind: Renderer.from_folder(folder_of(name, kind)))


@pytest.fixture(scope="session")
def theirs(folder_of):
    """(a family's name, a kind, messages, tools, **options) → what transformers' own apply_chat_template gives."""

    @functools.cache
    def load(name, kind):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder_of(name, kind))

    def apply(name, kind, messages, tools=None, **options):
        # Our date is pinned; theirs is passed to a template that uses one.
        tokenizer, parsed = load(name, kind), None if tools is None else json.loads(tools)
        options = {"return_dict": False, "date_string": "01 Jan 2026", **options}
        return tokenizer.apply_chat_template([_as_dict(message) for message in messages], tools=parsed, **options)

    return apply


def _as_dict(message):
    """A message in the form that transformers documents; thinking has two names in use."""
    row = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        row |= {"reasoning_content": message.thinking, "thinking": message.thinking}
    if message.tool_calls is not None:
        calls = json.loads(message.tool_calls)
        row["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
            for call in calls
        ]
    return row | {key: getattr(message, key) for key in ("tool_call_id", "name") if getattr(message, key) is not None}


@pytest.fixture(scope="session")
def tokens_in(renderer_of):
    """(a family's name, a kind, a text, ranges of it, where prompts end) → which tokens are trained, and what is wrong.

    A token is trained if it shares a character with a range and is not the prompt's as well; "prompt-boundary", if a
    prompt's tokens are not the first ones of the text's.
    """

    @functools.cache
    def load(name, kind):
        tokenizer = Tokenizer.from_str(renderer_of(name, kind)._files.model)
        tokenizer.post_processor = None  # ByteLevel's trims white space off the offsets.
        return tokenizer

    def find(name, kind, text, ranges, prompts):
        encoding = load(name, kind).encode(text, add_special_tokens=False)
        trained = [any(low < end and start < high for low, high in ranges) for start, end in encoding.offsets]
        anomalies = set()
        for prompt in prompts:
            ids = load(name, kind).encode(text[:prompt], add_special_tokens=False).ids
            if encoding.ids[: len(ids)] != ids:
                anomalies.add("prompt-boundary")
                continue
            for number in range(len(ids)):
                trained[number] &= encoding.offsets[number][1] <= prompt
        return tuple(trained), anomalies

    return find
