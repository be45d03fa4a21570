"""TensorBoard's files, read back by TensorBoard's own reader."""

import pytest
from modelwright.core.stages.train.trackers import with_tensorboard

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
)


def scalars(folder, name):
    reader = accumulators.EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    reader.Reload()
    return [(event.step, pytest.approx(event.value)) for event in reader.Scalars(name)]


def step(number, **more):
    return {"step": number, "steps": 9, "loss": 1.0 / number, "tokens": 100, "seconds": 0.5} | more


def test_steps_are_drawn_beside_the_events(tmp_path):
    """What is emitted is emitted as it was; figures that a step lacks are not drawn."""
    seen = []
    emit = with_tensorboard(lambda kind, _data: seen.append(kind), tmp_path)
    emit("started", {"steps": 9})
    for number in (1, 2):
        emit("step", step(number, by_source={"a.jsonl": 3.0}))
    emit("step", step(3, loss=None))
    emit("holdout", {"step": 3, "loss": 2.5})
    assert seen == ["started", "step", "step", "step", "holdout"]
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert scalars(tmp_path, "speed/tokens_per_second") == [(1, 200.0), (2, 200.0), (3, 200.0)]
    assert scalars(tmp_path, "loss by source/a.jsonl") == [(1, 3.0), (2, 3.0)]
    assert scalars(tmp_path, "holdout/loss") == [(3, 2.5)]


def test_steps_that_a_resumed_training_does_again_are_drawn_once(tmp_path):
    """The second attempt takes the place of the first from its first step on."""
    first = with_tensorboard(lambda _kind, _data: None, tmp_path)
    for number in (1, 2, 3):
        first("step", step(number, loss=9.0))
    first("holdout", {"step": 3, "loss": 1.0})
    second = with_tensorboard(lambda _kind, _data: None, tmp_path)
    for number in (2, 3):
        second("step", step(number))
    second("holdout", {"step": 3, "loss": 2.0})
    drawn = scalars(tmp_path, "train/loss")
    assert [number for number, _ in drawn] == [1, 2, 3]
    assert drawn[1:] == [(2, 0.5), (3, 1 / 3)]
