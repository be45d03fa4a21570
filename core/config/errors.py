"""The errors of a configuration: found by key path, reported by file and line, all at once.

Below: values and keys as TOML writes them; attrs' validators in plain English; unknown keys, and where they belong.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import date, time
from types import MappingProxyType
from typing import Any, get_args, get_origin

from attrs import asdict, fields, frozen, has, resolve_types

from modelwright.core.api.errors import UsageError
from modelwright.core.api.wording import closest, either

KeyPath = tuple[str | int, ...]
Finding = tuple[KeyPath, str]


class Invalid(Exception):  # noqa: N818 - it only carries findings up to the reader
    """A value cannot be structured.

    Attributes:
        findings: each thing that is wrong, as (key path from the value that was structured, message).
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings: tuple[Finding, ...] = tuple(findings)
        super().__init__("; ".join(message for _, message in self.findings))


def fail(message: str) -> Invalid:
    """An `Invalid` about the value itself."""
    return Invalid([((), message)])


def below(key: str | int, findings: Iterable[Finding]) -> list[Finding]:
    """The same findings, relative to the table or array that holds the value under `key`."""
    return [((key, *path), message) for path, message in findings]


@frozen(kw_only=True)
class Problem:
    """One line of a `ConfigError`.

    Attributes:
        source: the file as the caller named it, or "--set".
        line: in the file, from 1; None if there is none.
        column: from 1, for syntax errors.
        table: the table's header without brackets; empty for the file's top, and for `--set`.
        key: the key in that table; for `--set` the whole dotted path.
        message: what is wrong, what is expected, and what to do.
    """

    source: str
    line: int | None = None
    column: int | None = None
    table: str = ""
    key: str = ""
    message: str

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.source, self.line, self.column) if part is not None)
        return f"{' '.join(filter(None, (place, self.table and f'[{self.table}]', self.key)))}: {self.message}"

    def to_row(self) -> dict[str, Any]:
        """What `modelwright config check --json` prints."""
        return asdict(self)


class ConfigError(UsageError):
    """A configuration is wrong; `str()` gives one line for each problem.

    Attributes:
        problems: every one of them: by line, then those of `--set`.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """The problems as the command line prints them."""
        return tuple(str(problem) for problem in self.problems)


# Values and keys as TOML writes them

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST = 60
# Floats below it that are whole numbers are written without an exponent.
_EXACT = 10**15
# Longer integers are not written out; Python refuses to print those of several thousand digits.
_BITS = 128


def printable(text: str) -> str:
    """`text` on one line; characters that cannot be printed are escaped as in TOML."""
    return "".join(
        character if character.isprintable() else f"\\u{ord(character):04x}" if ord(character) < 0x10000
        else f"\\U{ord(character):08x}"
        for character in text
    )  # fmt: skip


def quoted(text: str) -> str:
    """`text` as a TOML string, in full."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def shown(value: Any) -> str:
    """A value as TOML writes it, shortened; tables and arrays by their type only."""
    if isinstance(value, str):
        return quoted(_short(value))
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, Sequence | set | frozenset):
        return "an array" if value else "an empty array"
    if value is None:
        value = "null"
    elif isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > _BITS:
        value = f"an integer of {value.bit_length()} bits"
    elif isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    elif isinstance(value, date | time):
        value = value.isoformat()
    return printable(_short(str(value)))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def dotted(path: KeyPath) -> str:
    """A key path as `--set` takes it; parts that are not bare keys are quoted."""
    return ".".join(part if _BARE.fullmatch(part) else quoted(part) for part in map(str, path))


def not_one_of(value: Any, allowed: Sequence[Any]) -> str:
    """The message for a value that is not one of the allowed ones."""
    message = f"must be {either(map(shown, allowed))}, not {shown(value)}"
    if isinstance(value, str):
        close = closest(value, [choice for choice in allowed if isinstance(choice, str)])
        if close is not None:
            message += f", did you mean {shown(close)}?"
    return message


# Messages of validators

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    tuple: "an array",
    dict: "a table",
}
# The messages of attrs' own number validators, for functions that call them.
_ATTRS = re.compile(r"^(must be (?:[<>]=?|==|!=) \S+): (.+)$")
NOT_EMPTY = "not be empty"


def complaint(validator: Any, instance: Any, attribute: Any, value: Any) -> str | None:
    """The message of `validator` about `value`; None if the value is valid.

    Raises:
        AttributeError: the validator reads a field that `instance` does not have.
    """
    parts = getattr(validator, "_validators", None)
    if type(validator).__name__ == "_AndValidator" and parts and _wish(validator) is None:
        return next(filter(None, (complaint(part, instance, attribute, value) for part in parts)), None)
    try:
        validator(instance, attribute, value)
    except AttributeError:
        raise
    except Exception as error:  # noqa: BLE001 - a plugin's validator may raise anything
        wish = _wish(validator)
        if wish is not None:
            return f"must {wish}" if wish == NOT_EMPTY else f"must {wish}, not {shown(value)}"
        return said(error, attribute.name)
    return None


def said(error: BaseException, name: str = "") -> str:
    """The first line of an exception's own message, without the attribute's name in front."""
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    line = next(iter(text.strip().splitlines()), "").removeprefix(f"{name!r} ").removeprefix(f"{name} ")
    return _ATTRS.sub(r"\1, not \2", line) or type(error).__name__


def _wish(validator: Any) -> str | None:
    """The words after "must" for one of attrs' own validators; None for any other.

    attrs' validators are attrs classes with private names, but their fields have been stable for years. If a field is
    missing, the validator's own message is used.
    """
    say = _WISHES.get(type(validator).__name__)
    try:
        return say(validator) if say else None
    except (AttributeError, TypeError):
        return None


_WISHES: dict[str, Callable[[Any], str | None]] = {
    "_NumberValidator": lambda one: f"be {one.compare_op} {_number(one.bound)}",
    "_InValidator": lambda one: f"be {either(map(shown, one.options))}",
    "_InstanceOfValidator": lambda one: f"be {either(map(_type, _tuple(one.type)))}",
    "_MatchesReValidator": lambda one: f"match the pattern {one.pattern.pattern}",
    "_MinLengthValidator": lambda one: NOT_EMPTY if one.min_length == 1 else f"have {one.min_length} or more entries",
    "_MaxLengthValidator": lambda one: f"have {one.max_length} or fewer entries",
    "_OptionalValidator": lambda one: _joined(_tuple(one.validator), " and "),
    "_AndValidator": lambda one: _joined(one._validators, " and "),  # noqa: SLF001 - the only way to its parts
    "_OrValidator": lambda one: _joined(one.validators, " or "),
}


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _type(kind: type[Any]) -> str:
    return KINDS.get(kind, kind.__name__)


def _joined(validators: Iterable[Any], word: str) -> str | None:
    wishes = [_wish(validator) for validator in validators]
    known = [wish for wish in wishes if wish is not None]
    if not known or len(known) < len(wishes):
        return None
    first, *rest = known
    # "be an integer > 0", not "be an integer and be > 0".
    return first + "".join(_continued(wish, word, known) for wish in rest)


def _continued(wish: str, word: str, known: list[str]) -> str:
    if not all(one.startswith("be ") for one in known):
        return f"{word}{wish}"
    wish = wish.removeprefix("be ")
    typed = known[0].removeprefix("be ") in KINDS.values()
    return f" {wish}" if word == " and " and typed and wish[0] in "<>=!" else f"{word}{wish}"


def _number(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


# Unknown and missing keys

_SURE = 0.85
_TOP = "at the top of the file"
# For the file that is being read: the headers of the tables that have a key. Classes are structured far below the
# code that knows which file they are part of.
_homes: ContextVar[Mapping[str, Sequence[str]]] = ContextVar("homes", default=MappingProxyType({}))


@contextlib.contextmanager
def within(root: Any, *top: str) -> Iterator[None]:
    """While the block runs, `home_of` knows the tables of `root` and the keys `top`, which only a file has."""
    token = _homes.set(_headers(root) | {key: [_TOP] for key in top})
    try:
        yield
    finally:
        _homes.reset(token)


@functools.cache
def _headers(root: type[Any]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}

    def visit(cls: type[Any], header: str) -> None:
        for attribute in fields(resolve_types(cls)):
            key = str(attribute.metadata.get("key", attribute.name))
            homes.setdefault(key, []).append(header or _TOP)
            table, many = _table(attribute.type)
            if table is not None:
                inner = f"{header.strip('[]')}.{key}".lstrip(".")
                visit(table, f"[[{inner}]]" if many else f"[{inner}]")

    visit(root, "")
    return homes


def _table(kind: Any) -> tuple[type[Any] | None, bool]:
    """For a field's type: the class of its table, and whether it is an array of tables."""
    if isinstance(kind, type) and has(kind):
        return kind, False
    for argument in get_args(kind):
        if isinstance(argument, type) and has(argument):
            return argument, get_origin(kind) is tuple
    return None, False


def home_of(key: str) -> str | None:
    """Where `key` belongs, such as "in [train]"; None if no table or several have it."""
    homes = _homes.get().get(key, ())
    if len(homes) != 1:
        return None
    return _TOP if homes[0] == _TOP else f"in {homes[0]}"


REQUIRED = "this key is required"


def unknown(key: str, known: Collection[str]) -> str:
    """The message for a key that a table does not have: the key that was meant, or the table where it belongs."""
    close = closest(key, known)
    home = home_of(key)
    if home is not None and closest(key, known, cutoff=_SURE) is None:
        return f"unknown key, it belongs {home}"
    if close is not None:
        return f"unknown key, did you mean {close}?"
    return f"unknown key, {f'expected {either(known)}' if known else 'this table takes no keys'}"
