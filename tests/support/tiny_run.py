"""One builder of run files that train in a second; a test names what it changes."""

from __future__ import annotations

from typing import Any

import tomli
import tomli_w

DEFAULT = """
name = "tiny"
seed = 1
[model.scratch]
hidden_size = 16
layers = 1
heads = 2
vocab_size = 300
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
limit = 40
[data.tokens]
max_length = 64
[train]
max_steps = 2
batch_size = 4
"""


def tiny_run(changes: str = "") -> str:
    """A run file as TOML text: the default above with `changes` (TOML, too) laid over it.

    Tables merge and arrays replace, as in layers of configuration. `[model] base` takes the place of `[model.scratch]`.
    """
    table = _laid_over(tomli.loads(DEFAULT), tomli.loads(changes))
    if "base" in table["model"]:
        del table["model"]["scratch"]
    return tomli_w.dumps(table)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _laid_over(below[key], value) if both else value
    return merged
