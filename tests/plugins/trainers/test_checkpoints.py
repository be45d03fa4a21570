"""Checkpoints: whole or not there, believed only while their digests agree."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import pytest
from attrs import evolve

from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job
from modelwright.plugins.trainers import modelwright_trainers
from modelwright.plugins.trainers.checkpoints import Checkpoints, Progress
from modelwright.plugins.trainers.ranks import Ranks


class _Local(TrainerContract):
    def trainer(self):
        spec, *_ = modelwright_trainers()
        return spec.create()


@pytest.fixture
def stopped(tmp_path):
    """A job that was stopped after step 10, with checkpoints of the steps 8 and 10; and its settings."""
    settings = _Local().settings()
    job = make_job(tmp_path, Recorder(stop_after=10), settings)
    _Local().train(job)
    return job


def go_on(job, **changes):
    recorder = Recorder()
    trained = _Local().train(evolve(job, emit=recorder.emit, stopping=recorder.stopping, **changes))
    assert trained.finished
    return recorder


def names(job):
    return sorted(path.name for path in (job.folder / "checkpoints").iterdir())


def truncate(path):
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])


def flip(path):
    data = bytearray((path / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "optimizer.pt").write_bytes(data)


def remove_file(path):
    (path / "state.json").unlink()


def remove_manifest(path):
    (path / "manifest.json").unlink()


def spoil_manifest(path):
    (path / "manifest.json").write_text('{"version": 1, "finger')


def other_version(path):
    (path / "manifest.json").write_text('{"version": 99}')


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (truncate, "model.safetensors"),
        (flip, "optimizer.pt"),
        (remove_file, "state.json"),
        (remove_manifest, "manifest.json"),
        (spoil_manifest, "manifest.json"),
        (other_version, "manifest.json"),
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(stopped, damage, file, wording):
    """Nothing half-written is used; the training resumes from the newest whole checkpoint."""
    assert names(stopped) == ["step-00000008", "step-00000010"]
    damage(stopped.folder / "checkpoints" / "step-00000010")
    recorder = go_on(stopped)
    (rejected,) = recorder.of("checkpoint_rejected")
    assert rejected["checkpoint"] == "step-00000010"
    assert rejected["reason"].startswith(f"{file} ")
    wording(re.sub(r"\d{3,} bytes, \d{3,}", "<n> bytes, <n>", rejected["reason"]))
    assert recorder.of("resumed") == [{"step": 8}]
    assert recorder.steps() == list(range(9, 31))


def test_with_no_whole_checkpoint_left_it_begins_again_and_says_so(stopped):
    """The event `resumed` with step 0 tells readers to drop what the earlier attempt said."""
    for path in (stopped.folder / "checkpoints").iterdir():
        remove_manifest(path)
    recorder = go_on(stopped)
    assert len(recorder.of("checkpoint_rejected")) == 2
    assert recorder.of("resumed") == [{"step": 0}]
    assert recorder.steps() == list(range(1, 31))


def test_a_checkpoint_of_other_inputs_is_not_resumed_and_makes_room(stopped, wording):
    """It is named, passed over, and removed when this training has one of its own."""
    recorder = go_on(stopped, fingerprint="two")
    for data in recorder.of("checkpoint_rejected"):
        wording(data["reason"])
    assert len(recorder.of("checkpoint_rejected")) == 2
    assert recorder.steps() == list(range(1, 31))
    assert names(stopped) == ["step-00000024", "step-00000028"]


def test_a_folder_left_by_a_killed_writer_is_removed(stopped):
    """A temporary folder is not a checkpoint, and does not stay."""
    checkpoints = stopped.folder / "checkpoints"
    shutil.copytree(checkpoints / "step-00000010", checkpoints / ".tmp-step-00000012-0a0a0a0a")
    recorder = go_on(stopped)
    assert recorder.of("resumed") == [{"step": 10}]
    assert names(stopped) == ["step-00000024", "step-00000028"]


def test_the_newest_are_kept_and_no_more(tmp_path):
    """`keep_checkpoints` of them, written every `checkpoint_every` steps."""
    settings = _Local().settings(max_steps=10, checkpoint_every=2, keep_checkpoints=3)
    job = make_job(tmp_path, Recorder(), settings)
    _Local().train(job)
    assert names(job) == ["step-00000004", "step-00000006", "step-00000008"]


def test_a_write_that_fails_leaves_the_checkpoints_as_they_were(tmp_path):
    """A full disk, say: neither a broken new one nor a lost old one."""
    job = make_job(tmp_path, Recorder(), _Local().settings(keep_checkpoints=1))
    checkpoints = Checkpoints(job, Ranks())
    checkpoints.save(Progress(step=1, loss=0.5), lambda folder: (folder / "weights").write_bytes(b"1"), {"ranks": 1})

    def full(folder):
        (folder / "weights").write_bytes(b"2")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(Progress(step=2), full, {"ranks": 1})
    newest = Checkpoints(job, Ranks()).newest()
    assert (newest.path / "weights").read_bytes() == b"1"
    assert newest.progress == Progress(step=1, loss=0.5)
    assert newest.layout == {"ranks": 1}
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_checkpoint_cannot_run_code(stopped, tmp_path):
    """Even with digests that agree, the optimiser's file may hold tensors and plain values only."""
    from modelwright.core.api import files

    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    path = stopped.folder / "checkpoints" / "step-00000010"
    (path / "optimizer.pt").write_bytes(pickle.dumps(Harm()))
    (path / "manifest.json").unlink()
    manifest = {"version": 2, "fingerprint": "one", "layout": {}, "files": files.folder_manifest(path)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError):
        go_on(stopped)
    assert not (tmp_path / "harm").exists()
