"""Tools and calls of them, however a data set writes them, as the JSON text that records keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelwright.core.api import RowError
from modelwright.plugins.formats.rows import columns, is_blank


def read_tools(value: Any, where: str) -> str | None:
    """The tools on offer, each as `{"type": "function", "function": {…}}`; None where there are none.

    Args:
        value: a list of such objects, or of what stands under `function` alone; or JSON text of either.
        where: the column, for messages.

    Raises:
        RowError: it is something else.
    """
    tools = _items(value, where)
    for number, tool in enumerate(tools):
        if isinstance(tool, str):
            tool = _data(tool, f"{where}[{number}]")  # noqa: PLW2901 - Arrow's lists hold one kind, so some write texts
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise RowError(
                f"{where}[{number}] is no tool: expected an object with a name, or with function and its name"
            )
        if function is tool:
            tool = {"function": {key: item for key, item in tool.items() if key != "type"}}  # noqa: PLW2901
        tools[number] = {"type": "function", **tool}
    return _text(tools, where) if tools else None


def read_calls(value: Any, where: str) -> str | None:
    """Calls, each as `{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}`; None for none.

    Args:
        value: a call, or a list of calls, with `function` or without; or JSON text of either.
        where: the place in the row, for messages.

    Raises:
        RowError: it is something else, or the arguments are no object.
    """
    calls = _items(value, where)
    made = [_call(call, where if len(calls) == 1 else f"{where}[{number}]") for number, call in enumerate(calls)]
    return _text(made, where) if made else None


def json_text(value: Mapping[str, Any], where: str) -> str:
    """An object as JSON text, without the nulls that Arrow invents.

    Raises:
        RowError: JSON has no way to write it.
    """
    return _text(_data(value, where), where)


def _call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = _data(call, where)
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RowError(f"{where} is no call of a tool: expected an object with name and arguments")
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    if not _is_name(name):
        raise RowError(f"{where} does not name the tool that it calls; it has: {columns(function)}")
    arguments = {} if is_blank(arguments) else _data(arguments, f"{where}: arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where}: arguments must be a JSON object, not {type(arguments).__name__}")
    identity = call.get("id")
    if not isinstance(identity, str | None):
        raise RowError(f"{where}: id must be text, not {type(identity).__name__}")
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if identity is None else {"id": identity, **made}


def _items(value: Any, where: str) -> list[Any]:
    """The objects of a list, or of JSON text; one alone is a list of one."""
    if is_blank(value):
        return []
    data = _data(value, where)
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, list | None):
        return data or []
    raise RowError(f"{where} must be a list of objects, or JSON text of one, not {type(data).__name__}")


def _data(value: Any, where: str) -> Any:
    """What JSON text says, nulls and all; other values without the nulls that Arrow invents for absent keys."""
    try:
        return json.loads(value, parse_constant=_refuse) if isinstance(value, str) else _without_nulls(value)
    except ValueError as error:
        raise RowError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise RowError(f"{where} is nested too deeply") from None


def _refuse(constant: str) -> None:
    msg = f"{constant} is no number"
    raise ValueError(msg)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _text(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError(f"{where} cannot be written as JSON: {error}") from None
    except RecursionError:
        raise RowError(f"{where} is nested too deeply") from None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
