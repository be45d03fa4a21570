"""examples/eval.toml: it is read, and what its comments offer is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelwright.core.config import is_eval_file, read_eval, read_run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example():
    return EXAMPLES / "eval.toml"


def test_it_is_an_evaluation_of_all_models(example):
    """On data that comes with Modelwright, with the metrics that the quickstart promotes by."""
    assert is_eval_file(example)
    config = read_eval(example).config
    assert config.models == "all"
    assert config.output is None
    first, sampled = config.evaluate
    run = read_run(EXAMPLES / "quickstart.toml", variants=["math"]).configs[0].evaluate[0]
    assert (first.name, first.path, first.metrics, first.limit) == (run.name, run.path, run.metrics, run.limit)
    assert first.generation == run.generation
    assert (sampled.samples, sampled.generation.temperature) == (3, 0.8)


def test_its_commented_lines_are_valid_too(example, tmp_path):
    """The list of models names what the quickstart makes; the registry's URL is one."""
    text = example.read_text()
    text = text.replace('models = "all"\n# models = [', "models = [").replace("# [registry]\n# url", "[registry]\nurl")
    text = text.replace("# output =", "output =")
    (tmp_path / "eval.toml").write_text(text)
    config = read_eval(tmp_path / "eval.toml").config
    made = {config.name for config in read_run(EXAMPLES / "quickstart.toml").configs}
    assert {address.partition("@")[0] for address in config.models if not address.startswith("@")} <= made
    assert config.output == str(tmp_path / "results")
    assert config.registry.url == f"sqlite:///{tmp_path / 'models.db'}"
