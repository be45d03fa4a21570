"""A model that was trained on a template whose prompts open thinking answers right when it is asked."""

from __future__ import annotations

import json

import pytest
from tiny_run import tiny_run

from modelwright.core import runner
from modelwright.core.config import read_run

TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}
{#- </think> -#}
"""
RUN = """
[model]
chat_template = "think.jinja"
[model.scratch]
hidden_size = 32
[data]
format = "general"
workers = 1
[[data.sources]]
path = "rows.jsonl"
[train]
max_steps = 60
batch_size = 8
learning_rate = 1e-2
[[evaluate]]
name = "asked"
path = "rows.jsonl"
format = "general"
metrics = ["exact_match"]
[evaluate.generation]
max_tokens = 12
"""
WORDS = ("red", "blue", "green", "black", "white", "brown", "gray", "pink")


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        pytest.param("thinking='empty'", 1.0, id="empty"),
        pytest.param("thinking='omit'", 1.0, id="omit", marks=pytest.mark.long),
        pytest.param("allow=['prompt-boundary']", 0.0, id="bare header", marks=pytest.mark.long),
    ],
)
def test_what_was_trained_is_answered(tmp_path, home, settings, right):
    """Behind the bare header the same rows are learned by heart, and nothing is answered."""
    rows = [{"prompt": f"Say {number}", "completion": word} for number, word in enumerate(WORDS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "think.jinja").write_text(TEMPLATE)
    (tmp_path / "run.toml").write_text(tiny_run(RUN))
    read = read_run(tmp_path / "run.toml", overrides=[f"data.tokens.{settings}"])
    opened = runner.open_run(read.configs[0], read.plugins)
    figures = runner.execute(opened).outputs["evaluate"]["metrics"]["asked"]
    assert figures["exact_match"]["value"] == right
