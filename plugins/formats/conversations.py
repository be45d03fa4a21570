"""Conversations in the layouts of common data sets: messages, tools and tool calls; and rows that `prepare` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.records import Role
from modelwright.plugins.formats.rows import answering, columns, from_json_text, is_blank

CONVERSATIONS = ("messages", "conversations", "conversation")
THINKING = ("thinking", "reasoning_content", "reasoning")

# How data sets name the speakers, in any case: the roles, and the names of OpenAI, ShareGPT, Gemini, Llama and others.
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
# Speakers of ShareGPT whose text is a tool call.
_CALLERS = ("function_call", "tool_call")
# What OpenAI's APIs call a part of a content that is text.
_TEXT_PARTS = ("text", "input_text", "output_text")


def interchange(row: Mapping[str, Any]) -> Example | None:
    """The example in a row that `modelwright prepare` wrote; None for any other row.

    Such a row has the id of its content. An edited row has a different content and is read by its columns.
    """
    if not isinstance(row.get("id"), str) or "messages" not in row or "source" not in row:
        return None
    filled = {name: value for name, value in row.items() if name == "messages" or not is_blank(value)}
    for written in (filled, row):  # a file that was put together adds empty columns
        try:
            example = Example.from_row(written)
        except (TypeError, ValueError, AttributeError):
            continue
        if example.id == row["id"]:
            return example
    return None


def conversation_column(row: Mapping[str, Any], *, sharegpt: bool) -> str | None:
    """The column with a conversation, of ShareGPT messages (`from` and `value`) or of others; None without one."""
    there = [column for column in CONVERSATIONS if row.get(column) is not None]
    if not there:
        return None
    lists = {column: value for column in there if isinstance(value := from_json_text(row[column]), list | tuple)}
    column = next(iter(lists), there[0])
    first = next(iter(lists.get(column, ())), None)
    return column if (isinstance(first, Mapping) and _is_sharegpt(first)) is sharegpt else None


def as_messages(value: Any) -> Sequence[Any] | None:
    """The messages in a column that may have a text instead: a list, or JSON text of messages; None for a text."""
    if isinstance(value, str):
        value = from_json_text(value)
        if not isinstance(value, list) or not value or not all(map(_is_message, value)):
            return None
    return value if isinstance(value, list | tuple) else None


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def read_messages(value: Any, where: str) -> list[Message]:
    """Parse a list of messages, or JSON text of one, in any of the common layouts.

    Raises:
        RowError: it is not a list of messages, or a message cannot be read.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _data(value, f"column {where!r}: expected a list of messages as JSON text")
    if not isinstance(value, list | tuple):
        raise RowError(f"column {where!r}: expected a list of messages, found {type(value).__name__}")
    if not value:
        raise RowError(f"column {where!r}: expected at least one message, found an empty list")
    return [_message(message, f"{where}[{index}]") for index, message in enumerate(value)]


def checked(messages: Sequence[Message], where: str) -> list[Message]:
    """Check that a conversation can be trained on, and name the tool of each tool result if it is known.

    Raises:
        RowError: it does not end with the assistant, has no user message, or a message is misplaced.
    """
    if any(message.role == "system" for message in messages[1:]):
        raise RowError(f"column {where!r}: a system message must be the first message")
    if not any(message.role == "user" for message in messages):
        raise RowError(f"column {where!r}: expected at least one user message, found none")
    if messages[-1].role != "assistant":
        raise RowError(f"column {where!r}: expected an assistant message at the end, found role {messages[-1].role!r}")
    if not messages[-1].content.strip() and messages[-1].tool_calls is None:
        raise RowError(f"column {where!r}: the last assistant message is empty")
    for index, message in enumerate(messages):
        if message.role == "assistant" and message.train is not False and _says_nothing(message):
            raise RowError(
                f"{where}[{index}]: empty assistant message; expected content or tool_calls, or train = false"
            )
    return _with_tool_names(messages, where)


def _says_nothing(message: Message) -> bool:
    return message.tool_calls is None and not message.content.strip()


def _with_tool_names(messages: Sequence[Message], where: str) -> list[Message]:
    """The messages; tool results have the name of their tool if only one call can be meant."""
    made = list(messages)
    if not any(message.role == "tool" for message in messages):
        return made
    calls: list[dict[str, Any]] | None = None
    for index, message in enumerate(messages):
        if message.role == "assistant":
            calls = json.loads(message.tool_calls or "[]")
        elif message.role != "tool":
            calls = None
        elif calls is None:
            raise RowError(f"{where}[{index}]: a tool result must follow the assistant message that calls the tool")
        else:
            made[index] = _answering(message, calls, f"{where}[{index}]")
    return made


def _answering(result: Message, calls: Sequence[Mapping[str, Any]], where: str) -> Message:
    ids = [call["id"] for call in calls if "id" in call]
    if result.tool_call_id is not None and ids:
        if result.tool_call_id not in ids:
            raise RowError(
                f"{where}: tool_call_id {result.tool_call_id!r:.60} does not match any of the calls before it"
            )
        calls = [call for call in calls if call.get("id") == result.tool_call_id]
    if result.name is not None or len(calls) != 1:
        return result
    return evolve(result, name=calls[0]["function"]["name"])


def _is_sharegpt(message: Mapping[str, Any]) -> bool:
    return message.get("role") is None and message.get("from") is not None


def _message(value: Any, where: str) -> Message:
    value = from_json_text(value)
    if not isinstance(value, Mapping):
        raise RowError(f"{where}: expected a message with role and content, found {type(value).__name__}")
    speaker, said = ("from", "value") if _is_sharegpt(value) else ("role", "content")
    name = value.get(speaker)
    name = name.strip().casefold() if isinstance(name, str) else name
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        if name is None:
            raise RowError(f"{where}: expected role and content, found {columns(value)}")
        raise RowError(f"{where}: expected role system, user, assistant or tool, found {name!r:.60}")
    assistant, tool = role == "assistant", role == "tool"
    calls = read_calls(value.get(said), where) if name in _CALLERS else _calls(value, where)
    if calls is not None and not assistant:
        raise RowError(f"{where}: only the assistant can call tools, found a call by role {role!r}")
    if name in _CALLERS and calls is None:
        raise RowError(f"{where}: {said}: expected a tool call as JSON, found nothing")
    content = "" if name in _CALLERS else _content(value.get(said), f"{where}: {said}", role, called=calls is not None)
    return Message(
        role=role,
        content=answering(content, where, called=calls is not None) if assistant else content,
        thinking=_thinking(value, where) if assistant else None,
        tool_calls=calls,
        tool_call_id=_text(value, "tool_call_id", where) if tool else None,
        name=_text(value, "name", where) if tool else None,
        train=_train(value, where),
        train_thinking=_flag(value, "train_thinking", where) is not False,
    )


def _calls(value: Mapping[str, Any], where: str) -> str | None:
    """The tool calls, in the current or the older form of OpenAI."""
    for key in ("tool_calls", "function_call"):
        calls = read_calls(value.get(key), f"{where}: {key}")
        if calls is not None:
            return calls
    return None


def _content(value: Any, where: str, role: Role, *, called: bool) -> str:
    """The content: text, or OpenAI's list of text parts. It may be missing beside tool calls."""
    if value is None and called:
        return ""
    if isinstance(value, Mapping) and role == "tool":
        return json_text(value, where)
    if isinstance(value, list | tuple) and value:
        return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))
    if not isinstance(value, str):
        raise RowError(f"{where}: expected text, found {type(value).__name__}")
    return value


def _part(part: Any, where: str) -> str:
    if (
        not isinstance(part, Mapping)
        or not isinstance(part.get("text"), str)
        or part.get("type", "text") not in _TEXT_PARTS
    ):
        kind = part.get("type") if isinstance(part, Mapping) else None
        what = f"type {kind!r:.40}" if isinstance(kind, str) else type(part).__name__
        raise RowError(f"{where}: expected text, or a part of type 'text' with its text, found {what}")
    return str(part["text"])


def _thinking(value: Mapping[str, Any], where: str) -> str | None:
    key = next((key for key in THINKING if value.get(key)), None)
    if key is None:
        return None
    if not isinstance(value[key], str):
        raise RowError(f"{where}: {key}: expected text, found {type(value[key]).__name__}")
    return None if is_blank(value[key]) else str(value[key])


def _train(value: Mapping[str, Any], where: str) -> bool | None:
    """Whether a message is trained: `train`, or OpenAI's `weight` of 0 or 1."""
    train, weight = _flag(value, "train", where), value.get("weight")
    if weight is None:
        return train
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(f"{where}: weight: expected 0 or 1, found {weight!r:.40}")
    if train is not None and train is not bool(weight):
        raise RowError(f"{where}: train and weight contradict each other: remove one")
    return bool(weight)


def _flag(value: Mapping[str, Any], key: str, where: str) -> bool | None:
    flag = value.get(key)
    if not isinstance(flag, bool | None):
        raise RowError(f"{where}: {key}: expected true or false, found {type(flag).__name__}")
    return flag


def _text(value: Mapping[str, Any], key: str, where: str) -> str | None:
    text = value.get(key)
    if not isinstance(text, str | None):
        raise RowError(f"{where}: {key}: expected text, found {type(text).__name__}")
    return text


def read_tools(value: Any, where: str) -> str | None:
    """Parse the offered tools, each as `{"type": "function", "function": {…}}`; None if there are none.

    Args:
        value: a list of such objects, or only of the objects under `function`; or JSON text of either.
        where: the column, for messages.

    Raises:
        RowError: it is anything else.
    """
    tools = _items(value, where)
    for number, tool in enumerate(tools):
        if isinstance(tool, str):
            tool = _data(tool, f"{where}[{number}]")  # noqa: PLW2901 - Arrow's lists hold one type, so some data sets write JSON text
        function = _inner(tool)
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise RowError(f"{where}[{number}]: expected a tool, an object with name, or with function that has a name")
        if function is tool:
            outer = ("type", "function")
            tool = {"function": {key: item for key, item in tool.items() if key not in outer}}  # noqa: PLW2901
        tools[number] = {"type": "function", **tool}
    return _json(tools, where) if tools else None


def read_calls(value: Any, where: str) -> str | None:
    """Parse tool calls: `{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}`; None for none.

    Args:
        value: a call, or a list of calls, with `function` or without; or JSON text of either.
        where: the place in the row, for messages.

    Raises:
        RowError: it is anything else, or the arguments are not an object.
    """
    calls = _items(value, where)
    made = [_call(call, where if len(calls) == 1 else f"{where}[{number}]") for number, call in enumerate(calls)]
    return _json(made, where) if made else None


def json_text(value: Mapping[str, Any], where: str) -> str:
    """An object as JSON text.

    Raises:
        RowError: JSON cannot represent it.
    """
    return _json(value, where)


def _inner(value: Any) -> Any:
    """The object under `function`, or the object itself without one; None if it is not an object."""
    if not isinstance(value, Mapping):
        return None
    return value if value.get("function") is None else value["function"]


def _call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = _data(call, where)
    function = _inner(call)
    if not isinstance(function, Mapping):
        raise RowError(f"{where}: expected a tool call, an object with name and arguments")
    name = function.get("name")
    arguments = next((function[key] for key in ("arguments", "parameters") if not is_blank(function.get(key))), None)
    if not _is_name(name):
        raise RowError(f"{where}: expected the name of the called tool, found {columns(function)}")
    arguments = {} if arguments is None else _data(arguments, f"{where}: arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where}: arguments: expected a JSON object, found {type(arguments).__name__}")
    identity = call.get("id")
    if not isinstance(identity, str | None):
        raise RowError(f"{where}: id: expected text, found {type(identity).__name__}")
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if identity is None else {"id": identity, **made}


def _items(value: Any, where: str) -> list[Any]:
    """The objects of a list or of JSON text; a single object becomes a list."""
    if is_blank(value):
        return []
    data = _data(value, where)
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, list | tuple | None):
        return list(data or ())
    raise RowError(f"{where}: expected a list of objects, or JSON text of one, found {type(data).__name__}")


def _data(value: Any, where: str) -> Any:
    """The value of JSON text; any other value unchanged."""
    try:
        return json.loads(value, parse_constant=_refuse) if isinstance(value, str) else value
    except ValueError as error:
        raise RowError(f"{where}: not valid JSON: {error}") from None
    except RecursionError:
        raise RowError(f"{where}: nested too deeply") from None


def _refuse(constant: str) -> None:
    msg = f"{constant} is not a number"
    raise ValueError(msg)


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}: JSON cannot represent it: {error}") from None
    except RecursionError:
        raise RowError(f"{where}: nested too deeply") from None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
