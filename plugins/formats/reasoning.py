r"""The format `reasoning`: a question, the thinking about it, and the answer, in the layouts of common data sets."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.answers import THINK_CLOSE, THINK_OPEN, split_thinking
from modelwright.core.api.wording import either
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
    f"expected the column messages, or a prompt ({either(PROMPTS)}) and an answer ({either(SAID)}); or set the option "
    "columns"
)
TOOLS = "tools"

# R1-Zero puts its answers into tags.
_TAGGED_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)

_optional_text = validators.optional(validators.min_len(1))


@frozen(kw_only=True)
class ReasoningColumns:
    """The names of the columns, instead of detecting them.

    Attributes:
        prompt: the column with the question.
        answer: the column with the answer, preceded by `<think>…</think>` if the thinking has no column.
        thinking: the column with the thinking.
        input: the column with the input of the prompt; it follows the prompt after an empty line.
        system: the column with the system message.
        reference: the column with the reference answer; default: the final answer in the answer.
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
        instruction: prompt for the first user message: a template with `{question}`, or a text that precedes it.
        system: a system message for rows that have none.
        thinking: "train" trains on thinking and answer; "mask" keeps the thinking as context and trains on the answer.
        columns: the names of the columns. Set it if the format does not detect them.
        require_thinking: whether to reject rows without thinking; if false, only their answers are trained.
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
    """A parsed row.

    Attributes:
        messages: the conversation, with thinking separated from answers.
        reference: the text with the reference answer.
        tools: the offered tools.
    """

    messages: Sequence[Message]
    reference: str | None
    tools: str | None = None


class ReasoningFormat:
    r"""Reads rows with these schemas; the first that fits is used, and other columns are ignored.

    | schema | columns | thinking | answer |
    |---|---|---|---|
    | messages | `messages` or `conversations`, as in `general` | the assistant's field `thinking`, `reasoning_content` or `reasoning`, or `<think>…</think>` at the beginning of its content | the rest of the content |
    | columns | a prompt, a thinking, an answer | its column | its column |
    | tags | a prompt, an answer | `<think>…</think>` at the beginning of the answer | the rest |
    | GSM8K | a prompt, an answer that ends with `#### 72` | the steps | `72` |
    | MATH | a prompt, an answer with `\boxed{…}` | the whole solution | `\boxed{…}` |

    A prompt is `prompt`, `question`, `problem` or `instruction` (with `input` or `context`); a thinking is `thinking`, `reasoning`,
    `reasoning_content`, `cot` or `rationale`; an answer is `response`, `output`, `completion`, `solution` or `answer`:
    the first that is not empty; for answers, the first with tags. The option `columns` sets them explicitly.

    If `<think>` is missing because the prompt of the generating model had it, all text before the first `</think>` is
    thinking. The reference answer, `Example.answer`, is the final answer (after `####`, in `\boxed{…}` or in
    `<answer>…</answer>`, else the whole text) in the column `answer`, or in the answer itself without such a column.
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
            RowError: columns are missing or have the wrong content, or there is no thinking or no answer after it.
        """
        thought = self._schemas.read(row)
        messages = thought.messages
        if self.options.thinking == "mask":
            messages = [evolve(message, train_thinking=False) if message.thinking else message for message in messages]
        turns = with_options(messages, instruction=self.options.instruction, system=self.options.system)
        reference = thought.reference or messages[-1].content or None
        return [Example(messages=turns, answer=reference and _stated(reference), tools=thought.tools)]

    def detect(self, row: Mapping[str, Any]) -> str:
        """One line that describes what `read` takes a row for, and by which columns.

        Raises:
            RowError: no schema fits the columns.
        """
        return self._schemas.detect(row)

    def _chat(self, row: Mapping[str, Any], named: _Chat) -> _Thought:
        messages = checked(read_messages(row[named.messages], named.messages), named.messages)
        parted = [_parted_message(message, f"{named.messages}[{index}]") for index, message in enumerate(messages)]
        if self.options.require_thinking and not any(message.thinking for message in parted):
            raise RowError("no thinking: expected the field thinking, or <think>…</think>, in an assistant message")
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
                f"a column with the thinking ({either(THINKINGS)}); columns of this row: {columns(row)}"
            )
        question = Message(role="user", content=question_text(row, named.prompt, named.input))
        reference = None if named.reference is None else reference_column(row, named.reference)
        turns = question, Message(role="assistant", content=answer, thinking=thought)
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
    """The columns with the prompt and the answer; of several answers, the first with tags."""
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
    """Cached, because the names above combine in few ways."""
    return ReasoningColumns(prompt=prompt, answer=answer, **others)


def _system(row: Mapping[str, Any]) -> str | None:
    return next(iter(filled(row, SYSTEMS)), None)


def _is_tagged(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(text := row.get(name), str) and THINK_CLOSE in text


def _there(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those of `names` that are not empty, else all that the row has, so that an error can name one."""
    return filled(row, names) or [name for name in names if name in row]


# What the columns hold


def _stated(reference: str) -> str:
    """The final answer in a text."""
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
        RowError: the tags are not closed, nothing follows them and no tool is `called`, or two thinkings differ.
    """
    begins = answering(text, where, called=called).lstrip().startswith(THINK_OPEN)
    if given is not None and not begins:
        return _bare(given), text
    thinking, answer = split_thinking(text, inside=THINK_CLOSE in text and THINK_OPEN not in text)
    if not answer.strip() and thinking is not None and not called:
        raise RowError(f"{where}: expected an answer after {THINK_CLOSE}, found nothing")
    if given is not None and thinking is not None and _bare(given) != thinking:
        raise RowError(f"{where}: the thinking in {THINK_OPEN} differs from the thinking beside it: remove one")
    return (thinking if given is None else _bare(given)), answer


def _bare(thinking: str) -> str:
    """Thinking without tags around it."""
    inner, rest = split_thinking(thinking)
    return thinking.strip() if inner is None or rest.strip() else inner
