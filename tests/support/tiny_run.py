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

# Changes of the default by which every stage has something to do.
WHOLE = """
seed = 3
data.workers = 1
[train]
max_steps = 10
learning_rate = 1e-3
checkpoint_every = 5
[[evaluate]]
name = "sums"
path = "builtin:arithmetic/test"
metrics = ["math_accuracy", "exact_match"]
limit = 20
[evaluate.generation]
max_tokens = 8
[registry]
promote = { alias = "production", if = "sums.math_accuracy >= 0.0" }
"""


def tiny_run(*changes: str) -> str:
    """A run file as TOML text: the default above with the `changes`, TOML as well, laid over it one after the other.

    Tables merge and arrays replace, as in layers of configuration. `[model] base` takes the place of `[model.scratch]`.
    """
    table = tomli.loads(DEFAULT)
    for change in changes:
        table = _laid_over(table, tomli.loads(change))
    if "base" in table["model"]:
        del table["model"]["scratch"]
    return tomli_w.dumps(table)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _laid_over(below[key], value) if both else value
    return merged
