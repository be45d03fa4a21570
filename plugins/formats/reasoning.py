r"""The format `reasoning`: a question, the thinking about it, and the answer, however a data set writes them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.answers import THINK_CLOSE, THINK_OPEN, split_thinking
from modelwright.plugins.formats.conversations import checked, conversation_column, read_messages, read_tools
from modelwright.plugins.formats.rows import (
    ANSWER,
    SYSTEMS,
    RowSchema,
    RowSchemas,
    answering,
    columns,
    filled,
    input_column,
    mapped,
    question_text,
    reference_column,
    text_column,
    with_options,
    with_system,
)
from modelwright.plugins.formats.solutions import final_answer, read_solution

PROMPTS = ("prompt", "question", "problem", "instruction")
THINKINGS = ("thinking", "reasoning", "reasoning_content", "cot", "rationale")
SAID = ("response", "output", "completion", "solution", ANSWER)
_EXPECTED = (
    f"expected the column messages, or a prompt ({', '.join(PROMPTS)}) and an answer ({', '.join(SAID)}); or say by "
    "the option columns what stands where"
)
TOOLS = "tools"

# R1-Zero's answers stand in tags of their own.
_TAGGED_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)

_optional_text = validators.optional(validators.min_len(1))


@frozen(kw_only=True)
class ReasoningColumns:
    """The names of the columns, where they are to be named.

    Attributes:
        prompt: holds the question.
        answer: holds the answer; with `<think>…</think>` before it where no column holds the thinking.
        thinking: holds the thinking.
        input: holds what the prompt is about; it stands behind it with an empty line between.
        system: holds the system message.
        reference: holds the reference answer; default: what the answer comes to.
    """

    prompt: str = field(validator=validators.min_len(1))
    answer: str = field(validator=validators.min_len(1))
    thinking: str | None = field(default=None, validator=_optional_text)
    input: str | None = field(default=None, validator=_optional_text)
    system: str | None = field(default=None, validator=_optional_text)
    reference: str | None = field(default=None, validator=_optional_text)


@frozen(kw_only=True)
class ReasoningOptions:
    """The options of the format `reasoning`.

    Attributes:
        instruction: put to the first user turn: a template with `{question}`, or a text that stands before it.
        system: a system message for the rows that bring none.
        thinking: "train": the thinking is learnt; "mask": the model sees it and learns the answer alone.
        columns: the names of the columns, instead of recognising them.
        require_thinking: whether a row without any thinking is rejected; otherwise its answer alone is learnt.
    """

    instruction: str | None = field(default=None, validator=_optional_text)
    system: str | None = field(default=None, validator=_optional_text)
    thinking: Literal["train", "mask"] = field(default="train", validator=validators.in_(("train", "mask")))
    columns: ReasoningColumns | None = None
    require_thinking: bool = True


@frozen(kw_only=True)
class _Chat:
    """The columns of a row with a conversation."""

    messages: str
    system: str | None
    tools: str | None
    reference: str | None


@frozen
class _Thought:
    """A row, read.

    Attributes:
        messages: the conversation, thinking and answers parted.
        reference: the text with the reference answer.
        tools: the tools on offer.
    """

    messages: Sequence[Message]
    reference: str | None
    tools: str | None = None


class ReasoningFormat:
    r"""Reads rows of these shapes, the first that a row has; other columns are ignored.

    | shape | columns | thinking | answer |
    |---|---|---|---|
    | messages | `messages` or `conversations`, as in `general` | the assistant's field `thinking`, `reasoning_content` or `reasoning`, or `<think>…</think>` at the beginning of what it says | the rest of what it says |
    | columns | a prompt, a thinking, an answer | its column | its column |
    | tags | a prompt, an answer | `<think>…</think>` at the answer's beginning | what follows |
    | GSM8K | a prompt, an answer that ends with `#### 72` | the steps | `72` |
    | MATH | a prompt, an answer with `\boxed{…}` | the whole solution | `\boxed{…}` |

    A prompt is `prompt`, `question`, `problem` or `instruction` (with `input` or `context`); a thinking is `thinking`, `reasoning`,
    `reasoning_content`, `cot` or `rationale`; an answer is `response`, `output`, `completion`, `solution` or `answer`:
    the first that is not empty, of the answers the first with tags. The option `columns` names them instead.

    Where `<think>` is missing because the prompt of the model that wrote the text had it, all before the first
    `</think>` is thinking. The reference answer, `Example.answer`, is the text in the column `answer` if that is not
    what is said; of either, what stands behind `####`, in `\boxed{…}` or in `<answer>…</answer>` where it has one.
    `system` or `system_prompt` is the system message; a conversation may have `tools`, as in `general`.
    """  # noqa: E501 - a table's row is a line

    def __init__(self, options: ReasoningOptions) -> None:
        self.options = options
        schemas = (
            RowSchema("chat", functools.partial(_find_chat, sharegpt=False), self._chat, "(role/content)"),
            RowSchema("sharegpt", functools.partial(_find_chat, sharegpt=True), self._chat, "(from/value)"),
            RowSchema("thinking in a column", _find_columns, self._columns),
            RowSchema("thinking in <think>…</think>", _find_tags, self._columns),
            RowSchema("worked solution", _find_solution, self._columns),
        )
        self._schemas = mapped(options.columns, self._columns) if options.columns else RowSchemas(schemas, _EXPECTED)

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The example of one row.

        Raises:
            RowError: columns are missing or hold the wrong things, there is no thinking, or no answer after it.
        """
        thought = self._schemas.read(row)
        messages = thought.messages
        if self.options.thinking == "mask":
            messages = [evolve(message, train_thinking=False) if message.thinking else message for message in messages]
        turns = with_options(messages, instruction=self.options.instruction, system=self.options.system)
        reference = thought.reference or messages[-1].content or None
        return [Example(messages=turns, answer=reference and _stated(reference), tools=thought.tools)]

    def recognise(self, row: Mapping[str, Any]) -> str:
        """One line that says what `read` takes a row for, and by which columns.

        Raises:
            RowError: there is no shape that a row of these columns could have.
        """
        return self._schemas.recognise(row)

    def _chat(self, row: Mapping[str, Any], named: _Chat) -> _Thought:
        messages = checked(read_messages(row[named.messages], named.messages), named.messages)
        parted = [_parted_message(message, f"{named.messages}[{index}]") for index, message in enumerate(messages)]
        if self.options.require_thinking and not any(message.thinking for message in parted):
            raise RowError("no thinking: expected a field thinking, or <think>…</think>, in a message of the assistant")
        tools = None if named.tools is None else read_tools(row[named.tools], f"column {named.tools!r}")
        reference = None if named.reference is None else reference_column(row, named.reference)
        return _Thought(with_system(parted, row, named.system), reference, tools)

    def _columns(self, row: Mapping[str, Any], named: ReasoningColumns) -> _Thought:
        said = named.answer
        given = None if named.thinking is None else text_column(row, named.thinking)
        thought, answer = _parted(text_column(row, said), f"column {said!r}", given)
        solution = read_solution(answer) if thought is None else None
        if solution is not None:
            thought, answer = solution.steps, solution.answer
        if thought is None and self.options.require_thinking:
            raise RowError(
                rf"no thinking: expected <think>…</think>, #### or \boxed{{…}} after some steps in column {said!r}, or "
                f"a column with the thinking ({', '.join(THINKINGS)}); this row has: {columns(row)}"
            )
        asked = Message(role="user", content=question_text(row, named.prompt, named.input))
        reference = None if named.reference is None else reference_column(row, named.reference)
        turns = asked, Message(role="assistant", content=answer, thinking=thought)
        return _Thought(with_system(turns, row, named.system), reference)


# Which columns a row has


def _find_chat(row: Mapping[str, Any], *, sharegpt: bool) -> _Chat | None:
    column = conversation_column(row, sharegpt=sharegpt)
    if column is None:
        return None
    reference = next(iter(filled(row, (ANSWER,))), None)
    return _Chat(messages=column, system=_system(row), tools=TOOLS if row.get(TOOLS) else None, reference=reference)


def _find_columns(row: Mapping[str, Any]) -> ReasoningColumns | None:
    thinkings = filled(row, THINKINGS)
    return _found(row, thinkings[0]) if thinkings else None


def _find_tags(row: Mapping[str, Any]) -> ReasoningColumns | None:
    return _found(row, None) if any(map(functools.partial(_is_tagged, row), SAID)) else None


def _find_solution(row: Mapping[str, Any]) -> ReasoningColumns | None:
    return _found(row, None)


def _found(row: Mapping[str, Any], thinking: str | None) -> ReasoningColumns | None:
    """The columns with the prompt and the answer: of several answers the first with tags."""
    prompts, said = _there(row, PROMPTS), _there(row, SAID)
    if not prompts or not said:
        return None
    answer = next((name for name in said if _is_tagged(row, name)), said[0])
    return _named(
        prompt=prompts[0],
        answer=answer,
        thinking=thinking,
        input=input_column(row, prompts[0]),
        system=_system(row),
        reference=ANSWER if answer != ANSWER and filled(row, (ANSWER,)) else None,
    )


@functools.cache
def _named(*, prompt: str, answer: str, **others: str | None) -> ReasoningColumns:
    """Made once for each of the few ways in which the names above combine."""
    return ReasoningColumns(prompt=prompt, answer=answer, **others)


def _system(row: Mapping[str, Any]) -> str | None:
    return next(iter(filled(row, SYSTEMS)), None)


def _is_tagged(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(text := row.get(name), str) and THINK_CLOSE in text


def _there(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those of `names` that hold something, else those that the row has at all: what is wrong with one can be told."""
    return filled(row, names) or [name for name in names if name in row]


# What the columns hold


def _stated(reference: str) -> str:
    """The answer that a text with the reference comes to."""
    tagged = _TAGGED_ANSWER.fullmatch(reference)
    text = reference if tagged is None else tagged[1].strip()
    return final_answer(text) or text


def _parted_message(message: Message, where: str) -> Message:
    if message.role != "assistant":
        return message
    thinking, answer = _parted(message.content, where, message.thinking, called=message.tool_calls is not None)
    return evolve(message, thinking=thinking, content=answer)


def _parted(text: str, where: str, given: str | None, *, called: bool = False) -> tuple[str | None, str]:
    """The thinking, `given` or in the tags of `text`, and the answer.

    Raises:
        RowError: the tags are not closed, nothing follows them and no tool is `called`, or there are two thinkings.
    """
    begins = answering(text, where, called=called).lstrip().startswith(THINK_OPEN)
    if given is not None and not begins:
        return _bare(given), text
    thinking, answer = split_thinking(text, inside=THINK_CLOSE in text and THINK_OPEN not in text)
    if not answer.strip() and thinking is not None and not called:
        raise RowError(f"{where}: nothing stands after {THINK_CLOSE}")
    if given is not None and thinking is not None and _bare(given) != thinking:
        raise RowError(f"{where}: the thinking in its {THINK_OPEN} is another than the one that stands beside it")
    return (thinking if given is None else _bare(given)), answer


def _bare(thinking: str) -> str:
    """A thinking without tags of its own around it."""
    inner, rest = split_thinking(thinking)
    return thinking.strip() if inner is None or rest.strip() else inner
