import json

import pytest
from attrs import evolve

from modelwright.core.api.records import Figure, wilson
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.testing.registry import new_model, write_model

PLUGIN = """
    from modelwright import MetricSpec, hookimpl

    @hookimpl
    def modelwright_metrics():
        yield MetricSpec(name="loss", summary="less is better", higher_is_better=False, factory="x:y")
"""


@pytest.fixture
def registry(home):
    return open_registry(f"sqlite:///{home}/registry.db", discover())


@pytest.fixture
def two(registry, tmp_path):
    """math@1 and math@2, which differ in one key, one file, one source, one package, one tag and their figures."""
    first = new_model()
    registry.add(first, write_model(tmp_path / "a"))
    second = evolve(
        first,
        fingerprint="second",
        parent="math@1",
        config={**first.config, "train": {"learning_rate": 1e-3, "epochs": None}},
        data={"/data/train.jsonl": "cd" * 32, "/data/more.jsonl": "ef" * 32},
        environment={"python": "3.11.7 (CPython)", "package.torch": "2.13", "package.colorama": "1"},
        training={"steps": 600, "loss": 0.25},
        tags={"team": "vision"},
    )
    registry.add(second, write_model(tmp_path / "b", b"other weights"))
    registry.add_metrics(
        "math", 1, "gsm8k", {"exact_match": wilson(0.5, 500), "loss": Figure(value=2.0, low=1.9, high=2.1, n=500)}
    )
    registry.add_metrics(
        "math", 2, "gsm8k", {"exact_match": wilson(0.8, 500), "loss": Figure(value=3.0, low=2.9, high=3.1, n=500)}
    )
    registry.add_metrics("math", 1, "small", {"exact_match": wilson(0.5, 10)})
    registry.add_metrics("math", 2, "small", {"exact_match": wilson(0.6, 10)})
    registry.add_metrics("math", 2, "odd", {"smell": wilson(0.6, 10)})
    return registry


def test_differences_are_printed_as_json(two, models, install_plugin):
    """Each difference with the value of each model, each figure with the difference, its interval and a verdict."""
    install_plugin("loss-metric", PLUGIN)
    code, out, err = models("compare", "math@1", "math@2", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["models"], found["same_files"]) == (["math@1", "math@2"], False)
    assert found["config"] == {"train.learning_rate": [0.005, 0.001]}
    assert found["data"] == {
        "/data/train.jsonl": ["ab" * 32, "cd" * 32],
        "/data/more.jsonl": [None, "ef" * 32],
    }
    assert found["lineage"] == {"parent": ["older@1", "math@1"]}
    assert found["environment"] == {"torch": [None, "2.13"]}
    assert found["training"] == {"loss": [0.125, 0.25]}
    assert found["tags"] == {"note": ['it\'s "quoted"', None], "team": ["nlp", "vision"]}
    assert list(found["files"]) == ["model.safetensors"]
    assert (found["same_data"], found["same_files_count"]) == (0, 2)
    verdicts = {
        (metric["suite"], metric["metric"]): [
            difference and difference["verdict"] for difference in metric["differences"]
        ]
        for metric in found["metrics"]
    }
    assert verdicts == {
        ("gsm8k", "exact_match"): ["better"],
        ("gsm8k", "loss"): ["worse"],
        ("small", "exact_match"): ["not decided"],
        ("odd", "smell"): [None],
    }
    [difference] = found["metrics"][0]["differences"]
    assert difference["value"] == pytest.approx(0.3)
    assert 0.24 < difference["low"] < 0.3 < difference["high"] < 0.36


def test_differences_are_printed_for_people(two, models):
    """Section by section; what is the same is counted, not shown."""
    code, out, err = models("compare", "math@1", "math@2")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (code, err) == (0, "")
    for line in (
        "gsm8k.exact_match 0.500 [0.456, 0.544] 0.800 [0.763, 0.833] +0.300 [0.243, 0.355]: better",
        "gsm8k.loss (direction unknown) 2.000 [1.900, 2.100] 3.000 [2.900, 3.100] +1.000 [0.859, 1.141]: higher",
        "odd.smell (direction unknown) – 0.600 [0.313, 0.832] –",
        "train.learning_rate 0.005 0.001",
        "/data/more.jsonl – sha256 efefefefefef…",
        "torch – 2.13",
        "files (2 more are identical)",
    ):
        assert line in lines
    assert "seed" not in out


def test_the_same_model_is_said_to_be_the_same(two, models):
    """By any of its addresses."""
    two.set_alias("production", "math", 2)
    assert models("compare", "math", "@production") == (0, "math and @production are the same model: math@2\n", "")
    found = json.loads(models("compare", "math", "@production", "--json")[1])
    assert (found["models"], found["same_files"]) == (["math@2"], True)


def test_different_versions_of_the_same_files_are_said_to_be(registry, models, tmp_path):
    """And if their records differ in nothing, that is said as well."""
    for name in ("a", "b"):
        registry.add(evolve(new_model(name), parent=None), write_model(tmp_path / name))
    out = models("compare", "a", "b")[1]
    assert "The files are identical (sha256 " in out
    assert "name" in out


def test_more_than_two_are_compared_with_the_first(two, models, tmp_path):
    """A column for each, and a difference for each but the first."""
    two.add(new_model(fingerprint="third"), write_model(tmp_path / "c"))
    two.add_metrics("math", 3, "gsm8k", {"exact_match": wilson(0.2, 500)})
    found = json.loads(models("compare", "math@1", "math@2", "math@3", "--json")[1])
    assert [each["verdict"] for each in found["metrics"][0]["differences"]] == ["better", "worse"]
    assert "minus math@1" in models("compare", "math@1", "math@2", "math@3")[1]


def test_one_model_is_nothing_to_compare(two, models, wording):
    """Two or more are needed."""
    code, out, err = models("compare", "math")
    assert (code, out) == (2, "")
    wording(err)


def test_figures_of_other_numbers_of_examples_say_how_many(two, models):
    """They are of another test set, or of a part of it; where the numbers agree they are left out."""
    two.add_metrics("math", 1, "part", {"exact_match": wilson(0.5, 60)})
    two.add_metrics("math", 2, "part", {"exact_match": wilson(0.5, 300)})
    _, out, _ = models("compare", "math@1", "math@2")
    [line] = [line for line in out.splitlines() if "part.exact_match" in line]
    assert "n = 60" in line
    assert "n = 300" in line
    assert out.count("n = ") == 2


def test_a_model_without_tags_differs_by_the_tags_alone(two, models, tmp_path):
    """An empty table is not a setting."""
    config = {"registry": {"tags": {"team": "nlp"}}}
    two.add(evolve(new_model(), fingerprint="tagged", config=config), write_model(tmp_path / "c"))
    two.add(evolve(new_model(), fingerprint="bare", config={"registry": {"tags": {}}}), write_model(tmp_path / "d"))
    _, out, _ = models("compare", "math@3", "math@4", "--json")
    assert json.loads(out)["config"] == {"registry.tags.team": ["nlp", None]}
