"""Conversations in a column: what formats read of messages, and the rows that `modelwright prepare` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.records import ROLES, Role
from modelwright.plugins.formats.rows import columns, is_blank

CONVERSATIONS = ("messages", "conversations")
THINKING = ("thinking", "reasoning_content", "reasoning")
TOOLS = "tool calls are not supported by this version"

_TOOL_ROLES = ("tool", "function", "function_call", "observation")
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
# What ShareGPT's conversations call their speakers, beside the roles.
_SHAREGPT: Mapping[Any, Role] = {"human": "user", "gpt": "assistant"}


def interchange(row: Mapping[str, Any]) -> Example | None:
    """The example that a row of `modelwright prepare` is; None for any other row.

    Such a row has the id of its content. One that was edited has another content: it is read as what its columns say.
    """
    if not isinstance(row.get("id"), str) or "messages" not in row or "source" not in row:
        return None
    try:
        example = Example.from_row(row)
    except (TypeError, ValueError, AttributeError):
        return None
    return example if example.id == row["id"] else None


def conversation(row: Mapping[str, Any]) -> list[Message] | None:
    """The messages of a row's conversation; None where it has none.

    Raises:
        RowError: it is none that can be learnt from, or it needs tools.
    """
    column = next((column for column in CONVERSATIONS if row.get(column) is not None), None)
    if row.get("tools"):
        raise RowError(f"column 'tools': {TOOLS}")
    if column is None:
        return None
    value = row[column]
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
    sharegpt = "role" not in value and "from" in value
    role, content = (value.get("from"), value.get("value")) if sharegpt else (value.get("role"), value.get("content"))
    role = _SHAREGPT.get(role, role) if sharegpt and isinstance(role, str) else role
    if role in _TOOL_ROLES or any(value.get(key) for key in _TOOL_KEYS):
        raise RowError(f"{where}: {TOOLS}")
    if role not in ROLES:
        if role is None:
            raise RowError(f"{where} has no role; expected role and content, it has: {columns(value)}")
        raise RowError(f"{where}: unknown role {role!r:.60}; expected system, user or assistant")
    if not isinstance(content, str):
        raise RowError(f"{where}: {'value' if sharegpt else 'content'} must be text, not {type(content).__name__}")
    assistant = role == "assistant"
    return Message(
        role=role,
        content=content,
        thinking=_thinking(value, where) if assistant else None,
        train=_flag(value, "train", where),
        train_thinking=_flag(value, "train_thinking", where) is not False,
    )


def _thinking(value: Mapping[str, Any], where: str) -> str | None:
    key = next((key for key in THINKING if value.get(key)), None)
    if key is None:
        return None
    if not isinstance(value[key], str):
        raise RowError(f"{where}: {key} must be text, not {type(value[key]).__name__}")
    return None if is_blank(value[key]) else str(value[key])


def _flag(value: Mapping[str, Any], key: str, where: str) -> bool | None:
    flag = value.get(key)
    if not isinstance(flag, bool | None):
        raise RowError(f"{where}: {key} must be true or false, not {type(flag).__name__}")
    return flag
