"""The optimizers of `[train] optimizer`: what each needs and steps, and that a training with it resumes exactly."""

from __future__ import annotations

import pytest
import torch
from small_models import rows_of, small

from modelwright.core.api import AdapterSettings, TrainSettings, UsageError
from modelwright.core.api.train_settings import OF_BITSANDBYTES
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.batches.micro_batches import collate
from modelwright.plugins.trainers.local import LocalTrainer
from modelwright.plugins.trainers.model.loss import TrainedLogits, document_lengths
from modelwright.plugins.trainers.optimizers import check_optimizer, lacking, make_optimizer, parameter_groups
from modelwright.plugins.trainers.strategy import without_liger

# Learning rates at which the contract's tiny model learns.
RATES = {"adamw": 3e-2, "adamw_8bit": 1e-2, "adafactor": 0.3, "muon": 3e-2, "lion": 3e-3}


def settings(optimizer, **changes):
    return TrainSettings(max_steps=1, optimizer=optimizer, weight_decay=0.1, **changes)


def needs_its_package(optimizer):
    if optimizer in OF_BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="the extra quantization is not installed")


# What the optimizer keeps for a hidden matrix.
STATES = {
    "adamw": "exp_avg",
    "adamw_8bit": "__bnb_optimizer_quant_state__",
    "adafactor": "row_var",
    "muon": "momentum_buffer",
    "lion": "__bnb_optimizer_quant_state__",
}


@pytest.mark.parametrize("optimizer", RATES)
def test_it_trains_and_resumes_to_the_same_bytes(tmp_path, optimizer):
    """The loss falls; after a stop it goes on as if there had been none, with dropout and noise, too."""
    needs_its_package(optimizer)
    settings = TrainerContract().settings(
        optimizer=optimizer, learning_rate=RATES[optimizer], max_steps=7, checkpoint_every=3, neftune_noise=1.0
    )
    # Matrices of 4,096 numbers and more get states of 8 bits.
    model = small("llama", hidden_size=64, intermediate_size=64, attention_dropout=0.1).config

    def train(name, **changes):
        model.save_pretrained(tmp_path / name / "base")
        job = make_job(tmp_path / name, Recorder(**changes), settings)
        LocalTrainer(LocalOptions()).train(job)
        return job, [data["loss"] for data in job.emit.__self__.of("step")]

    straight, losses = train("straight")
    assert losses[-1] < 0.97 * losses[0]
    _, first = train("stopped", stop_after=4)
    again, second = train("stopped")
    assert first + second == losses
    weights = [(job.output / "model.safetensors").read_bytes() for job in (straight, again)]
    assert weights[0] == weights[1]
    checkpoint = straight.folder / "checkpoints" / "step-00000006" / "optimizer.pt"
    states = torch.load(checkpoint, weights_only=True)["state"].values()
    kept = [state[STATES[optimizer]] for state in states if STATES[optimizer] in state]
    assert kept
    if optimizer == "adamw_8bit":
        assert {each["state1"].dtype for each in kept} == {torch.uint8, torch.float32}
        # Input embeddings keep 32 bits, even if they are large.
        assert {each["state1"].dtype for each in kept if each["state1"].shape[0] == 40} == {torch.float32}


def test_weight_decay_is_on_matrices_only():
    """Norms and biases, which are vectors, do not decay."""
    model = small("llama")
    matrices, vectors = parameter_groups(model, settings("adamw"))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 2 for parameter in matrices["params"])
    assert all(parameter.ndim == 1 for parameter in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_muon_steps_hidden_matrices_and_adamw_the_rest():
    """Embeddings, output layer, norms, and experts, which are several matrices in a tensor, are AdamW's."""
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = small("qwen3_moe", **moe)
    optimizer = make_optimizer(model, settings("muon"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    of_muon = {name for name, each in model.named_parameters() if "momentum_buffer" in optimizer.state[each]}
    assert of_muon == {
        name
        for name, each in model.named_parameters()
        if each.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
    }
    assert all("exp_avg" in optimizer.state[each] for name, each in model.named_parameters() if name not in of_muon)


def test_betas_and_eps_reach_the_optimizer():
    """What is set; else what is usual for language models."""
    model = small("llama")
    usual, chosen = (
        make_optimizer(model, settings("adamw", **changes)).defaults
        for changes in ({}, {"betas": (0.8, 0.999), "eps": 1e-6})
    )
    assert (usual["betas"], usual["eps"]) == ((0.9, 0.95), 1e-8)
    assert (chosen["betas"], chosen["eps"]) == ((0.8, 0.999), 1e-6)
    needs_its_package("lion")
    assert make_optimizer(model, settings("lion")).defaults["betas"] == (0.95, 0.98)


@pytest.mark.parametrize(
    ("optimizer", "there"),
    [
        ("adamw_8bit", {"bitsandbytes": False}),
        ("lion", {"bitsandbytes": False}),
        ("paged_adamw_8bit", {"device": "cpu"}),
        ("muon", {"muon": False}),
    ],
)
def test_an_optimizer_says_what_it_lacks(optimizer, there, wording):
    """And lacks nothing where it is all there."""
    all_there = {"device": "cuda", "bitsandbytes": True, "muon": True}
    assert lacking(settings(optimizer), **all_there) is None
    wording(lacking(settings(optimizer), **all_there | there))


def test_an_optimizer_that_the_device_lacks_is_refused(tmp_path):
    """Before any weights are read."""
    needs_its_package("paged_adamw_8bit")
    with pytest.raises(UsageError, match=r'^\[train\] optimizer: "paged_adamw_8bit" moves'):
        check_optimizer(settings("paged_adamw_8bit"), device="cpu")
    with pytest.raises(UsageError, match="paged_adamw_8bit"):
        LocalTrainer(LocalOptions()).train(make_job(tmp_path, Recorder(), settings("paged_adamw_8bit")))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"optimizer": "adafactor", "betas": (0.9, 0.95)}, id="betas of adafactor"),
        pytest.param({"optimizer": "lion", "eps": 1e-6}, id="eps of lion"),
        pytest.param({"schedule": "constant", "min_rate": 0.1}, id="min_rate of constant"),
        pytest.param({"schedule": "wsd", "warmup": 0.5, "cooldown": 0.6}, id="more than all steps"),
    ],
)
def test_keys_that_do_not_fit_together_are_one_line(changes, wording):
    """A key without effect is a mistake."""
    ((key, problem),) = TrainSettings(max_steps=1, **changes).problems()
    wording(f"[train] {key} {problem}")


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, 0.95, 0.99)])
def test_betas_are_two_shares(betas):
    """Below 1, or the mean would never move."""
    with pytest.raises(ValueError, match="two numbers from 0 to below 1"):
        TrainSettings(max_steps=1, betas=betas)


def test_noise_depends_on_the_length_of_a_document_however_it_is_laid():
    """Padded, joined or packed; what is padding does not matter."""
    rows = rows_of([7, 4])
    padded = document_lengths(collate([[row] for row in rows]))
    assert padded[:, 0].tolist() == [7, 4]
    joined = document_lengths(collate([[row] for row in rows], end_to_end=True))
    assert joined[0, :11].tolist() == [7] * 7 + [4] * 4
    packed = document_lengths(collate([rows, rows[:1]]))
    assert packed[0].tolist() == [7] * 7 + [4] * 4
    assert packed[1, :7].tolist() == [7] * 7
    assert document_lengths(collate([rows[:1]])).tolist() == [[7] * 7]


def test_noise_is_that_of_neftune_and_only_in_training():
    """Uniform within alpha / sqrt(length * width); evaluation has none."""
    model = small("llama")
    logits = TrainedLogits(model, noise=5.0)
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *called: seen.append(called[-1].detach()))
    batch = collate([rows_of([8])])
    for training in (True, False):
        model.train(training)
        logits.summed_loss(batch)
    noise = (seen[-2] - seen[-1]).abs().max().item()
    bound = 5 / (8 * model.config.hidden_size) ** 0.5
    assert 0.9 * bound < noise <= bound


@pytest.mark.parametrize(
    ("device", "kernels"), [("cpu", {"llama"}), ("cuda", None), ("cuda", {"qwen2"}), ("cuda", {"llama"})]
)
def test_liger_is_used_where_its_kernels_are(device, kernels, wording):
    """On a GPU, installed, and for this kind of model."""
    problem = without_liger("llama", device=device, kernels=kernels)
    assert (problem is None) == (device == "cuda" and kernels == {"llama"})
    wording(problem or "none")


def test_an_adapter_is_stepped_by_muon():
    """Its matrices are hidden ones."""
    from modelwright.plugins.trainers.model.adapter import attach

    model = small("llama")
    attach(model, AdapterSettings(rank=2), seed=1)
    assert {group["apart"] for group in parameter_groups(model, settings("muon"))} == {False}
