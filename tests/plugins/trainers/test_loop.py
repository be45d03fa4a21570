"""The training loop: what its loss is, and what it does when the numbers fail."""

from __future__ import annotations

import math

import pytest
import torch
from attrs import define, evolve

from modelwright.core.api import ModelwrightError, UsageError
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    read_weights,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.batches.corpus import Corpus
from modelwright.plugins.trainers.checkpoints import Checkpoints, Progress
from modelwright.plugins.trainers.local import LocalTrainer, SingleDevice
from modelwright.plugins.trainers.loop import Loop
from modelwright.plugins.trainers.model.load import load_model
from modelwright.plugins.trainers.ranks import Ranks


class _Local(TrainerContract):
    def trainer(self):
        return LocalTrainer(LocalOptions())


settings = _Local().settings
train = _Local().train
same = _Local().same

# Ten rows of one step, of which one teaches thirty tokens and the others one each.
UNEVEN = [
    ("many", [index % 16 for index in range(40)], [index >= 10 for index in range(40)]),
    *(
        (f"one-{index}", [index, 3, 5, 7][: 2 + index % 3], [False, True, False, False][: 2 + index % 3])
        for index in range(9)
    ),
]


class KeepsGradients(SingleDevice):
    """Remembers the gradient of the last step."""

    def step(self, learning_rate):
        """Step as ever."""
        self.gradients = {name: value.grad.clone() for name, value in self.model.named_parameters()}
        return super().step(learning_rate)


def one_step(tmp_path, *, tokens=8192, **changes):
    job = make_job(tmp_path, Recorder(), settings(max_steps=1, batch_size=10, **changes))
    job = evolve(job, tokens=write_token_folder(tmp_path / "uneven", UNEVEN))
    model = load_model(job)
    strategy = KeepsGradients(model, job.settings, device=torch.device("cpu"), precision=torch.float32)
    loop = Loop(job, strategy, Corpus(job.tokens), Checkpoints(job, Ranks()), micro_batch_tokens=tokens)
    return loop.step(Progress()), strategy.gradients, job


@pytest.fixture
def plain(tmp_path):
    """Loss and gradients of the same step, written down naively: one sequence at a time, all logits, no padding."""
    _, _, job = one_step(tmp_path)
    model = load_model(job)
    losses = []
    for _, ids, trained in UNEVEN:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        losses += [
            torch.nn.functional.cross_entropy(logits[place - 1], torch.tensor(ids[place]))
            for place in range(1, len(ids))
            if trained[place]
        ]
    loss = torch.stack(losses).mean()
    torch.autograd.backward(loss)
    return loss.item(), {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "split", [{"micro_batch_size": 1}, {"micro_batch_size": 2}, {"micro_batch_size": 5}, {}, {"tokens": 12}]
)
def test_the_loss_is_the_mean_over_the_steps_trained_tokens_however_it_is_split(tmp_path, plain, split):
    """Loss and every gradient are those of the plain mean, for any micro-batching of very uneven sequences."""
    result, gradients, _ = one_step(tmp_path, **split)
    loss, expected = plain
    assert result.trained_tokens == 39
    assert result.tokens == sum(len(ids) for _, ids, _ in UNEVEN)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_what_a_model_does_to_its_logits_is_part_of_the_loss(tmp_path):
    """A model that caps its logits (Gemma 2) is trained on capped ones, though most logits are never computed."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    config = Gemma2Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
        architectures=["Gemma2ForCausalLM"],
    )
    (tmp_path / "base").mkdir()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    result, _, _ = one_step(tmp_path)
    model.eval()
    total = 0.0
    for _, ids, trained in UNEVEN:
        labels = torch.tensor([[token if taught else -100 for token, taught in zip(ids, trained, strict=True)]])
        outputs = model(input_ids=torch.tensor([ids]), labels=labels)
        total += outputs.loss.item() * sum(trained[1:])
    assert result.loss == pytest.approx(total / 39, rel=1e-4)
    assert abs(result.loss - math.log(16)) < 0.06


def test_a_step_that_diverges_is_stopped_with_its_examples(tmp_path, wording):
    """The error names the step and the examples whose loss is not finite, and nothing of it is saved."""
    base = write_model(tmp_path / "base", weights=True)
    from safetensors.torch import save_file

    weights = read_weights(base)
    weights["model.embed_tokens.weight"][13] = float("nan")
    # An output layer of its own, so that the token is poison only where it is read.
    weights["lm_head.weight"] = torch.zeros(16, 16)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = (base / "config.json").read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    (base / "config.json").write_text(config)
    rows = [("fine-1", [1, 2, 3], [True] * 3), ("poison", [13, 2], [True] * 2), ("fine-2", [3, 4], [True] * 2)]
    tokens = write_token_folder(tmp_path / "rows", rows)
    recorder = Recorder()
    job = make_job(tmp_path, recorder, settings(batch_size=3, micro_batch_size=1), tokens=tokens)
    with pytest.raises(ModelwrightError, match="examples poison:") as caught:
        train(job)
    wording(caught.value)
    assert recorder.steps() == []
    assert not job.output.exists()


def test_a_rate_that_is_far_too_high_ends_with_an_error_not_with_a_model(tmp_path):
    """Divergence is met wherever it begins, in the loss or in the gradient."""
    job = make_job(tmp_path, Recorder(), settings(learning_rate=1e30, clip_norm=0.0, warmup=0.0))
    with pytest.raises(ModelwrightError, match=r"step \d+: the (loss|gradient's norm) is (nan|inf)"):
        train(job)


def test_dropout_is_drawn_again_each_step_and_the_same_for_the_same_step(tmp_path):
    """Its generator is a function of the seed and the step."""
    write_model(tmp_path / "base", dropout=0.5)
    job = make_job(tmp_path, Recorder(), settings(learning_rate=1e-12, batch_size=24, clip_norm=0.0))
    model = load_model(job).train()
    strategy = SingleDevice(model, job.settings, device=torch.device("cpu"), precision=torch.float32)
    loop = Loop(job, strategy, Corpus(job.tokens), Checkpoints(job, Ranks()), micro_batch_tokens=8192)
    one, two, one_again = (loop.step(Progress(step=done)).loss for done in (0, 1, 0))
    assert one == pytest.approx(one_again, rel=1e-6)
    assert abs(one - two) > 1e-6


def test_held_out_data_is_measured_without_dropout(tmp_path):
    """The loss on held-out rows is that of the model as it will be used, over their trained tokens."""
    write_model(tmp_path / "base", dropout=0.5)
    holdout = write_token_folder(tmp_path / "holdout", UNEVEN)
    recorder = Recorder()
    job = make_job(tmp_path, recorder, settings(max_steps=2), holdout=holdout)
    trained = train(job)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.output, local_files_only=True)
    total = 0.0
    for _, ids, taught in UNEVEN:
        labels = torch.tensor([[token if is_trained else -100 for token, is_trained in zip(ids, taught, strict=True)]])
        total += model(input_ids=torch.tensor([ids]), labels=labels).loss.item() * sum(taught[1:])
    assert trained.holdout_loss == pytest.approx(total / 39, rel=1e-5)


def test_empty_held_out_data_is_allowed(tmp_path):
    """A small share of little data may hold out nothing."""
    holdout = write_token_folder(tmp_path / "holdout", [])
    trained = train(make_job(tmp_path, Recorder(), settings(max_steps=2), holdout=holdout))
    assert trained.finished
    assert trained.holdout_loss is None


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    """One of the two must be a mistake."""
    tokens = write_token_folder(tmp_path / "few", counting_rows(3))
    with pytest.raises(UsageError, match=r"batch_size is 5, .* 3 sequences"):
        train(make_job(tmp_path, Recorder(), settings(max_steps=2, batch_size=5), tokens=tokens))


@define
class AsksWithin(Recorder):
    """Asks to stop within the step after `whole`, when two of its four micro-batches are done."""

    whole: int = 0
    polls: int = 0

    def stopping(self):
        """Whether the time has come."""
        self.polls = self.polls + 1 if (self.steps() or [0])[-1] == self.whole else 0
        return self.polls > 2 + bool(self.steps())


def test_a_stop_in_the_middle_of_a_step_loses_that_step_alone(tmp_path):
    """What came before it is kept, once; the step is done again, and the weights are those of a straight training."""
    given = settings(max_steps=6, micro_batch_size=2, checkpoint_every=4)
    straight = make_job(tmp_path / "straight", Recorder(), given)
    train(straight)
    kept = []
    for whole, recorder in [(0, AsksWithin()), (2, AsksWithin(whole=2)), (2, AsksWithin())]:
        trained = train(make_job(tmp_path / "stopped", recorder, given))
        assert (trained.finished, trained.step, trained.steps) == (False, whole, 6)
        kept.append([data["step"] for data in recorder.of("checkpoint")])
    assert kept == [[], [2], []]
    last = Recorder()
    job = make_job(tmp_path / "stopped", last, given)
    assert train(job).finished
    assert last.of("resumed") == [{"step": 2}]
    assert last.steps() == [3, 4, 5, 6]
    assert same(straight.output, job.output)
