"""Documents in a pack are computed and learnt as each would be alone, or the training does not begin."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import ModelwrightError, TokenFolder, TokenRow
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    read_weights,
    write_token_folder,
)
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.data import Corpus, collate
from modelwright.plugins.trainers.local import LocalTrainer, SingleDevice
from modelwright.plugins.trainers.loop import Loop, SupervisedLogits
from modelwright.plugins.trainers.model import load_model
from modelwright.plugins.trainers.packed import check_isolation, forward


class _Local(TrainerContract):
    def trainer(self):
        return LocalTrainer(LocalOptions())


settings = _Local().settings
train = _Local().train

# The first two packs have three documents each, and are not equally long.
PACKS = [[0, 3, 5], [1, 2, 8], [4], [6, 7], [9, 10, 11]]
SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
ARCHITECTURES = {
    "Llama": SIZES | HEADS,
    "Qwen2": SIZES | HEADS,
    "Qwen3": SIZES | HEADS | {"head_dim": 16},
    "Mistral": SIZES | HEADS | {"sliding_window": 6},
    "Gemma": SIZES | HEADS | {"head_dim": 16},
    "Phi3": SIZES | HEADS | {"pad_token_id": 0},
    "GPTNeoX": SIZES | {"num_attention_heads": 2, "max_position_embeddings": 128},
    "GPT2": {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
}
MAMBA = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
# FlexAttention builds its masks in one place for all architectures, and is slow here: one with a window, one without.
COMBINATIONS = [(name, attention) for name in ARCHITECTURES for attention in ("eager", "sdpa")]
COMBINATIONS += [("Llama", "flex_attention"), ("Mistral", "flex_attention")]


def make_model(name, attention, **changes):
    import transformers

    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name] | changes)
    config._attn_implementation = attention
    torch.manual_seed(3)
    return getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config).eval()


def documents(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [
        TokenRow(f"row-{n}", random.integers(0, 32, size=length).astype(np.int32), np.ones(length, np.bool_))
        for n, length in enumerate(lengths)
    ]


@pytest.fixture
def corpus(tmp_path):
    return Corpus(write_token_folder(tmp_path / "packed", counting_rows(12), packs=PACKS))


def check(model, corpus):
    logits = functools.partial(SupervisedLogits(model).at_positions, model)
    check_isolation(model, corpus, logits, contextlib.nullcontext())


@pytest.mark.parametrize(("name", "attention"), COMBINATIONS)
def test_packed_logits_are_those_of_each_document_alone(name, attention):
    """To 1e-5 in float32, in a batch whose packs are not equally long."""
    model = make_model(name, attention)
    packs = [documents([9, 1, 14, 4]), documents([7, 12], seed=1)]
    with torch.no_grad():
        together = forward(model, collate(packs, packed=True))
        for number, pack in enumerate(packs):
            start = 0
            for document in pack:
                alone = forward(model, collate([[document]], packed=False))[0]
                end = start + len(document.input_ids)
                torch.testing.assert_close(together[number, start:end], alone, atol=1e-5, rtol=0)
                start = end


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4))
def test_positions_begin_anew_and_a_documents_first_token_is_never_asked_for(sizes):
    """Every other token is, from the place before it in its own document."""
    packs = [documents(lengths, seed=n) for n, lengths in enumerate(sizes)]
    batch = collate(packs, packed=True)
    width = batch.input_ids.shape[1]
    assert batch.attention_mask is None
    expected = []
    for number, pack in enumerate(packs):
        start = 0
        for document in pack:
            length = len(document.input_ids)
            assert batch.position_ids[number, start : start + length].tolist() == list(range(length))
            assert batch.input_ids[number, start : start + length].tolist() == document.input_ids.tolist()
            expected += [(number * width + start + at - 1, document.input_ids[at]) for at in range(1, length)]
            start += length
    assert list(zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)) == expected
    assert batch.tokens == sum(map(sum, sizes))


def test_a_step_on_packs_learns_what_a_step_on_the_same_rows_does(tmp_path):
    """The loss and every weight after it: packing is no other training."""
    rows = counting_rows(12)
    results = []
    for name, packs, sequences in (("packed", PACKS, len(PACKS)), ("alone", None, 12)):
        job = make_job(tmp_path / name, Recorder(), settings(max_steps=1, batch_size=sequences))
        job = evolve(job, tokens=write_token_folder(tmp_path / name / "rows", rows, packs=packs))
        model = load_model(job)
        strategy = SingleDevice(model, job.settings, device=torch.device("cpu"), precision=torch.float32)
        result = Loop(job, strategy, Corpus(job.tokens), micro_batch_tokens=30).step(1)
        results.append((result, [value.detach().clone() for value in model.parameters()]))
    (packed, ours), (alone, theirs) = results
    assert (packed.supervised, packed.tokens) == (alone.supervised, alone.tokens)
    assert packed.loss == pytest.approx(alone.loss, rel=1e-5)
    assert packed.grad_norm == pytest.approx(alone.grad_norm, rel=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_training_on_packs_that_was_stopped_goes_on_exactly(tmp_path):
    """As one that was not, to the last bit."""
    weights = []
    for name, stop_after in (("through", None), ("stopped", 3)):
        tokens = write_token_folder(tmp_path / name / "train", counting_rows(12), shards=3, packs=PACKS)
        options = {"stop_after": stop_after} if stop_after else {}
        job = make_job(tmp_path / name, Recorder(**options), settings(max_steps=8, batch_size=2), tokens=tokens)
        trained = train(job)
        if stop_after:
            assert (trained.finished, trained.step) == (False, 3)
            trained = train(evolve(job, emit=Recorder().emit, stopping=lambda: False))
        assert trained.finished
        weights.append(read_weights(job.output))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_packs_of_which_nothing_is_learnt_are_left_out_and_counted(tmp_path):
    """As rows are."""
    rows = counting_rows(12)
    rows[4] = (rows[4][0], rows[4][1], [False] * len(rows[4][1]))
    corpus = Corpus(write_token_folder(tmp_path / "packed", rows, packs=PACKS))
    assert (corpus.rows.tolist(), corpus.skipped) == ([0, 1, 3, 4], 1)
    folder = TokenFolder(corpus.path)
    assert corpus.longest == max(sum(len(folder[row].input_ids) for row in pack) for pack in PACKS)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_that_keep_documents_apart_pass_the_preflight(corpus, name, attention):
    """And are left in the mode that they were in."""
    model = make_model(name, attention).train()
    check(model, corpus)
    assert model.training


class _WithoutPositions(torch.nn.Module):
    """A model that drops the positions on its way."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, position_ids=None, **given):  # noqa: ARG002 - that is what it does
        return self.model(**given)


class _WithAMaskOfOnes(_WithoutPositions):
    """What others send along, and positions do not help any more."""

    def forward(self, input_ids, attention_mask, **given):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.model(input_ids=input_ids, attention_mask=mask, **given)


@pytest.mark.parametrize("leaking", [_WithoutPositions, _WithAMaskOfOnes])
def test_a_model_that_sees_across_documents_is_refused(corpus, leaking):
    """With what is wrong and what to do."""
    expected = r"does not keep .* apart \(.*\): set \[data.tokens\] packing = .bucket."
    with pytest.raises(ModelwrightError, match=expected):
        check(leaking(make_model("Llama", "sdpa")), corpus)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Mamba", MAMBA),
        ("Bloom", {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2}),
    ],
)
def test_models_that_know_no_positions_are_refused(corpus, kind, config):
    """A recurrent state runs on from one document into the next; distances in the sequence are no positions."""
    import transformers

    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config))
    with pytest.raises(ModelwrightError, match=rf"{kind}ForCausalLM.*packing = \"bucket\""):
        check(model, corpus)


def test_a_training_with_a_model_that_leaks_does_not_begin(tmp_path):
    """No step is made, and nothing is written."""
    from transformers import MambaConfig

    MambaConfig(**MAMBA, architectures=["MambaForCausalLM"]).save_pretrained(tmp_path / "base")
    tokens = write_token_folder(tmp_path / "train", counting_rows(12), packs=PACKS)
    recorder = Recorder()
    job = make_job(tmp_path, recorder, settings(max_steps=2), tokens=tokens)
    with pytest.raises(ModelwrightError, match=r"MambaForCausalLM.* does not keep the documents of a pack apart"):
        train(job)
    assert not recorder.of("step")
    assert not job.output.exists()
