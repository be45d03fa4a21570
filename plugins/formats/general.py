"""The format `general`: chat with tools, ShareGPT, alpaca, pairs such as prompt and completion, plain text."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.answers import THINK_OPEN, split_thinking
from modelwright.plugins.formats.conversations import (
    checked,
    conversation_column,
    interchange,
    read_messages,
    read_tools,
)
from modelwright.plugins.formats.rows import (
    ANSWER,
    SYSTEMS,
    RowSchema,
    RowSchemas,
    answering,
    filled,
    input_column,
    is_blank,
    mapped,
    question_text,
    reference_column,
    text_column,
    with_options,
    with_system,
)

_EXPECTED = (
    "expected the columns messages or conversations (chat), instruction and output (alpaca), prompt and completion, "
    "question and answer, problem and solution, or text; or set the option columns"
)
HISTORY = "history"
TOOLS = "tools"
TEXT = "text"

# Columns with a prompt and its completion; the first pair that a row has is used.
_PAIRS = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("question", "response"),
    ("question", ANSWER),
    ("problem", "solution"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("query", "response"),
    ("query", ANSWER),
    ("input", "output"),
)

# What the option columns may name beside a prompt and a completion; beside messages, all but the first two.
_BESIDE = ("input", "history", "system", "tools", "answer")

_optional_text = validators.optional(validators.min_len(1))


@frozen(kw_only=True)
class GeneralColumns:
    """The names of the columns, instead of detecting them: `messages`, or `prompt` and `completion`, or `text`.

    Attributes:
        messages: the column with the conversation.
        prompt: the column with the prompt: a text, or messages.
        input: the column with the input of the prompt; it follows the prompt after an empty line.
        completion: the column with the completion: a text, or messages.
        text: the column with plain text without turns.
        history: the column with the turns before the prompt, as pairs of question and answer.
        system: the column with the system message.
        tools: the column with the offered tools.
        answer: the column with the reference answer; default: the last assistant message.
    """

    messages: str | None = field(default=None, validator=_optional_text)
    prompt: str | None = field(default=None, validator=_optional_text)
    input: str | None = field(default=None, validator=_optional_text)
    completion: str | None = field(default=None, validator=_optional_text)
    text: str | None = field(default=None, validator=_optional_text)
    history: str | None = field(default=None, validator=_optional_text)
    system: str | None = field(default=None, validator=_optional_text)
    tools: str | None = field(default=None, validator=_optional_text)
    answer: str | None = field(default=None, validator=_optional_text)

    def __attrs_post_init__(self) -> None:
        """Refuse combinations that cannot be read, or only in part."""
        ways = {"messages": self.messages, "prompt and completion": self.prompt and self.completion, "text": self.text}
        named = [way for way, column in ways.items() if column]
        if len(named) != 1 or bool(self.prompt) is not bool(self.completion):
            msg = "must name messages, or prompt and completion, or text"
            raise ValueError(msg)
        beside = {"messages": _BESIDE[2:], "prompt and completion": _BESIDE, "text": ()}[named[0]]
        unused = [name for name in _BESIDE if getattr(self, name) and name not in beside]
        if unused:
            msg = f"cannot name {' and '.join(unused)} beside {named[0]}"
            raise ValueError(msg)


@frozen(kw_only=True)
class GeneralOptions:
    """The options of the format `general`.

    Attributes:
        instruction: prompt for the first user message: a template with `{question}`, or a text that precedes it.
        system: a system message for rows that have none.
        columns: the names of the columns. Set it if the format does not detect them.
    """

    instruction: str | None = field(default=None, validator=_optional_text)
    system: str | None = field(default=None, validator=_optional_text)
    columns: GeneralColumns | None = None


@frozen
class _Prepared:
    """A row that `modelwright prepare` wrote."""

    example: Example


@frozen
class _Instances:
    """The columns of a self-instruct row."""

    instruction: str = "instruction"
    instances: str = "instances"


class GeneralFormat:
    """Reads rows with these schemas; the first that fits is used, and other columns are ignored.

    | schema | columns |
    |---|---|
    | prepared | rows written by `modelwright prepare` are read back unchanged |
    | chat | `messages` or `conversations`: a list of `{role, content}` that ends with the assistant |
    | sharegpt | the same with `{from, value}`: `human`, `gpt`, `system`, `function_call` and `observation` or `tool` |
    | self-instruct | `instruction` and `instances`, a list of `{input, output}`; each gives an example |
    | alpaca | `instruction`, `output`, optionally `input` (or `context`), which follows the instruction |
    | pairs | `prompt` and `completion`, `question` and `answer`, `problem` and `solution`, `query` and `response`, … |
    | plain text | `text`: all of it is trained; the options `instruction` and `system` do not apply |

    Each side of a pair may be a list of messages; assistant messages in a prompt are not trained. A row with a
    pair may also have `history`: earlier turns, as pairs. Every row except plain text may have `system` or
    `system_prompt` (the system message) and `tools` (the offered tools: a list, or JSON text of one).

    A message may have `thinking` (or `reasoning_content`, `reasoning`), `train` or OpenAI's `weight` (whether the turn
    is trained), `train_thinking`, and OpenAI's `tool_calls`, `tool_call_id` and `name`. Keys with null in tools and
    arguments are dropped, because Parquet adds them; if they matter, write JSON text.

    The option `columns` sets the columns explicitly. The reference answer, `Example.answer`, is the text in the column
    `answer`, else the last assistant message without `<think>…</think>` at its beginning.
    """

    def __init__(self, options: GeneralOptions) -> None:
        self.options = options
        schemas = (
            RowSchema("a row of modelwright prepare", _find_prepared, self._prepared),
            RowSchema("chat", functools.partial(_find_chat, sharegpt=False), self._read, "(role/content)"),
            RowSchema("sharegpt", functools.partial(_find_chat, sharegpt=True), self._read, "(from/value)"),
            RowSchema("self-instruct", _find_instances, self._instances),
            RowSchema("alpaca", _find_alpaca, self._read),
            RowSchema("pair of messages", _find_messages, self._read),
            RowSchema("pair", _find_pair, self._read),
            RowSchema("plain text", _find_text, self._read),
        )
        self._schemas = mapped(options.columns, self._read) if options.columns else RowSchemas(schemas, _EXPECTED)

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The examples of one row.

        Raises:
            RowError: columns are missing or have the wrong content, or the conversation cannot be trained on.
        """
        return self._schemas.read(row)

    def detect(self, row: Mapping[str, Any]) -> str:
        """One line that describes what `read` takes a row for, and by which columns.

        Raises:
            RowError: no schema fits the columns.
        """
        return self._schemas.detect(row)

    def _read(self, row: Mapping[str, Any], named: GeneralColumns) -> list[Example]:
        if named.text is not None:
            return [Example(text=text_column(row, named.text))]
        turns = _chat(row, named.messages) if named.messages is not None else _pair(row, named)
        messages = self._with_options(with_system(turns, row, named.system))
        reference = reference_column(row, named.answer) if named.answer is not None else None
        tools = None if named.tools is None else read_tools(row[named.tools], f"column {named.tools!r}")
        return [Example(messages=messages, answer=reference or _last_said(messages), tools=tools)]

    def _prepared(self, _row: Mapping[str, Any], found: _Prepared) -> list[Example]:
        example = found.example
        if example.text is not None or (self.options.instruction is None and self.options.system is None):
            return [example]
        return [evolve(example, messages=self._with_options(example.messages))]

    def _instances(self, row: Mapping[str, Any], found: _Instances) -> list[Example]:
        instances = row[found.instances]
        if not instances:
            raise RowError(f"column {found.instances!r}: expected at least one instance, found an empty list")
        examples = []
        for number, instance in enumerate(instances):
            if not isinstance(instance, Mapping) or "output" not in instance:
                raise RowError(f"{found.instances}[{number}]: expected an object with input and output")
            one = {**instance, "instruction": row[found.instruction]}
            examples += self._read(one, _pair_columns(one, "instruction", "output"))
        return examples

    def _with_options(self, messages: Sequence[Message]) -> Sequence[Message]:
        return with_options(messages, instruction=self.options.instruction, system=self.options.system)


# Which columns a row has


def _find_prepared(row: Mapping[str, Any]) -> _Prepared | None:
    example = interchange(row)
    return None if example is None else _Prepared(example)


def _find_chat(row: Mapping[str, Any], *, sharegpt: bool) -> GeneralColumns | None:
    column = conversation_column(row, sharegpt=sharegpt)
    return None if column is None else _columns(messages=column, **_beside(row, column))


def _find_instances(row: Mapping[str, Any]) -> _Instances | None:
    if "instruction" in row and "output" not in row and isinstance(row.get("instances"), list | tuple):
        return _Instances()
    return None


def _find_alpaca(row: Mapping[str, Any]) -> GeneralColumns | None:
    found = _find_pair(row)
    return found if found is not None and (found.prompt, found.completion) == _PAIRS[0] else None


def _find_messages(row: Mapping[str, Any]) -> GeneralColumns | None:
    found = _find_pair(row)
    sides = () if found is None else (row[found.prompt or ""], row[found.completion or ""])
    return found if any(isinstance(side, list | tuple) for side in sides) else None


def _find_pair(row: Mapping[str, Any]) -> GeneralColumns | None:
    there = [pair for pair in _PAIRS if pair[0] in row and pair[1] in row]
    if not there:
        return None
    # Merged files have the columns of all their sources, most of them empty.
    return _pair_columns(row, *next((pair for pair in there if len(filled(row, pair)) == 2), there[0]))


def _pair_columns(row: Mapping[str, Any], prompt: str, said: str) -> GeneralColumns:
    return _columns(
        prompt=prompt,
        completion=said,
        input=input_column(row, prompt),
        history=HISTORY if row.get(HISTORY) else None,
        **_beside(row, said),
    )


def _beside(row: Mapping[str, Any], said: str) -> dict[str, str | None]:
    """The columns that may accompany any conversation."""
    return {
        "system": next(iter(filled(row, SYSTEMS)), None),
        "tools": TOOLS if row.get(TOOLS) else None,
        "answer": None if said == ANSWER or is_blank(row.get(ANSWER)) else ANSWER,
    }


def _find_text(row: Mapping[str, Any]) -> GeneralColumns | None:
    return _columns(text=TEXT) if TEXT in row else None


@functools.cache
def _columns(**named: str | None) -> GeneralColumns:
    """Cached, because the tables above combine in few ways."""
    return GeneralColumns(**named)


# What the columns hold


def _chat(row: Mapping[str, Any], column: str) -> list[Message]:
    return checked(read_messages(row[column], column), column)


def _pair(row: Mapping[str, Any], named: GeneralColumns) -> list[Message]:
    """The turns of a row with a prompt and a completion, each of them a text or messages."""
    prompt, completion = named.prompt or "", named.completion or ""
    history = [] if named.history is None else _history(row[named.history], named.history)
    turns = [*history, *_question(row, prompt, named.input), *_said(row, completion)]
    if isinstance(row[prompt], str) and isinstance(row[completion], str):
        return turns
    return checked(turns, f"{prompt} and {completion}")


def _question(row: Mapping[str, Any], column: str, given: str | None) -> list[Message]:
    if not isinstance(row[column], list | tuple):
        return [Message(role="user", content=question_text(row, column, given))]
    if given is not None:
        raise RowError(
            f"column {given!r} cannot be combined with messages in {column!r}: put its text into the messages"
        )
    # Assistant messages in a prompt are context; a message's own flag has precedence.
    return [
        evolve(message, train=False) if message.role == "assistant" and message.train is None else message
        for message in read_messages(row[column], column)
    ]


def _said(row: Mapping[str, Any], column: str) -> list[Message]:
    if isinstance(row[column], list | tuple):
        return read_messages(row[column], column)
    return [Message(role="assistant", content=answering(text_column(row, column), f"column {column!r}"))]


def _history(value: Any, column: str) -> list[Message]:
    """The turns of earlier questions and answers."""
    if is_blank(value):
        return []
    if not isinstance(value, list | tuple):
        raise RowError(f"column {column!r}: expected a list of pairs (question, answer), found {type(value).__name__}")
    turns = []
    for number, pair in enumerate(value):
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(isinstance(text, str) and text.strip() for text in pair)
        ):
            raise RowError(f"{column}[{number}]: expected a pair of texts (question, answer)")
        turns += [
            Message(role="user", content=pair[0]),
            Message(role="assistant", content=answering(pair[1], f"{column}[{number}]")),
        ]
    return turns


def _last_said(messages: Sequence[Message]) -> str | None:
    """The text of the last assistant message, without thinking; None if it only calls a tool."""
    said = messages[-1].content
    if said.lstrip().startswith(THINK_OPEN):
        said = split_thinking(said)[1]
    return said or None
