"""Options classes of plugins with every kind of field that attrs and cattrs allow."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest
import tomli_w
from attrs import Converter, Factory, evolve, field, frozen, validators

from modelwright.core.api import FormatSpec
from modelwright.core.config import from_plain, to_plain
from modelwright.core.plugins import Plugins


class Mood(Enum):
    GLAD = "glad"
    GRIM = "grim"


class Tone(str, Enum):  # noqa: UP042 - plugins for older Pythons have such
    HIGH = "high"
    LOW = "low"


class Level(IntEnum):
    ONE = 1
    TWO = 2


@frozen
class Part:
    size: int = field(validator=validators.ge(0))
    label: str | None = None


@frozen
class Ring:
    size: int
    rings: tuple[Ring, ...] = ()


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


class Pair(TypedDict):
    left: int
    right: int


def _upper(value: str) -> str:
    if value == "bad":
        raise ValueError("is a bad word")
    return value.upper()


@frozen(kw_only=True)
class Odd:
    file: Path | None = None
    files: tuple[Path, ...] = ()
    mood: Mood = Mood.GLAD
    tone: Tone = Tone.LOW
    level: Level = Level.ONE
    when: datetime | None = None
    day: date | None = None
    clock: time | None = None
    part: Part | None = None
    parts: list[Part] = field(factory=list)
    by_name: dict[str, Part] = field(factory=dict)
    ring: Ring | None = None
    words: frozenset[str] = frozenset()
    two: tuple[int, str] = (1, "a")
    loose: Any = None
    table: Mapping[str, float] = field(factory=dict)
    numbers: Sequence[float] = ()
    either: Part | str | int = 0
    mixed: Literal[1, "one", True] = 1
    point: Point | None = None
    pair: Pair | None = None
    queue: deque[int] = field(factory=deque)
    shout: str = field(default="x", converter=_upper)
    padded: str = field(default="", converter=Converter(lambda value, self: f"{value}{self.shout}", takes_self=True))
    _private: int = 3
    derived: int = field(init=False, default=Factory(lambda self: self.level * 2, takes_self=True))
    named: int = field(default=0, metadata={"key": "for"})


@pytest.fixture
def odd(plugins) -> Plugins:
    """The components, with the odd options for the format."""
    (plugin,) = plugins.found
    spec = FormatSpec(name="qa", summary="odd", options=Odd, factory="nowhere:Odd")
    others = tuple(one for one in plugin.components if one.name != "qa")
    return Plugins(found=(evolve(plugin, components=(spec, *others)),))


RIGHT = """\
[data.options]
file = "a.txt"
files = ["~/b.txt", "/c.txt"]
mood = "grim"
tone = "high"
level = 2
when = 2024-05-06T07:08:09Z
day = 2024-05-06
clock = 07:08:09
part = { size = 1 }
parts = [{ size = 2, label = "two" }]
by_name = { three = { size = 3 } }
ring = { size = 1, rings = [{ size = 2, rings = [{ size = 3 }] }] }
words = ["b", "a", "b"]
two = [5, "five"]
loose = { deep = [1, "x", { when = 2024-05-06 }], flag = true }
table = { one = 1 }
numbers = [1, 2.5]
either = "word"
mixed = true
point = { x = 1 }
pair = { left = 1, right = 2 }
queue = [1, 2]
shout = "loud"
padded = "p"
private = 4
for = 5
"""


def test_every_kind_of_field_is_structured(read_one, minimal, odd, tmp_path, monkeypatch):
    """Paths are resolved, choices are members, tables are instances."""
    monkeypatch.setenv("HOME", "/home/someone")
    options = read_one(minimal + RIGHT, plugins=odd).data.options
    assert options == Odd(
        file=tmp_path / "a.txt",
        files=(Path("/home/someone/b.txt"), Path("/c.txt")),
        mood=Mood.GRIM,
        tone=Tone.HIGH,
        level=Level.TWO,
        when=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
        day=date(2024, 5, 6),
        clock=time(7, 8, 9),
        part=Part(1),
        parts=[Part(2, "two")],
        by_name={"three": Part(3)},
        ring=Ring(1, (Ring(2, (Ring(3),)),)),
        words=frozenset({"a", "b"}),
        two=(5, "five"),
        loose={"deep": [1, "x", {"when": "2024-05-06"}], "flag": True},
        table={"one": 1.0},
        numbers=(1.0, 2.5),
        either="word",
        mixed=True,
        point=Point(1.0),
        pair={"left": 1, "right": 2},
        queue=deque([1, 2]),
        shout="loud",
        padded="p",
        private=4,
        named=5,
    )
    assert options.mixed is True
    assert (options.shout, options.padded, options.derived) == ("LOUD", "pLOUD", 4)
    assert [type(value) for value in (options.either, options.loose["deep"][1])] == [str, str]


def test_odd_options_survive_json_and_toml(read_one, minimal, odd):
    """What worker processes read is what the runner had; fields with converters that add to a value are not tried."""
    config = read_one(minimal + RIGHT.replace('padded = "p"\n', ""), plugins=odd)
    config = evolve(config, data=evolve(config.data, options=evolve(config.data.options, padded="")))
    values = to_plain(config)
    values["data"]["options"]["padded"] = ""
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert tomli_w.dumps(values)
    assert values["data"]["options"]["words"] == ["a", "b"]
    assert from_plain(values, odd) == config


WRONG = """\
[data.options]
file = 3
files = [1, "x", ""]
mood = "grin"
tone = "hi"
level = 3
when = "yesterday"
day = 2024-05-06T07:08:09Z
clock = 7
part = { size = -1, lable = "x" }
parts = [{ size = 1 }, { label = 2 }, 3]
by_name = { three = { size = "3" } }
ring = { size = 1, rings = [{ size = 2, rings = [{ size = "x" }] }] }
words = "a"
two = [5]
loose = { deep = [nan] }
table = { one = "1" }
numbers = [1, "2"]
either = { size = "x" }
mixed = 0
point = { x = "1", z = 1 }
pair = { left = 1 }
queue = [1, "x"]
shout = "bad"
_private = 4
derived = 4
named = 5
"""


def test_every_mistake_in_odd_options_is_reported(mistakes, minimal, odd):
    """Each at its line, nested ones too, and in words for people."""
    places = [
        "10 [data.options] file",
        "11 [data.options] files.0",
        "11 [data.options] files.2",
        "12 [data.options] mood",
        "13 [data.options] tone",
        "14 [data.options] level",
        "15 [data.options] when",
        "16 [data.options] day",
        "17 [data.options] clock",
        "18 [data.options.part] lable",
        "18 [data.options.part] size",
        "19 [data.options.parts.1] size",
        "19 [data.options.parts.1] label",
        "19 [data.options] parts.2",
        "20 [data.options.by_name.three] size",
        "21 [data.options.ring.rings.0.rings.0] size",
        "22 [data.options] words",
        "23 [data.options] two",
        "24 [data.options.loose] deep.0",
        "25 [data.options.table] one",
        "26 [data.options] numbers.1",
        "27 [data.options.either] size",
        "28 [data.options] mixed",
        "29 [data.options.point] z",
        "29 [data.options.point] x",
        "30 [data.options.pair] right",
        "31 [data.options] queue.1",
        "32 [data.options] shout",
        "33 [data.options] _private",
        "34 [data.options] derived",
        "35 [data.options] named",
    ]
    assert mistakes(minimal + WRONG, plugins=odd) == [f"run.toml:{place}" for place in places]


def test_an_options_class_that_cannot_be_read_is_its_owners_mistake(mistakes, minimal, plugins):
    """Its name and what it lacks are said, and nothing else fails."""

    @frozen
    class Broken:
        x: NoSuchType = None  # noqa: F821 - that is the point

    (plugin,) = plugins.found
    spec = FormatSpec(name="qa", summary="broken", options=Broken, factory="nowhere:Broken")
    others = tuple(one for one in plugin.components if one.name != "qa")
    broken = Plugins(found=(evolve(plugin, components=(spec, *others)),))
    assert mistakes(minimal + "batch_size = 0", plugins=broken) == [
        "run.toml:3 [data] options",
        "run.toml:9 [train] batch_size",
    ]


def test_infinite_numbers_never_reach_json(mistakes, minimal, odd):
    """JSON has none, and no option means one."""
    assert mistakes(minimal + f"[data.options]\nloose = {math.inf}", plugins=odd) == [
        "run.toml:10 [data.options] loose"
    ]
