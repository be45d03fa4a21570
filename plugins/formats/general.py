"""The format `general`: alpaca, chat messages and prompt/completion, told apart by their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve, field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.records import ROLES
from modelwright.plugins.formats.rows import columns, instruct, text_column

_TOOLS = "tool calls are not supported by this version"
_CONVERSATIONS = ("messages", "conversations")


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
    """Reads rows of three shapes; other columns are ignored.

    Chat: `messages` (or `conversations`), a list of `{role, content}` that ends with the assistant, with `thinking` (or
    `reasoning_content`) where there is any. Alpaca: `instruction`, `output` and, optionally, `input`, which stands
    after the instruction with an empty line between. Prompt/completion: `prompt`, `completion`. A row with the columns
    of several shapes is read as the first of them. The reference answer, `Example.answer`, is what the assistant says
    last.
    """

    def __init__(self, options: GeneralOptions) -> None:
        self.options = options

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The example of one row.

        Raises:
            RowError: columns are missing or hold the wrong things, or the conversation is none that can be learnt.
        """
        conversation = next((column for column in _CONVERSATIONS if row.get(column) is not None), None)
        if row.get("tools"):
            raise RowError(f"column 'tools': {_TOOLS}")
        if conversation is not None:
            messages = _conversation(row[conversation], conversation)
        elif "instruction" in row and "output" in row:
            messages = _turns(_alpaca_question(row), text_column(row, "output"))
        elif "prompt" in row and "completion" in row:
            messages = _turns(text_column(row, "prompt"), text_column(row, "completion"))
        else:
            raise RowError(
                "expected the column messages (chat), instruction and output (alpaca), or prompt and completion; "
                f"this row has: {columns(row)}"
            )
        return [Example(messages=self._with_options(messages), answer=messages[-1].content)]

    def _with_options(self, messages: list[Message]) -> tuple[Message, ...]:
        asked = next(index for index, message in enumerate(messages) if message.role == "user")
        changed = list(messages)
        changed[asked] = evolve(changed[asked], content=instruct(self.options.instruction, changed[asked].content))
        if self.options.system is not None and changed[0].role != "system":
            changed.insert(0, Message(role="system", content=self.options.system))
        return tuple(changed)


def _turns(question: str, answer: str) -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


def _alpaca_question(row: Mapping[str, Any]) -> str:
    instruction, given = text_column(row, "instruction"), row.get("input")
    if given is None or (isinstance(given, str) and not given.strip()):
        return instruction
    return f"{instruction}\n\n{text_column(row, 'input')}"


def _conversation(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list | tuple):
        raise RowError(f"column {column!r} must be a list of messages, not {type(value).__name__}")
    if not value:
        raise RowError(f"column {column!r} is an empty conversation")
    messages = [_message(message, f"{column}[{index}]") for index, message in enumerate(value)]
    if any(message.role == "system" for message in messages[1:]):
        raise RowError(f"column {column!r}: a system message must be the first")
    if not any(message.role == "user" for message in messages):
        raise RowError(f"column {column!r} has no message of the user")
    if messages[-1].role != "assistant":
        raise RowError(f"column {column!r} must end with the assistant, not with role {messages[-1].role!r}")
    if not messages[-1].content.strip():
        raise RowError(f"column {column!r}: what the assistant says last is empty")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f"{where} must be a message with role and content, not {type(value).__name__}")
    role, content = value.get("role"), value.get("content")
    if role in ("tool", "function") or any(value.get(key) for key in ("tool_calls", "function_call", "tool_call_id")):
        raise RowError(f"{where}: {_TOOLS}")
    if role not in ROLES:
        if "role" not in value:
            raise RowError(f"{where} has no role; expected role and content, it has: {columns(value)}")
        raise RowError(f"{where}: unknown role {role!r:.60}; expected system, user or assistant")
    if not isinstance(content, str):
        raise RowError(f"{where}: content must be text, not {type(content).__name__}")
    thinking = value.get("thinking") or value.get("reasoning_content") or None
    if not isinstance(thinking, str | None):
        raise RowError(f"{where}: thinking must be text, not {type(thinking).__name__}")
    return Message(role=role, content=content, thinking=thinking if role == "assistant" else None)
