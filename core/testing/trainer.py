"""The contract of trainers as a test-suite: a trainer's author subclasses it, and pytest does the rest.

    from modelwright.core.testing.trainer import TrainerContract

    class TestMyTrainer(TrainerContract):
        def trainer(self):
            return MyTrainer(MyOptions())

The models are Llamas of a few thousand parameters, made here; nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field

from modelwright.core.api import Job, ModelwrightError, Trained, Trainer, TrainSettings

VOCABULARY = 16


def write_token_folder(
    path: Path,
    rows: Sequence[tuple[str, Sequence[int], Sequence[bool]]],
    *,
    shards: int = 1,
    packs: Sequence[Sequence[int]] | None = None,
) -> Path:
    """Write (id, token ids, trained) rows as the folder that `modelwright.TokenFolder` reads.

    Args:
        path: the folder.
        rows: what goes into it.
        shards: over how many files the rows are spread.
        packs: the rows of each pack; None for rows that are not packed.
    """
    import pyarrow as pa

    schema = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_()))])
    path.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards]
        columns = [[list(row[column]) if column else row[0] for row in part] for column in range(3)]
        _write_arrow(path / f"{shard:05d}.arrow", schema, columns)
    if packs is not None:
        _write_arrow(path / "packs.arrow", pa.schema([("rows", pa.list_(pa.int64()))]), [[list(p) for p in packs]])
    return path


def _write_arrow(path: Path, schema: Any, columns: Sequence[Sequence[Any]]) -> None:
    import pyarrow as pa

    table = pa.table([pa.array(column, type=kind.type) for column, kind in zip(columns, schema, strict=True)], schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)


def counting_rows(count: int) -> list[tuple[str, list[int], list[bool]]]:
    """Rows that a model can learn: each counts on from its first token, 4 to 10 tokens; all but two are trained."""
    rows = []
    for index in range(count):
        length = 4 + index % 7
        ids = [(index + position) % VOCABULARY for position in range(length)]
        rows.append((f"row-{index}", ids, [position >= 2 for position in range(length)]))
    return rows


def write_model(folder: Path, *, weights: bool = False, dropout: float = 0.0, vocabulary: int = VOCABULARY) -> Path:
    """Write a tiny Llama's folder: its config, and with `weights` a safetensors file."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        bos_token_id=None,
        eos_token_id=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    if weights:
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder


def read_weights(folder: Path) -> dict[str, Any]:
    """The tensors of a model folder by name."""
    from safetensors.torch import load_file

    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    return weights


@define
class Recorder:
    """Takes the place of the runner: keeps the events of a job, and asks it to stop after a step.

    Attributes:
        stop_after: the step after which `stopping` says True.
        events: what was emitted, as (kind, data).
    """

    stop_after: int | None = None
    events: list[tuple[str, Mapping[str, Any]]] = field(factory=list)

    def emit(self, kind: str, data: Mapping[str, Any]) -> None:
        """Keep an event, which must be JSON: no NaN, no tensors."""
        json.dumps(data, allow_nan=False)
        self.events.append((kind, data))

    def stopping(self) -> bool:
        """Whether the last step reported is the one to stop after."""
        steps = self.steps()
        return self.stop_after is not None and bool(steps) and steps[-1] >= self.stop_after

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The data of every event of one kind."""
        return [data for name, data in self.events if name == kind]

    def steps(self) -> list[int]:
        """The steps that were done, in their order."""
        return [data["step"] for data in self.of("step")]


def make_job(folder: Path, recorder: Recorder, settings: TrainSettings, **changes: Any) -> Job:
    """A job in `folder` that counts; `changes` are other values for `Job`'s attributes."""
    tokens = folder / "train"
    if not tokens.exists():
        write_token_folder(tokens, counting_rows(24))
    if not (folder / "base" / "config.json").exists():
        write_model(folder / "base")
    job = Job(
        folder=folder / "job",
        model=folder / "base",
        output=folder / "job" / "model",
        tokens=tokens,
        holdout=None,
        settings=settings,
        seed=3,
        fingerprint="one",
        emit=recorder.emit,
        stopping=recorder.stopping,
    )
    return evolve(job, **changes)


class TrainerContract:
    """What every trainer does; subclass it and give `trainer`.

    Attributes:
        tolerance: how far weights may be apart that ought to be the same, absolute; a GPU's sums have no fixed order.
    """

    tolerance: float = 1e-5

    def trainer(self) -> Trainer:
        """The trainer under test, with the options that it needs."""
        raise NotImplementedError

    def settings(self, **changes: Any) -> TrainSettings:
        """The `[train]` table that the tests use; override it to add options."""
        values = {
            "max_steps": 30,
            "batch_size": 8,
            "learning_rate": 3e-2,
            "checkpoint_every": 4,
            "precision": "float32",
        }
        return TrainSettings(**(values | changes))  # type: ignore[arg-type]

    def train(self, job: Job) -> Trained:
        """Run a job; override it for a trainer that needs processes of its own."""
        return self.trainer().train(job)

    def same(self, one: Path, other: Path, *, tolerance: float | None = None) -> bool:
        """Whether two model folders hold the same weights, within `tolerance` (default: the class's)."""
        import torch

        left, right = read_weights(one), read_weights(other)
        return left.keys() == right.keys() and all(
            torch.allclose(left[name], right[name], rtol=0, atol=self.tolerance if tolerance is None else tolerance)
            for name in left
        )

    def test_it_learns_and_leaves_a_model_in_hugging_face_layout(self, tmp_path: Path) -> None:
        """The loss falls, and `output` loads as a causal language model."""
        from transformers import AutoModelForCausalLM

        recorder = Recorder()
        job = make_job(tmp_path, recorder, self.settings())
        trained = self.train(job)
        losses = [data["loss"] for data in recorder.of("step")]
        assert trained.finished
        assert (trained.step, trained.steps) == (30, 30)
        assert trained.loss == losses[-1]
        assert losses[-1] < losses[0] / 2
        model = AutoModelForCausalLM.from_pretrained(job.output, local_files_only=True)
        assert model.config.vocab_size == VOCABULARY

    def test_its_events_tell_each_step_once(self, tmp_path: Path) -> None:
        """First `started` with the number of steps, then each step with loss, rate and norm, last `finished`."""
        recorder = Recorder()
        self.train(make_job(tmp_path, recorder, self.settings(max_steps=6)))
        kinds = [kind for kind, _ in recorder.events]
        assert (kinds[0], kinds[-1]) == ("started", "finished")
        assert recorder.of("started")[0]["steps"] == 6
        assert recorder.steps() == [1, 2, 3, 4, 5, 6]
        wanted = {"steps", "loss", "learning_rate", "grad_norm", "tokens", "seconds"}
        assert all(wanted <= set(data) for data in recorder.of("step"))
        assert [data["step"] for data in recorder.of("checkpoint")] == [4]

    def test_it_measures_the_held_out_data(self, tmp_path: Path) -> None:
        """The loss on data held out falls with training, and the outcome carries the last one."""
        recorder = Recorder()
        holdout = write_token_folder(tmp_path / "holdout", counting_rows(5))
        trained = self.train(make_job(tmp_path, recorder, self.settings(checkpoint_every=10), holdout=holdout))
        measured = recorder.of("holdout")
        assert [data["step"] for data in measured] == [10, 20, 30]
        assert measured[-1]["loss"] < measured[0]["loss"]
        assert trained.holdout_loss == measured[-1]["loss"]

    def test_packs_teach_what_their_rows_teach(self, tmp_path: Path) -> None:
        """The documents of a pack do not see each other: the first loss over everything is that of the rows alone."""
        rows, losses = counting_rows(12), []
        base = write_model(tmp_path / "base", weights=True)
        for name, packs in (("rows", None), ("packs", [[0, 1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11]])):
            tokens = write_token_folder(tmp_path / name / "train", rows, packs=packs)
            recorder = Recorder()
            # The usual size is all that there are, where there are fewer.
            settings = self.settings(max_steps=1, batch_size=32)
            self.train(make_job(tmp_path / name, recorder, settings, model=base, tokens=tokens))
            losses.append(recorder.of("step")[0]["loss"])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_it_stops_on_request_and_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        """A job that was stopped twice does every step once and ends with the weights of one that was not."""
        straight = make_job(tmp_path / "straight", Recorder(), self.settings())
        self.train(straight)
        steps: list[int] = []
        for stop_after in (3, 17):
            recorder = Recorder(stop_after=stop_after)
            trained = self.train(make_job(tmp_path / "stopped", recorder, self.settings()))
            assert (trained.finished, trained.step, trained.steps) == (False, stop_after, 30)
            steps += recorder.steps()
        recorder = Recorder()
        job = make_job(tmp_path / "stopped", recorder, self.settings())
        assert self.train(job).finished
        assert recorder.of("resumed") == [{"step": 17}]
        assert steps + recorder.steps() == list(range(1, 31))
        assert self.same(straight.output, job.output)

    def test_a_finished_job_is_not_done_again(self, tmp_path: Path) -> None:
        """A second call gives the same outcome without a step, also when files were added to the output since."""
        job = make_job(tmp_path, Recorder(), self.settings(max_steps=3))
        first = self.train(job)
        (job.output / "tokenizer.json").write_text("{}")
        again = Recorder()
        assert self.train(make_job(tmp_path, again, self.settings(max_steps=3))) == first
        assert again.steps() == []
        assert (job.output / "tokenizer.json").exists()

    def test_other_inputs_start_over(self, tmp_path: Path) -> None:
        """Neither a checkpoint nor an output of another fingerprint is taken for this job's."""
        self.train(make_job(tmp_path, Recorder(stop_after=5), self.settings()))
        recorder = Recorder()
        assert self.train(make_job(tmp_path, recorder, self.settings(), fingerprint="two")).finished
        assert recorder.steps() == list(range(1, 31))
        again = Recorder()
        assert self.train(make_job(tmp_path, again, self.settings(), fingerprint="three")).finished
        assert again.steps() == list(range(1, 31))

    def test_the_seed_decides(self, tmp_path: Path) -> None:
        """Equal seeds give equal models, another seed gives another one."""
        outputs = {}
        for name, seed in (("one", 5), ("same", 5), ("other", 6)):
            job = make_job(tmp_path / name, Recorder(), self.settings(max_steps=3), seed=seed)
            self.train(job)
            outputs[name] = job.output
        assert self.same(outputs["one"], outputs["same"])
        assert not self.same(outputs["one"], outputs["other"])

    def test_it_begins_with_the_weights_that_it_is_given(self, tmp_path: Path) -> None:
        """A base with weights is continued: with a rate of almost nothing it comes out as it went in."""
        base = write_model(tmp_path / "base", weights=True)
        job = make_job(tmp_path, Recorder(), self.settings(max_steps=1, learning_rate=1e-12))
        self.train(job)
        assert self.same(base, job.output, tolerance=1e-6)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
    def test_pickled_weights_are_refused(self, tmp_path: Path, name: str) -> None:
        """A pickle can run any code: it is not read, nor is the model silently drawn at random instead."""
        write_model(tmp_path / "base")
        (tmp_path / "base" / name).write_bytes(b"\x80\x04.")
        self.refuses(tmp_path, lambda job: job, name)

    def test_tokens_beyond_the_embeddings_are_refused(self, tmp_path: Path) -> None:
        """A tokenizer that is larger than the model is named before training."""
        write_model(tmp_path / "base", vocabulary=8)
        self.refuses(tmp_path, lambda job: job, "15")

    def test_data_without_anything_to_learn_is_refused(self, tmp_path: Path) -> None:
        """Rows without a trained token are named as the trouble, not met as a division by nothing."""
        rows = [(name, ids, [False] * len(ids)) for name, ids, _ in counting_rows(3)]
        tokens = write_token_folder(tmp_path / "nothing", rows)
        self.refuses(tmp_path, lambda job: evolve(job, tokens=tokens), "nothing")

    def refuses(self, folder: Path, change: Callable[[Job], Job], named: str) -> None:
        """Assert that a job fails with one clear line that says `named`, and leaves no output."""
        job = change(make_job(folder, Recorder(), self.settings(max_steps=2)))
        with pytest.raises(ModelwrightError) as caught:
            self.train(job)
        assert named in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not job.output.exists()
