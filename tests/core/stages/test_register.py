"""What is registered: a run with `train = false` registers its base, and is compared with the variants that train."""

from __future__ import annotations

import json

import pytest
from tiny_run import tiny_run

from modelwright.core.models.base import folder_digest

RUN = """
name = "tuned"
[model]
base = "{base}"
[data.tokens]
max_length = 128
[[evaluate]]
name = "sums"
path = "builtin:arithmetic/test"
metrics = ["math_accuracy"]
limit = 4
[evaluate.generation]
max_tokens = 4
[variants.base]
train = false
[variants.lora]
adapter = {{ rank = 4 }}
"""


@pytest.fixture
def run(tmp_path, command):
    def run(base, *more):
        (tmp_path / "run.toml").write_text(tiny_run(RUN.format(base=base)))
        done = command("run", "run.toml", *more)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_an_untrained_variant_is_registered_by_its_digest_and_compared_with_the_trained_one(adapters, run, command):
    """It has no data and no training; `--set` of [train] is for the others; again there is nothing to do."""
    base = adapters.base()
    printed = run(base, "--set", "train.max_steps=1").stdout
    registered, lora = adapters.registry.get("tuned-base"), adapters.registry.get("tuned-lora")
    assert registered.digest == registered.model.base == lora.model.base == folder_digest(base)
    assert not registered.is_adapter
    assert registered.metrics["sums"]["math_accuracy"].n == 4
    assert registered.model.training == {}
    assert lora.model.config["train"]["max_steps"] == 1
    assert "difference from tuned-" in printed
    assert "Nothing to do" in run(base, "--set", "train.max_steps=1").stdout

    runs = json.loads(run(base, "--set", "train.max_steps=1", "--json").stdout)
    assert [sorted(stage for stage in one if stage in ("prepare", "train")) for one in runs] == [
        [],
        ["prepare", "train"],
    ]
    [compared] = [one["comparisons"] for one in runs if "comparisons" in one]
    assert {compared[0]["model"], compared[0]["other"]} == {"tuned-base@1", "tuned-lora@1"}

    done = command("train", "run.toml", "--variant", "base")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: there is nothing to train: tuned-base sets train = false"


def test_a_registered_base_is_not_stored_twice(adapters, run, home):
    """Its contents are in the registry already."""
    adapters.add(adapters.base(), "base")
    contents = set((home / "files").glob("*/*"))
    run("base", "--variant", "base")
    version = adapters.registry.get("tuned-base")
    assert (version.model.parent, version.digest) == ("base@1", adapters.registry.get("base").digest)
    assert set((home / "files").glob("[0-9a-f][0-9a-f]/*")) <= contents


def test_a_template_of_the_run_is_registered_with_the_base(adapters, run, tmp_path):
    """The base's own files stay as they are."""
    base = adapters.base()
    before, own = folder_digest(base), (base / "chat_template.jinja").read_text()
    (tmp_path / "other.jinja").write_text(own + "{# another #}")
    run(base, "--variant", "base", "--set", f'model.chat_template="{tmp_path}/other.jinja"')
    version = adapters.registry.get("tuned-base")
    assert folder_digest(base) == before
    assert (adapters.registry.folder(version) / "chat_template.jinja").read_text() == own + "{# another #}"
    assert version.digest != before == version.model.base
