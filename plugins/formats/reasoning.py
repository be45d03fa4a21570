r"""The format `reasoning`: a question, the thinking about it, and the answer, however a data set writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.thinking import CLOSE, OPEN, split_thinking
from modelwright.plugins.formats.conversations import conversation
from modelwright.plugins.formats.rows import (
    ANSWER,
    columns,
    filled,
    question_text,
    reference_column,
    text_column,
    with_options,
)
from modelwright.plugins.formats.solutions import final_answer, read_solution

PROMPTS = ("prompt", "question", "problem", "instruction")
THINKINGS = ("thinking", "reasoning", "reasoning_content", "cot", "rationale")
SAID = ("response", "output", "completion", "solution", ANSWER)

_optional_text = validators.optional(validators.min_len(1))


@frozen(kw_only=True)
class ReasoningColumns:
    """The names of the columns, where they are to be named.

    Attributes:
        prompt: holds the question.
        answer: holds the answer; with `<think>…</think>` before it where no column holds the thinking.
        thinking: holds the thinking.
    """

    prompt: str = field(validator=validators.min_len(1))
    answer: str = field(validator=validators.min_len(1))
    thinking: str | None = field(default=None, validator=_optional_text)


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


class ReasoningFormat:
    r"""Reads rows of these shapes, the first that a row has; other columns are ignored.

    | shape | columns | thinking | answer |
    |---|---|---|---|
    | messages | `messages` or `conversations`, as in `general` | the assistant's field `thinking`, `reasoning_content` or `reasoning`, or `<think>…</think>` at the beginning of what it says | the rest of what it says |
    | columns | a prompt, a thinking, an answer | its column | its column |
    | tags | a prompt, an answer | `<think>…</think>` at the answer's beginning | what follows |
    | GSM8K | a prompt, an answer that ends with `#### 72` | the steps | `72` |
    | MATH | a prompt, an answer with `\boxed{…}` | the whole solution | `\boxed{…}` |

    A prompt is `prompt`, `question`, `problem` or `instruction` (with `input`); a thinking is `thinking`, `reasoning`,
    `reasoning_content`, `cot` or `rationale`; an answer is `response`, `output`, `completion`, `solution` or `answer`:
    the first that is not empty, of the answers the first with tags. The option `columns` names them instead.

    Where `<think>` is missing because the prompt of the model that wrote the text had it, all before the first
    `</think>` is thinking. The reference answer, `Example.answer`, is the text in the column `answer` if that is not
    what is said; of either, what stands behind `####` or in `\boxed{…}` where it has one.
    """  # noqa: E501 - a table's row is a line

    def __init__(self, options: ReasoningOptions) -> None:
        self.options = options

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The example of one row.

        Raises:
            RowError: columns are missing or hold the wrong things, there is no thinking, or no answer after it.
        """
        messages, reference = self._conversation(row)
        if self.options.thinking == "mask":
            messages = [evolve(message, train_thinking=False) if message.thinking else message for message in messages]
        turns = with_options(messages, instruction=self.options.instruction, system=self.options.system)
        return [Example(messages=turns, answer=final_answer(reference) or reference)]

    def _conversation(self, row: Mapping[str, Any]) -> tuple[list[Message], str]:
        """The messages, and the text with the reference answer."""
        named = self.options.columns
        messages = None if named else conversation(row)
        if messages is None:
            prompt, thinking, said = _recognised(row) if named is None else _named(row, named)
            return self._turns(row, prompt, thinking, said)
        parted = [_parted_message(message, number) for number, message in enumerate(messages)]
        if self.options.require_thinking and not any(message.thinking for message in parted):
            raise RowError("no thinking: expected a field thinking, or <think>…</think>, in a message of the assistant")
        return parted, reference_column(row) or parted[-1].content

    def _turns(self, row: Mapping[str, Any], prompt: str, thinking: str | None, said: str) -> tuple[list[Message], str]:
        given = None if thinking is None else text_column(row, thinking)
        thought, answer = _parted(text_column(row, said), f"column {said!r}", given)
        solution = read_solution(answer) if thought is None else None
        if solution is not None:
            thought, answer = solution.steps, solution.answer
        if thought is None and self.options.require_thinking:
            raise RowError(
                rf"no thinking: expected <think>…</think>, #### or \boxed{{…}} after some steps in column {said!r}, or "
                f"a column with the thinking ({', '.join(THINKINGS)}); this row has: {columns(row)}"
            )
        asked = Message(role="user", content=question_text(row, prompt))
        reference = None if said == ANSWER or self.options.columns else reference_column(row)
        return [asked, Message(role="assistant", content=answer, thinking=thought)], reference or answer


def _recognised(row: Mapping[str, Any]) -> tuple[str, str | None, str]:
    """The names of the columns with the prompt, the thinking and the answer."""
    prompts, said = _there(row, PROMPTS), _there(row, SAID)
    if not prompts or not said:
        raise RowError(
            f"expected the column messages, or a prompt ({', '.join(PROMPTS)}) and an answer ({', '.join(SAID)}); "
            f"this row has: {columns(row)}"
        )
    thinkings = filled(row, THINKINGS)
    tagged = (name for name in said if isinstance(row[name], str) and CLOSE in row[name])
    return prompts[0], thinkings[0] if thinkings else None, next(tagged, said[0])


def _there(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those of `names` that hold something, else those that the row has at all: what is wrong with one can be told."""
    return filled(row, names) or [name for name in names if name in row]


def _named(row: Mapping[str, Any], names: ReasoningColumns) -> tuple[str, str | None, str]:
    for name in filter(None, (names.prompt, names.thinking, names.answer)):
        if name not in row:
            raise RowError(f"there is no column {name!r}, which the option columns names; this row has: {columns(row)}")
    return names.prompt, names.thinking, names.answer


def _parted_message(message: Message, number: int) -> Message:
    if message.role != "assistant":
        return message
    thinking, answer = _parted(message.content, f"message {number}", message.thinking)
    return evolve(message, thinking=thinking, content=answer)


def _parted(text: str, where: str, given: str | None) -> tuple[str | None, str]:
    """The thinking, `given` or in the tags of `text`, and the answer.

    Raises:
        RowError: the tags are not closed, nothing follows them, or there are two thinkings.
    """
    begins = text.lstrip().startswith(OPEN)
    if given is not None and not begins:
        return _bare(given), text
    if begins and CLOSE not in text:
        raise RowError(f"{where}: {OPEN} is not closed by {CLOSE}")
    thinking, answer = split_thinking(text, inside=CLOSE in text and OPEN not in text)
    if not answer.strip() and thinking is not None:
        raise RowError(f"{where}: nothing stands after {CLOSE}")
    if given is not None and thinking is not None and _bare(given) != thinking:
        raise RowError(f"{where}: the thinking in its {OPEN} is another than the one that stands beside it")
    return (thinking if given is None else _bare(given)), answer


def _bare(thinking: str) -> str:
    """A thinking without tags of its own around it."""
    inner, rest = split_thinking(thinking)
    return thinking.strip() if inner is None or rest.strip() else inner
