"""The loss in chunks is the loss, and so are its gradients; the logits of a batch are never in memory."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from modelwright.core.api import TokenRow
from modelwright.plugins.trainers.batches.micro_batches import collate
from modelwright.plugins.trainers.model import loss as loss_module
from modelwright.plugins.trainers.model.loss import TrainedLogits, chunked_loss

numpy = pytest.importorskip("numpy", reason="the extra train is not installed")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_loss_and_gradients_are_those_of_all_logits_at_once(monkeypatch, rows, scale, bias):
    """For any size of a chunk, with a bias or a scale or without."""
    monkeypatch.setattr(loss_module, "CHUNK", rows * 11)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    added = torch.randn(11, requires_grad=True) if bias else None
    targets = torch.randint(0, 11, (7,))
    inputs = [each for each in (hidden, weight, added) if each is not None]
    logits = scale * torch.nn.functional.linear(hidden, weight, added)
    whole = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = torch.autograd.grad(whole * 0.3, inputs)
    each = torch.empty(7)
    found = chunked_loss(hidden, weight, added, targets, scale=scale, differentiated=True, each=each)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(each, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    for gradient, wanted in zip(torch.autograd.grad(found * 0.3, inputs), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(("vocabulary", "rows"), [(512, 4096), (8192, 256), (32_000, 256), (151_936, 55)])
def test_a_chunk_on_a_cpu_is_small_but_not_of_few_tokens(vocabulary, rows):
    """Of a wide vocabulary it is as large as elsewhere: the matrix is read for each chunk."""
    assert loss_module.chunk_rows(vocabulary, "cpu") == rows


def test_frozen_weights_have_no_gradient_computed():
    """Under an adapter the output layer is not trained: only what leads to the layers below is wanted."""
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3)
    found = chunked_loss(
        hidden, weight, None, torch.tensor([0, 1, 2, 3]), scale=1.0, differentiated=True, each=torch.empty(4)
    )
    found.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def _model(kind, **changes):
    config = AutoConfig.for_model(
        kind,
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        **changes,
    )
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).train()


@pytest.mark.parametrize(
    ("kind", "changes", "scale"),
    [
        ("llama", {}, 1.0),
        ("cohere", {"logit_scale": 0.0625}, 0.0625),
        ("granite", {"logits_scaling": 8.0}, 0.125),
        ("gemma2", {"final_logit_softcapping": 30.0}, None),
    ],
)
def test_what_a_model_does_to_its_logits_is_found_out(kind, changes, scale):
    """A scaling is taken into the chunks; what is none has all logits at once; the loss is the model's own."""
    model = _model(kind, **changes)
    row = TokenRow("one", numpy.arange(3, 9, dtype=numpy.int32), numpy.array([False, *[True] * 5]))
    logits = TrainedLogits(model)
    batch = collate([[row]])
    found, _ = logits.summed_loss(batch)
    assert logits._scale == (None if scale is None else pytest.approx(scale))
    gradient = torch.autograd.grad(found, model.get_input_embeddings().weight)[0]
    ids = torch.arange(3, 9).unsqueeze(0)
    plain = _model(kind, **changes)
    whole = plain(input_ids=ids, labels=ids, use_cache=False).loss * 5
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, plain.get_input_embeddings().weight)[0])
