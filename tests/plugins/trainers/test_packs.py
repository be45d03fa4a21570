"""Training on packs: several documents in one sequence learn what each would learn alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import ModelwrightError, TokenFolder, TokenRow
from modelwright.core.stages.prepare.packs import write_packs
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.batches.corpus import Corpus
from modelwright.plugins.trainers.batches.micro_batches import Assignment, collate, round_size
from modelwright.plugins.trainers.checkpoints import Checkpoints, Progress
from modelwright.plugins.trainers.local import LocalTrainer, SingleDevice
from modelwright.plugins.trainers.loop import Loop
from modelwright.plugins.trainers.model.load import load_model
from modelwright.plugins.trainers.ranks import Ranks

ROWS = counting_rows(24)


class _Local(TrainerContract):
    def trainer(self):
        return LocalTrainer(LocalOptions())


settings, train = _Local().settings, _Local().train


def packed_folder(path, rows=ROWS, *, max_length=20):
    write_packs(write_token_folder(path, rows, shards=2), max_length)
    return path


class TestPackedTrainer(TrainerContract):
    """The contract, on packs: stopping, resuming, seeds and refusals are as for rows."""

    tolerance = 0.0

    def trainer(self):
        """The trainer `local`."""
        return LocalTrainer(LocalOptions())

    @pytest.fixture(autouse=True)
    def on_packs(self, monkeypatch):
        """Every job's tokens are packed."""

        def packed(trainer, job):
            write_packs(job.tokens, 20)
            return LocalTrainer.train(trainer, job)

        monkeypatch.setattr(self, "train", lambda job: packed(self.trainer(), job))


documents = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=5
)


@given(st.lists(documents, min_size=1, max_size=4))
def test_each_token_is_predicted_from_its_own_document(packs):
    """Positions start again in each document; neither the next one's beginning nor padding is predicted."""
    rows = [
        [TokenRow("id", np.array([t for t, _ in row], np.int32), np.array([t for _, t in row])) for row in pack]
        for pack in packs
    ]
    batch = collate(rows)
    width = max(sum(map(len, pack)) for pack in packs)
    if any(len(pack) > 1 for pack in packs):
        width = round_size(width)
    predicted, positions = [], []
    for index, pack in enumerate(packs):
        place, line = index * width, []
        for row in pack:
            predicted += [(place + at - 1, token) for at, (token, trained) in enumerate(row) if at and trained]
            place += len(row)
            line += range(len(row))
        longest = max(len(row) for pack in packs for row in pack)
        positions.append(line + [place % longest for place in range(width - len(line))])
    assert list(zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)) == predicted
    assert batch.tokens == sum(len(row) for pack in packs for row in pack)
    if any(len(pack) > 1 for pack in packs):
        assert batch.position_ids.tolist() == positions
        assert batch.attention_mask is None
    else:
        assert batch.position_ids is None


def test_packs_have_few_widths_within_the_limit_of_a_micro_batch(tmp_path):
    """A kernel is compiled for each width: sixteen between two powers of two, and the padding counts."""
    rows = [(f"row-{size}", [7] * size, [False] + [True] * (size - 1)) for size in range(33, 93)]
    corpus = Corpus(packed_folder(tmp_path / "packs", rows, max_length=190))
    batches = [corpus.read(each) for each in corpus.assignments(corpus.sequences, size=None, tokens=384)]
    widths = {batch.input_ids.shape[1] for batch in batches if batch.position_ids is not None}
    assert len(widths) < len(corpus.packed(corpus.sequences)) / 4
    assert widths <= {round_size(width) for width in range(1, 193)}
    assert max(batch.input_ids.numel() for batch in batches) <= 384


def one_epoch(folder, tokens, **changes):
    """Loss and gradients of one step over all that there is."""
    size = len(Corpus(tokens).sequences)
    job = make_job(folder, Recorder(), settings(max_steps=1, batch_size=size, **changes), tokens=tokens)
    strategy = SingleDevice(load_model(job), job.settings, device=torch.device("cpu"), precision=torch.float32)
    gradients = {}
    step = strategy.step

    def keep(rate):
        gradients.update({name: value.grad.clone() for name, value in strategy.model.named_parameters()})
        return step(rate)

    strategy.step = keep
    return Loop(job, strategy, Corpus(tokens), Checkpoints(job, Ranks()), micro_batch_tokens=64).step(
        Progress()
    ), gradients


@pytest.mark.parametrize("size", [None, 1, 3])
def test_an_epoch_on_packs_has_the_loss_and_gradient_of_the_same_rows(tmp_path, size):
    """However it is split into micro-batches, to rounding."""
    rows, expected = one_epoch(tmp_path, write_token_folder(tmp_path / "rows", ROWS))
    packs, gradients = one_epoch(tmp_path, packed_folder(tmp_path / "packs"), micro_batch_size=size)
    assert (packs.tokens, packs.trained_tokens) == (rows.tokens, rows.trained_tokens)
    assert packs.loss == pytest.approx(rows.loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_rows_that_teach_nothing_are_left_out_of_their_packs(tmp_path):
    """A pack without any other row is left out whole; counts and lengths are those of what is left."""
    rows = [("a", [1, 2, 3], [True] * 3), ("b", [4, 5], [False] * 2), ("c", [6] * 9, [False] * 9)]
    corpus = Corpus(write_token_folder(tmp_path / "some", rows, packs=[[0, 1], [2]]))
    assert corpus.sequences.tolist() == [0]
    assert (corpus.examples, corpus.skipped, corpus.tokens, corpus.longest) == (1, 2, 3, 3)
    assert corpus.read(Assignment(corpus.sequences)).ids == ("a",)
    assert corpus.packed(corpus.sequences).tolist() == []


def test_events_count_examples_and_packs(tmp_path):
    """A batch is this number of packs; each example goes through the model once an epoch."""
    tokens = packed_folder(tmp_path / "packs")
    recorder = Recorder()
    given = settings(max_steps=None, epochs=2, batch_size=2)
    train(make_job(tmp_path, recorder, given, tokens=tokens))
    packs = len(TokenFolder(tokens).packs)
    started = recorder.of("started")[0]
    assert (started["examples"], started["sequences"], started["steps"]) == (24, packs, packs)
    assert sum(data["tokens"] for data in recorder.of("step")) == 2 * sum(len(ids) for _, ids, _ in ROWS)


def test_held_out_rows_are_measured_alike_packed_or_not(tmp_path):
    """The holdout is rows as a rule; a folder that was never made is not a holdout."""
    losses = []
    for holdout in (write_token_folder(tmp_path / "rows", ROWS[:9]), packed_folder(tmp_path / "h", ROWS[:9])):
        tokens = packed_folder(tmp_path / "packs")
        job = make_job(tmp_path / holdout.name, Recorder(), settings(max_steps=3), tokens=tokens, holdout=holdout)
        losses.append(train(job).holdout_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    job = make_job(tmp_path, Recorder(), settings(max_steps=1), tokens=tokens, holdout=tmp_path / "nowhere")
    assert train(job).holdout_loss is None


def test_a_pack_may_be_longer_than_the_context(tmp_path):
    """Positions start again, so it is the longest document that must fit."""
    tokens = packed_folder(tmp_path / "packs", max_length=200)
    assert train(make_job(tmp_path, Recorder(), settings(max_steps=1, batch_size=1), tokens=tokens)).finished


def test_weights_that_are_no_numbers_are_no_leak(tmp_path):
    """The loss includes them, with the examples."""
    base = write_model(tmp_path / "base", weights=True)
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    job = make_job(tmp_path, Recorder(), settings(), tokens=packed_folder(tmp_path / "packs"))
    with pytest.raises(ModelwrightError, match="step 1: the loss is nan"):
        train(job)
