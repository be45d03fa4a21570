"""Words that a tired engineer stumbles over are in no text that a user reads."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from modelwright.core.cli import COMMANDS, cli

REPOSITORY = Path(__file__).parents[2]
MESSAGES = REPOSITORY / "tests" / "messages.txt"

# The word, and what to write instead.
INSTEAD = {
    r"(un)?learnt": "trained, or learned",
    r"anew": "again",
    r"whoever": "anyone who",
    r"whatever": "any, even if, all that",
    r"mend(s|ed|ing)?": "fix",
    r"so many": "the number of",
    r"so long as it": "if, or while",
    r"(is|are) no(?! longer| more)": "is not a",
}

# Where `is no` is right, with the reason.
ALLOWED = {
    "there is no": "says that something does not exist",
    "there are no": "as above",
    "is there no": "as above, in a question",
}

_WORDS = re.compile("|".join(rf"\b(?:{word})\b" for word in INSTEAD), re.IGNORECASE)
_ALLOWED = re.compile("|".join(map(re.escape, ALLOWED)), re.IGNORECASE)

PAGES = [
    pytest.param(path, id=path.relative_to(REPOSITORY).as_posix())
    for path in (
        REPOSITORY / "README.md",
        *sorted((REPOSITORY / "docs" / "howto").glob("*.md")),
        *sorted((REPOSITORY / "docs" / "reference").glob("*.md")),
    )
]


def stumbles(text: str) -> list[str]:
    """The places of such words, each with the text around it; a sentence may go on in the next line."""
    text = _ALLOWED.sub("", " ".join(text.split()))
    return [text[max(0, found.start() - 40) : found.end() + 20] for found in _WORDS.finditer(text)]


def commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, click.Context(inner, info_name=name, parent=context))


def test_the_words_are_found():
    """Also over the end of a line; what is right stays."""
    assert (
        len(stumbles("it is no\nfolder, and mended anew, whatever is learnt by whoever; so many, so long as it is"))
        == 8
    )
    assert stumbles("there is no format 'x'; it is no longer there, recommended and amended") == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_none_of_these_words(page):
    """The reference is generated from docstrings: fix them there."""
    assert stumbles(page.read_text(encoding="utf-8")) == []


def test_help_has_none_of_these_words():
    """Of every command, and of each of its options."""
    assert set(COMMANDS) <= set(cli.list_commands(click.Context(cli)))
    root = click.Context(cli, info_name="modelwright")
    found = {context.command_path: stumbles(context.get_help()) for context in commands(cli, root)}
    assert {path: places for path, places in found.items() if places} == {}


def test_messages_have_none_of_these_words():
    """Each line is a message; the test's name and inputs before the arrow are not read by users."""
    lines = [line.partition("  →  ")[2] for line in MESSAGES.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if stumbles(line)] == []
