"""Real processes on CPUs, that share out a training by ZeRO; every test here starts them."""

import contextlib
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

from small_models import small

from modelwright.core.api import AdapterSettings, ModelwrightError, UsageError
from modelwright.core.testing.ranks import train_in_ranks
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    read_weights,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import (
    DEEPSPEED_TABLES,
    DEEPSPEED_VALUES,
    ELSEWHERE,
    DeepSpeedOptions,
    modelwright_trainers,
)

LOCAL, ZERO = modelwright_trainers()


def _nested(path):
    """Settings of DeepSpeed in which only this path is set."""
    first, _, rest = path.partition(".")
    return {first: _nested(rest) if rest else 1}


class Ranks(TrainerContract):
    """The contract over two processes."""

    options = DeepSpeedOptions()
    size = 2

    def train(self, job):
        """Train in processes of their own; the recorder of the job gets their events when they have ended."""
        recorder = job.emit.__self__
        return train_in_ranks(ZERO, self.options, job, recorder, size=self.size, stop_after=recorder.stop_after)


@pytest.mark.long
class TestTwoProcesses(Ranks):
    """ZeRO-2."""


def zero(folder, stage, *, size=2, stop_after=None, recorder=None, options=None, changes=None, **settings):
    """A training in processes of its own; gives the job, its outcome, and its losses by step."""
    recorder = recorder or Recorder(stop_after=stop_after)
    job = make_job(folder, recorder, make_settings(**settings), **(changes or {}))
    options = options or DeepSpeedOptions(zero_stage=stage)
    trained = train_in_ranks(ZERO, options, job, recorder, size=size, stop_after=stop_after)
    return job, trained, {data["step"]: data["loss"] for data in recorder.of("step")}


def make_settings(**changes):
    """Ten sequences a step of uneven lengths: the second process has one less in the last pass."""
    values = {"max_steps": 8, "batch_size": 10, "micro_batch_size": 2, "checkpoint_every": 3}
    return TrainerContract().settings(**(values | changes))


def weights(job):
    return (job.output / "model.safetensors").read_bytes()


def base(folder, **kwargs):
    write_model(folder / "base", **kwargs)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training by the trainer `local`."""
    recorder = Recorder()
    job = make_job(tmp_path_factory.mktemp("alone"), recorder, make_settings())
    LOCAL.create().train(job)
    return job, {data["step"]: data["loss"] for data in recorder.of("step")}


def test_two_processes_learn_what_one_does_and_resume_to_the_same_bytes(tmp_path, alone):
    """The loss of every step is one process's, and a training that was stopped ends with the same bytes."""
    stage = 2  # test_stages.py has the others
    job, trained, losses = zero(tmp_path / "through", stage)
    assert trained.finished
    assert losses == pytest.approx(alone[1], abs=1e-4)
    same = TrainerContract().same
    assert same(job.output, alone[0].output, tolerance=1e-4)
    _, stopped, first = zero(tmp_path / "stopped", stage, stop_after=4)
    assert (stopped.finished, stopped.step) == (False, 4)
    again, finished, second = zero(tmp_path / "stopped", stage)
    assert finished.finished
    assert first | second == losses
    assert weights(again) == weights(job)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "precision"), [(1, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_processes_that_were_killed_twice_end_with_the_same_bytes(tmp_path, stage, precision):
    """By SIGKILL, all of them, between two checkpoints; the losses are the same too, dropout included."""
    for name in ("through", "killed"):
        base(tmp_path / name, dropout=0.3)
    options, settings = DeepSpeedOptions(zero_stage=stage), make_settings(precision=precision)
    job, _, losses = zero(tmp_path / "through", stage, precision=precision)
    seen = {}
    for kill_after in (4, 7, None):
        recorder = Recorder()
        again = make_job(tmp_path / "killed", recorder, settings)
        with pytest.raises(InterruptedError) if kill_after else contextlib.nullcontext():
            train_in_ranks(ZERO, options, again, recorder, size=2, kill_after=kill_after)
        seen |= {data["step"]: data["loss"] for data in recorder.of("step")}
        if kill_after != 4:
            assert recorder.of("resumed") == [{"step": 3 if kill_after else 6}]
    assert seen == losses
    assert weights(again) == weights(job)
    assert str(read_weights(job.output)["model.norm.weight"].dtype) == f"torch.{precision}"


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 3])
def test_the_preflight_leaves_no_trace_in_the_training(tmp_path, stage):
    """Its step is taken back in every process: weights, copies of them, and the optimiser."""
    tried, *_ = zero(tmp_path / "with", stage, max_steps=3)
    straight, *_ = zero(tmp_path / "without", stage, max_steps=3, preflight=False)
    assert weights(tried) == weights(straight)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "size"), [(0, 1), (2, 4), (3, 1)])
def test_another_number_of_processes_goes_on(tmp_path, stage, size):
    """The checkpoint of two processes is brought into a form that any number reads, and the order stays the same."""
    through = Recorder()
    straight = make_job(tmp_path / "through", through, make_settings(weight_decay=0.1))
    LOCAL.create().train(straight)
    _, _, first = zero(tmp_path, stage, stop_after=4, weight_decay=0.1)
    recorder = Recorder()
    job, trained, second = zero(tmp_path, stage, size=size, recorder=recorder, weight_decay=0.1)
    assert trained.finished
    assert recorder.of("resumed") == [{"step": 4}]
    assert first | second == pytest.approx({data["step"]: data["loss"] for data in through.of("step")}, abs=1e-4)
    assert TrainerContract().same(job.output, straight.output, tolerance=1e-4)
    assert not list((job.folder / "checkpoints").glob(".tmp-*"))


@pytest.mark.long
def test_another_number_of_processes_writes_checkpoints_of_its_own(tmp_path, alone):
    """Having taken over, it stops and goes on as ever."""
    zero(tmp_path, 2, stop_after=2)
    zero(tmp_path, 2, size=1, stop_after=5)
    job, _, _ = zero(tmp_path, 2, size=1)
    assert TrainerContract().same(job.output, alone[0].output, tolerance=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "optimizer"), (3, "all")])
def test_what_is_offloaded_learns_the_same(tmp_path, alone, stage, offload):
    """Where optimiser and weights lie does not change what is computed."""
    options = DeepSpeedOptions(zero_stage=stage, offload=offload)
    _, _, losses = zero(tmp_path, stage, options=options)
    assert losses == pytest.approx(alone[1], abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 2])
def test_an_adapter_on_quantized_weights_is_what_one_process_makes_of_it(tmp_path, stage):
    """Each process quantizes the base for itself."""
    changes = {
        "adapter": AdapterSettings(rank=4),
        "quantization": "nf4",
        "model": base(tmp_path, weights=True) / "base",
    }
    recorder = Recorder()
    LOCAL.create().train(make_job(tmp_path / "alone", recorder, make_settings(), **changes))
    expected = {data["step"]: data["loss"] for data in recorder.of("step")}
    _, trained, losses = zero(tmp_path / "ranks", stage, changes=changes)
    assert trained.finished
    assert losses == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("stage", "precision", "changes"),
    [(3, "float32", {"quantization": "nf4"}), (2, "bfloat16", {"dtype": "float32"})],
    ids=["quantized", "float32"],
)
def test_weights_that_zero_cannot_hold_are_refused(tmp_path, stage, precision, changes, wording):
    """Before anything is read."""
    adapter = {"adapter": AdapterSettings(rank=4)}
    job = make_job(tmp_path, Recorder(), make_settings(precision=precision), **adapter, **changes)
    with pytest.raises(UsageError) as caught:
        train_in_ranks(ZERO, DeepSpeedOptions(zero_stage=stage), job, Recorder(), size=1)
    wording(str(caught.value))


@pytest.mark.parametrize("changes", [{}, {"vocabulary": 19}, {"adapter": AdapterSettings(rank=4)}])
def test_weights_that_are_shared_out_as_they_are_read_learn_the_same(tmp_path, changes):
    """At stage 3; also where embeddings have to grow, for which every process reads them whole."""
    for name in ("one", "two"):
        base(tmp_path / name, weights=True)
    recorder = Recorder()
    one = make_job(tmp_path / "one", recorder, make_settings(), **changes)
    LOCAL.create().train(one)
    _, _, losses = zero(tmp_path / "two", 3, changes=changes)
    assert losses == pytest.approx({data["step"]: data["loss"] for data in recorder.of("step")}, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "settings"),
    [(2, {"dora": True}), (2, {"init": "pissa", "lora_plus": 4}), (3, {"dropout": 0.2, "lora_plus": 4})],
)
def test_an_adapter_is_trained_resumed_and_exported(tmp_path, stage, settings):
    """Two processes export an adapter, and after a stop the same bytes."""
    changes = {"adapter": AdapterSettings(rank=4, alpha=8, **settings)}
    for name in ("through", "stopped"):
        base(tmp_path / name, weights=True)
    job, _, losses = zero(tmp_path / "through", stage, changes=changes)
    assert losses[8] < losses[1]
    zero(tmp_path / "stopped", stage, changes=changes, stop_after=4)
    again, _, _ = zero(tmp_path / "stopped", stage, changes=changes)
    exported = [(each.output / "adapter_model.safetensors").read_bytes() for each in (job, again)]
    assert exported[0] == exported[1]
    assert not (job.output / "model.safetensors").exists()


@pytest.mark.long
def test_experts_are_adapted_where_they_are_split(tmp_path):
    """At stage 3, which gathers a layer's parameters around its forward pass."""
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    small("qwen3_moe", **moe).save_pretrained(tmp_path / "moe")
    changes = {"model": tmp_path / "moe", "adapter": AdapterSettings(rank=4, alpha=8)}
    recorder = Recorder()
    one = make_job(tmp_path / "one", recorder, make_settings(), **changes)
    LOCAL.create().train(one)
    _, _, losses = zero(tmp_path / "two", 3, changes=changes)
    assert losses == pytest.approx({data["step"]: data["loss"] for data in recorder.of("step")}, abs=1e-4)


@pytest.mark.long
def test_the_options_of_another_stage_do_not_read_a_checkpoint(tmp_path):
    """DeepSpeed would fail deep inside, or read the wrong thing."""
    zero(tmp_path, 3, stop_after=4)
    with pytest.raises(ModelwrightError, match=r"written with zero_stage = 3, and .* zero_stage is 1: "):
        zero(tmp_path, 1)


@pytest.mark.long
def test_a_flipped_byte_sends_the_training_back_to_the_checkpoint_before(tmp_path, alone):
    """Every process's file is checked before any is read."""
    job, _, _ = zero(tmp_path, 2, stop_after=4)
    (path,) = (job.folder / "checkpoints" / "step-00000004").rglob("*rank_1*optim_states.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    recorder = Recorder()
    job, _, _ = zero(tmp_path, 2, recorder=recorder)
    assert recorder.of("checkpoint_rejected")[0]["checkpoint"] == "step-00000004"
    assert recorder.of("resumed") == [{"step": 3}]
    assert TrainerContract().same(job.output, alone[0].output, tolerance=1e-4)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        pytest.param({"zero_stage": 3}, {"compile": True}, id="compile with stage 3"),
        pytest.param({"zero_stage": 1, "offload": "all"}, {}, id="offload all with stage 1"),
        pytest.param({"zero_stage": 0, "offload": "optimizer"}, {}, id="offload optimizer with stage 0"),
        pytest.param({"zero_stage": 1}, {"optimizer": "muon"}, id="muon with stage 1"),
        pytest.param({"zero_stage": 3}, {"optimizer": "adafactor"}, id="adafactor with stage 3"),
        pytest.param({"config": {"nonsense": 1}}, {}, id="unknown setting"),
        pytest.param({"config": {"comunication_data_type": "fp32"}}, {}, id="misspelled setting"),
        pytest.param({"config": {"zero_optimization": True}}, {}, id="a value for a table"),
        *(pytest.param({"config": _nested(path)}, {}, id=path) for path in ELSEWHERE),
    ],
)
def test_options_that_contradict_one_another_are_one_line(options, settings, wording):
    """The error names the key, and where the setting belongs."""
    from modelwright.plugins.trainers.deepspeed.trainer import zero_config

    with pytest.raises(UsageError) as caught:
        zero_config(DeepSpeedOptions(**options), make_settings(**settings), precision=torch.float32, on_gpu=False)
    wording(caught.value)


def test_the_settings_that_are_known_are_those_that_deepspeed_reads():
    """Each name is looked up by its reader."""
    from deepspeed.runtime import config as reader

    class Read(dict):
        """Remembers what was looked up in it."""

        names: ClassVar[set[str]] = set()

        def get(self, key, default=None):
            self.names.add(key)
            return super().get(key, default)

        def __getitem__(self, key):
            self.names.add(key)
            return super().__getitem__(key)

        def __contains__(self, key):
            self.names.add(key)
            return super().__contains__(key)

        def keys(self):
            return self

    reader.DeepSpeedConfig(Read(train_micro_batch_size_per_gpu=1))
    assert Read.names >= DEEPSPEED_TABLES | DEEPSPEED_VALUES


@pytest.mark.parametrize(
    ("stage", "precision", "on_gpu"),
    [(0, "bfloat16", True), (1, "bfloat16", True), (2, "bfloat16", False), (2, "bfloat16", True), (3, "float32", True)],
)
def test_the_defaults_for_zero_are_an_experts(stage, precision, on_gpu):
    """Docs/howto/training.md has the reasons; `config` changes any of them."""
    from modelwright.plugins.trainers.deepspeed.trainer import zero_config

    def settings(**config):
        options = DeepSpeedOptions(zero_stage=stage, config=config)
        return zero_config(options, make_settings(), precision=getattr(torch, precision), on_gpu=on_gpu)

    made = settings()
    assert made["data_types"]["grad_accum_dtype"] == "fp32"
    assert made["zero_optimization"]["overlap_comm"] == (on_gpu and stage >= 2)
    assert made["bf16"]["enabled"] == (precision == "bfloat16" and stage > 0)
    changed = settings(data_types={"grad_accum_dtype": "bf16"}, zero_optimization={"overlap_comm": False})
    assert changed["data_types"]["grad_accum_dtype"] == "bf16"
    assert changed["zero_optimization"] == made["zero_optimization"] | {"overlap_comm": False}


@pytest.mark.long
def test_options_that_contradict_one_another_are_refused_by_all_processes(tmp_path):
    """Before the first step."""
    with pytest.raises(ModelwrightError, match='"all" needs zero_stage = 3'):
        zero(tmp_path, 0, options=DeepSpeedOptions(zero_stage=1, offload="all"))


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 3])
def test_a_spike_is_dropped_in_every_process(tmp_path, stage):
    """All steps of the end are spikes by the settings, and each is dropped everywhere."""
    settings = {"max_steps": 36, "batch_size": 4, "micro_batch_size": None, "warmup": 0.0, "schedule": "constant"}
    recorder = Recorder()
    changes = {"loss_spike": 1.0000001, "on_bad_step": "skip", "learning_rate": 1e-9}
    _, _, losses = zero(tmp_path / "spikes", stage, recorder=recorder, **settings | changes)
    bad = [data["step"] for data in recorder.of("bad_step")]
    assert bad
    assert min(bad) > 32
    assert all(data["examples"] for data in recorder.of("bad_step"))
    assert [data["step"] for data in recorder.of("step") if data["grad_norm"] is None] == bad
    assert sorted(losses) == list(range(1, 37))


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 3])
def test_packs_are_checked_and_trained_at_every_stage(tmp_path, stage):
    """With any number of documents in a process's packs: all check the same ones."""
    packs = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9], [10], [11, 12, 13, 14], [15, 16]]
    write_token_folder(tmp_path / "train", counting_rows(17), packs=packs)
    _, trained, losses = zero(tmp_path, stage, max_steps=2, batch_size=6)
    assert trained.finished
    recorder = Recorder()
    write_token_folder(tmp_path / "alone" / "train", counting_rows(17), packs=packs)
    LOCAL.create().train(make_job(tmp_path / "alone", recorder, make_settings(max_steps=2, batch_size=6)))
    assert losses == pytest.approx({data["step"]: data["loss"] for data in recorder.of("step")}, abs=1e-4)


@pytest.mark.long
def test_the_best_checkpoint_of_another_number_of_processes_is_the_result(tmp_path):
    """It was written by two, and one goes on to where the patience ends."""
    wrong = [(name, list(reversed(ids)), trained) for name, ids, trained in counting_rows(6)]
    changes = {"holdout": write_token_folder(tmp_path / "holdout", wrong)}
    settings = {"max_steps": 60, "batch_size": 8, "checkpoint_every": 2, "early_stopping": 3}
    through = Recorder()
    zero(tmp_path / "through", 2, recorder=through, changes=changes, **settings)
    (best,) = (data["best_step"] for data in through.of("best"))
    zero(tmp_path / "changed", 2, changes=changes, stop_after=best + 1, **settings)
    recorder = Recorder()
    _, trained, _ = zero(tmp_path / "changed", 2, size=1, recorder=recorder, changes=changes, **settings)
    assert trained.finished
    assert recorder.of("best")[0]["best_step"] == best


@pytest.mark.long
def test_settings_that_deepspeed_refuses_are_one_line(tmp_path):
    """Its own error is a paragraph."""
    options = DeepSpeedOptions(config={"zero_optimization": {"reduce_bucket_size": "many"}})
    with pytest.raises(ModelwrightError, match=r"\[train.options\] config: DeepSpeed refuses it: .*reduce_bucket_size"):
        zero(tmp_path, 2, options=options)


def test_a_lost_connection_is_reported_as_another_process_that_is_gone(monkeypatch):
    """The network library's own words name a socket."""
    from modelwright.plugins.trainers.deepspeed import trainer as deepspeed

    monkeypatch.setattr(deepspeed, "_PATIENCE", 0.0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(
            ModelwrightError,
            match=r"process 0 of 2 lost the connection to another process, which was killed .* the same command",
        ),
        deepspeed._clear_error_for_lost_process(),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")
    with pytest.raises(RuntimeError, match="another mistake"), deepspeed._clear_error_for_lost_process():
        raise RuntimeError("another mistake")


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"weights are incomplete: missing model\.norm\.weight"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), r"mismatch for model\.norm\.weight: "),
    ],
)
def test_weights_that_do_not_fit_are_reported_when_they_are_split(tmp_path, change, said):
    """By the name of the tensor, as in one process."""
    base(tmp_path, weights=True)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelwrightError, match=said):
        zero(tmp_path, 3)
