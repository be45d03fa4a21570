"""The format `general`: alpaca, chat messages and pairs of columns such as prompt and completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.plugins.formats.conversations import conversation, interchange
from modelwright.plugins.formats.rows import (
    ANSWER,
    columns,
    question_text,
    reference_column,
    text_column,
    with_options,
)

# What is asked and what is said, by the names of their columns; the first pair that a row has is read.
_PAIRS = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("question", "response"),
    ("question", ANSWER),
    ("problem", "solution"),
    ("instruction", "response"),
    ("prompt", "response"),
)


@frozen(kw_only=True)
class GeneralOptions:
    """The options of the format `general`.

    Attributes:
        instruction: put to the first user turn: a template with `{question}`, or a text that stands before it.
        system: a system message for the rows that bring none.
    """

    instruction: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))
    system: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))


class GeneralFormat:
    """Reads rows of four shapes; other columns are ignored.

    Chat: `messages` (or `conversations`), a list of `{role, content}` or of ShareGPT's `{from, value}`, that ends with
    the assistant. A message may bring its `thinking` (or `reasoning_content`, `reasoning`), `train` (whether the turn
    is learnt) and `train_thinking`.
    Alpaca: `instruction`, `output` and, optionally, `input`, which stands after the instruction with an empty line
    between.
    Self-instruct: `instruction` and `instances`, a list of `{input, output}`: an example for each.
    Pairs: `prompt` and `completion` or `response`, `question` and `response` or `answer`, `problem` and `solution`,
    `instruction` and `response`.
    A row with the columns of several shapes is read as the first of them. The reference answer, `Example.answer`, is
    the text in the column `answer`, else what the assistant says last. Rows that `modelwright prepare` wrote are read
    back as they were.
    """

    def __init__(self, options: GeneralOptions) -> None:
        self.options = options

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The example of one row.

        Raises:
            RowError: columns are missing or hold the wrong things, or the conversation is none that can be learnt.
        """
        prepared = interchange(row)
        if prepared is not None and prepared.text is not None:
            return [prepared]
        examples = [prepared] if prepared else [_example(each) for each in _instances(row)]
        return [evolve(example, messages=self._with_options(example.messages)) for example in examples]

    def _with_options(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        return with_options(messages, instruction=self.options.instruction, system=self.options.system)


def _instances(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alpaca rows that a row of self-instruct holds; any other row is itself."""
    instances = row.get("instances")
    if "instruction" not in row or "output" in row or not isinstance(instances, list | tuple):
        return [row]
    if not instances:
        raise RowError("column 'instances' is empty")
    for number, instance in enumerate(instances):
        if not isinstance(instance, Mapping) or "output" not in instance:
            raise RowError(f"instances[{number}] must have input and output")
    return [{**instance, "instruction": row["instruction"]} for instance in instances]


def _example(row: Mapping[str, Any]) -> Example:
    messages = conversation(row)
    if messages is None:
        pair = next((pair for pair in _PAIRS if all(column in row for column in pair)), None)
        if pair is None:
            raise RowError(
                "expected the column messages (chat), instruction and output (alpaca), prompt and completion, question "
                f"and answer, or problem and solution; this row has: {columns(row)}"
            )
        asked, said = question_text(row, pair[0]), text_column(row, pair[1])
        messages = [Message(role="user", content=asked), Message(role="assistant", content=said)]
    return Example(messages=messages, answer=reference_column(row) or messages[-1].content)
