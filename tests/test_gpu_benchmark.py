"""The rules of benchmarks/gpu_train.py, which needs a GPU itself: sizes, disk, operations, and the time left."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    path = Path(__file__).parents[1] / "benchmarks/gpu_train.py"
    spec = importlib.util.spec_from_file_location("gpu_train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_models_are_of_the_sizes_that_they_are_called(script):
    """1.5 and 7 B."""
    assert script.parameters("1.5b") == pytest.approx(1.5e9, rel=0.05)
    assert script.parameters("7b") == pytest.approx(6.7e9, rel=0.05)


def test_everything_is_on_a_disk_of_64_gb_at_once(script):
    """With half of it to spare for packages: no checkpoints, and one base."""
    assert script.disk_bytes(script.NAMES) < 32e9
    assert script.disk_bytes(["trainer-full"]) == 4 * script.parameters("1.5b")


def test_a_measurement_begins_only_if_it_can_end_in_time(script):
    """The six of a round take less than eight minutes."""
    assert len(script.NAMES) * script.SHARE <= 480
    assert script.may_begin(100, 400, within=480)
    assert not script.may_begin(100, 510, within=480)


def test_a_frozen_weight_takes_four_operations_and_its_adapter_six(script):
    """Without a gradient of its own; the input embeddings are looked up."""
    layers, width, *_ = script.MODELS["7b"]
    attention = 6 * layers * width * script.PACK / 4
    weights = script.parameters("7b") - script.VOCABULARY * width
    assert script.operations("trainer-nf4", 100, 4) == 4 * weights + 600 + attention
    whole = script.operations("modelwright-full", script.parameters("1.5b"), 4)
    assert whole > 6 * (script.parameters("1.5b") - script.VOCABULARY * 2048)
