"""What keeps a training from harm: the preflight, bad steps, early stopping, a disk that does not suffice."""

import shutil

import pytest

from modelwright.core.api import ModelwrightError
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import modelwright_trainers
from modelwright.plugins.trainers.bad_steps import MOST_IN_A_ROW, WINDOW, BadSteps
from modelwright.plugins.trainers.checkpoints import Progress
from modelwright.plugins.trainers.ranks import Ranks

LOCAL, *_ = modelwright_trainers()


def run(folder, recorder=None, *, job_changes=None, **settings):
    job = make_job(folder, recorder or Recorder(), TrainerContract().settings(**settings), **(job_changes or {}))
    return job, LOCAL.create().train(job)


def weights(job):
    return (job.output / "model.safetensors").read_bytes()


# Preflight


def test_the_preflight_leaves_no_trace_in_the_training(tmp_path):
    """The weights are byte for byte those of a training without one, dropout included; it comes first."""
    for name in ("with", "without"):
        write_model(tmp_path / name / "base", dropout=0.3)
    recorder = Recorder()
    tried, _ = run(tmp_path / "with", recorder, max_steps=6)
    straight, _ = run(tmp_path / "without", max_steps=6, preflight=False)
    assert weights(tried) == weights(straight)
    kinds = [kind for kind, _ in recorder.events]
    assert kinds.index("preflight") < kinds.index("step")
    assert not list((tried.folder / "checkpoints").glob(".tmp-*"))


def test_a_resumed_training_has_no_second_preflight(tmp_path):
    """What was tried works."""
    run(tmp_path, Recorder(stop_after=5), max_steps=8)
    recorder = Recorder()
    run(tmp_path, recorder, max_steps=8)
    assert recorder.of("resumed") == [{"step": 5}]
    assert not recorder.of("preflight")


def test_a_disk_without_room_for_the_checkpoints_is_an_error_before_the_first_step(tmp_path, monkeypatch, wording):
    """How much they take, how much there is, what to do. The disk is simulated: a small one needs a mount."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1))
    recorder = Recorder()
    with pytest.raises(ModelwrightError, match="keep_checkpoints") as caught:
        run(tmp_path, recorder)
    wording(caught.value)
    assert not recorder.steps()


def test_a_checkpoint_that_does_not_give_the_model_back_is_met_at_once(tmp_path, monkeypatch):
    """Not after hours, when it is needed."""
    from modelwright.plugins.trainers.local import SingleDevice

    monkeypatch.setattr(SingleDevice, "load", lambda _self, _folder, _layout: None)
    with pytest.raises(ModelwrightError, match="loading a checkpoint does not restore the model"):
        run(tmp_path)


# Bad steps


def test_a_step_without_numbers_is_dropped_where_the_settings_say_so(tmp_path):
    """Weights and optimiser stay as they were, the examples are named, and the training goes on."""
    recorder = Recorder()
    settings = {"learning_rate": 1e30, "clip_norm": 0.0, "warmup": 0.0, "max_steps": 5, "on_bad_step": "skip"}
    _, trained = run(tmp_path, recorder, **settings)
    assert trained.finished
    bad = recorder.of("bad_step")
    assert bad
    assert all(set(data["examples"]) <= {f"row-{number}" for number in range(24)} for data in bad)
    dropped = [data for data in recorder.of("step") if data["grad_norm"] is None]
    assert [data["step"] for data in dropped] == [data["step"] for data in bad]
    assert recorder.of("finished")[0]["skipped"] == len(bad)


def test_bad_steps_without_end_are_an_error_all_the_same(tmp_path):
    """Several in a row are not an accident."""
    settings = {"learning_rate": 1e30, "clip_norm": 0.0, "warmup": 0.0, "max_steps": 40, "on_bad_step": "skip"}
    with pytest.raises(ModelwrightError, match=rf"the {MOST_IN_A_ROW}th bad step in a row"):
        run(tmp_path, **settings)


@pytest.mark.parametrize(
    ("recent", "loss", "bad"),
    [
        pytest.param((1.0,) * WINDOW, 2.9, False, id="2.9 after a window of 1"),
        pytest.param((1.0,) * WINDOW, 3.1, True, id="3.1 after a window of 1"),
        pytest.param((1.0,) * (WINDOW - 1), 100.0, False, id="100 after less than a window"),
        pytest.param((), float("nan"), True, id="nan at first"),
        pytest.param((1.0,) * WINDOW, float("inf"), True, id="inf"),
    ],
)
def test_a_spike_is_a_loss_far_above_the_median_of_the_last(tmp_path, recent, loss, bad, wording):
    """Before there are enough of them, only a loss that is not finite is bad."""
    job = make_job(tmp_path, Recorder(), TrainerContract().settings(loss_spike=3.0))
    found = BadSteps(None, job, Ranks()).bad_loss(loss, Progress(recent=recent))
    assert (found is not None) == bad
    if found:
        wording(found)


def test_a_spike_is_dropped_and_the_weights_are_those_of_before(tmp_path, monkeypatch):
    """The spike's loss is seen before the step, and its gradient has no effect: only two steps are trained."""
    settings = {"max_steps": 3, "on_bad_step": "skip", "learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}
    two, _ = run(tmp_path / "two", **settings | {"max_steps": 2})
    recorder = Recorder()
    calls = iter(range(1, 100))

    def third(_self, _loss, _progress):
        return "the loss is a spike" if next(calls) == 3 else None

    monkeypatch.setattr(BadSteps, "bad_loss", third)
    job, trained = run(tmp_path / "spike", recorder, **settings)
    assert trained.finished
    assert [data["step"] for data in recorder.of("bad_step")] == [3]
    assert weights(job) == weights(two)


# Early stopping


def test_early_stopping_ends_with_the_model_of_the_lowest_held_out_loss(tmp_path):
    """What is held out contradicts what is trained on, so that its loss soon rises; the best is kept and exported."""
    wrong = [(name, list(reversed(ids)), trained) for name, ids, trained in counting_rows(6)]
    holdout = write_token_folder(tmp_path / "holdout", wrong)
    recorder = Recorder()
    settings = {"max_steps": 60, "checkpoint_every": 2, "keep_checkpoints": 1, "early_stopping": 3}
    job, trained = run(tmp_path, recorder, job_changes={"holdout": holdout}, **settings)
    measured = {data["step"]: data["loss"] for data in recorder.of("holdout")}
    best = min(measured, key=measured.get)
    assert trained.finished
    assert trained.step == best + 2 * 3
    assert trained.holdout_loss == measured[best]
    assert recorder.of("best")[0]["best_step"] == best
    stopped, _ = run(tmp_path / "stopped", job_changes={"holdout": holdout}, **settings | {"max_steps": 60})
    assert weights(stopped) == weights(job)


# Sources


def test_the_loss_of_each_source_is_reported(tmp_path):
    """The mean over its tokens; weighted by them the sources make the whole."""
    import pyarrow as pa

    path = write_token_folder(tmp_path / "train", counting_rows(24))
    (shard,) = path.glob("0*.arrow")
    table = pa.ipc.open_file(shard).read_all()
    names = ["a.jsonl" if number % 3 else "b.jsonl" for number in range(24)]
    with pa.OSFile(str(shard), "wb") as sink:
        table = table.append_column("source", pa.array(names))
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    recorder = Recorder()
    run(tmp_path, recorder, max_steps=2, batch_size=24)
    taught = {name: sum(sum(counting_rows(24)[n][2]) for n in range(24) if names[n] == name) for name in set(names)}
    for data in recorder.of("step"):
        assert set(data["by_source"]) == {"a.jsonl", "b.jsonl"}
        whole = sum(data["by_source"][name] * taught[name] for name in taught) / sum(taught.values())
        assert whole == pytest.approx(data["loss"], rel=1e-5)
