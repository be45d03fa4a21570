"""What frozen weights are held in: bfloat16 or quantized, with gradients as those of the same weights in float32."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modelwright.core.api import AdapterSettings, UsageError
from modelwright.core.api.adapters import apply_adapter
from modelwright.core.api.hf_folder import ADAPTER_WEIGHTS, CONFIG
from modelwright.core.testing.adapter import LORA
from modelwright.core.testing.trainer import VOCABULARY, Recorder, TrainerContract, make_job, write_model
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.local import LocalTrainer
from modelwright.plugins.trainers.model.adapter import attach
from modelwright.plugins.trainers.model.load import load_model
from modelwright.plugins.trainers.model.weights import compute_in, numbers_in

KINDS = ("nf4", "int8", "fp8")
LOW, FULL = torch.bfloat16, torch.float32
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])


@pytest.fixture
def job(tmp_path):
    """A job that trains an adapter of a base with weights, computed as the machine does it best."""

    def make(name="one", recorder=None, **changes):
        base = tmp_path / "base"
        if not base.exists():
            write_model(base, weights=True)
        settings = TrainerContract().settings(max_steps=10, precision=changes.pop("precision", "bfloat16"))
        return make_job(tmp_path / name, recorder or Recorder(), settings, model=base, adapter=LORA, **changes)

    return make


def train(job):
    return LocalTrainer(LocalOptions()).train(job)


@pytest.mark.parametrize(
    ("requested", "dtype", "device", "native", "precision", "held"),
    [
        ("auto", None, "cpu", True, FULL, FULL),  # all weights are trained
        ("auto", None, "cuda", False, LOW, FULL),
        ("bfloat16", None, "cpu", False, LOW, FULL),
        ("auto", "auto", "cpu", True, LOW, LOW),
        ("auto", "auto", "cpu", False, FULL, FULL),
        ("auto", "auto", "cuda", False, LOW, LOW),
        ("float32", "auto", "cuda", False, FULL, FULL),
        ("bfloat16", "auto", "cpu", False, LOW, LOW),
        ("auto", "float32", "cpu", True, FULL, FULL),
        ("auto", "float32", "cuda", False, LOW, FULL),
        ("auto", "bfloat16", "cpu", False, LOW, LOW),
    ],
)
def test_precision_and_dtype_follow_settings_and_device(requested, dtype, device, native, precision, held):
    """Automatic choices take bfloat16 where it is fast; what is set is taken."""
    assert compute_in(requested, dtype, device=device, name="", supported=True, native=native) == (precision, held)


@pytest.mark.parametrize(("requested", "dtype"), [("bfloat16", None), ("auto", "bfloat16"), ("auto", "auto")])
def test_a_card_without_bfloat16_computes_in_float32_unless_it_is_requested(requested, dtype, wording):
    """The message names the key that requests it."""
    choose = partial(compute_in, requested, dtype, device="cuda", name="Tesla V100", supported=False, native=False)
    if (requested, dtype) == ("auto", "auto"):
        assert choose() == (FULL, FULL)
        return
    with pytest.raises(UsageError) as caught:
        choose()
    wording(str(caught.value))


@pytest.mark.parametrize("adapter", [LORA, evolve(LORA, modules_to_save=("norm",)), evolve(LORA, dora=True)])
def test_what_is_trained_is_float32_beside_a_base_in_bfloat16(job, adapter):
    """Also whole modules, magnitudes, and the rows of tokens that the base does not have."""
    model = load_model(job(), held=LOW)
    attach(model, adapter, seed=1, new_tokens=[VOCABULARY - 1])
    dtypes = {name: value.dtype for name, value in model.named_parameters()}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {dtypes[name] for name in trained} == {FULL}
    assert {dtypes[name] for name in dtypes.keys() - trained} == {LOW}
    with torch.autocast("cpu", dtype=LOW):
        model(TOKENS).logits.float().square().mean().backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_an_adapter_on_a_base_in_bfloat16_learns_what_one_in_float32_does(job):
    """The event says what the base was held in; the file is float32, and fits the base in any precision."""
    losses, folders = [], []
    for precision, held in (("float32", "float32"), ("bfloat16", "bfloat16")):
        recorder = Recorder()
        here = job(precision, recorder, precision=precision)
        train(here)
        assert recorder.of("started")[0]["frozen_weights"] == held
        losses.append(recorder.of("step")[-1]["loss"])
        folders.append(here.output)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert {value.dtype for value in load_file(folders[1] / ADAPTER_WEIGHTS).values()} == {FULL}


def both(job, kind):
    """The job's base with an adapter, quantized, and in float32 with the values of the quantized weights."""
    pair = [load_model(evolve(job, quantization=each), held=FULL) for each in (kind, None)]
    plain = dict(pair[1].named_modules())
    with torch.no_grad():
        for name, layer in pair[0].named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                plain[name].weight.copy_(values_of(layer.weight))
    for model in pair:
        attach(model, LORA, seed=1)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if ".lora_B." in name:
                    value.copy_(torch.linspace(-0.3, 0.3, value.numel()).view_as(value))
    return pair


def values_of(weight):
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_quantized_weights_are_those_of_their_values(job, kind):
    """Also after an evaluation, for which bitsandbytes would pack its weights and lose their gradient."""
    quantized, plain = both(job(), kind)
    assert sum(map(numbers_in, quantized.parameters())) == sum(map(numbers_in, plain.parameters()))
    gradients = []
    for model in (quantized, plain):
        model.eval()
        with torch.no_grad():
            model(TOKENS)
        model.train()
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[1].items():
        assert value.abs().max() > 0
        torch.testing.assert_close(gradients[0][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_no_copy_of_quantized_weights_is_kept_for_the_backward_pass(job, kind):
    """The largest tensors that are kept are activations."""
    model = load_model(evolve(job(), quantization=kind), held=LOW)
    attach(model, LORA, seed=1)
    own = {value.data_ptr() for value in model.parameters() if type(value) is torch.nn.Parameter}
    kept: list[torch.Tensor] = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value)
    with torch.autocast("cpu", dtype=LOW), keep:
        model(torch.tensor([[1]]), labels=torch.tensor([[1]]))
    # The smallest of the quantized matrices has 16 × 16 numbers; a token's activations have at most 32.
    assert max(value.numel() for value in kept if value.data_ptr() not in own) < 16 * 16


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_a_quantized_base_belongs_to_the_base_as_it_was(job, kind):
    """It learns; its files name no quantization, and with the unquantized base it computes nearly the same."""
    recorder = Recorder()
    here = job("quantized", recorder, quantization=kind)
    train(here)
    assert recorder.of("started")[0]["frozen_weights"] == kind
    losses = [data["loss"] for data in recorder.of("step")]
    assert losses[-1] < losses[0] - 0.1
    assert "quantization" not in (here.output / CONFIG).read_text()
    model = AutoModelForCausalLM.from_pretrained(here.model, local_files_only=True)
    with torch.no_grad():
        before = model(TOKENS).logits
        after = apply_adapter(model, here.output)(TOKENS).logits
    assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_on_quantized_weights_resumes_with_the_same_bytes(job, kind):
    """Quantizing again gives the same weights."""
    for name, stops in (("through", ()), ("stopped", (4,))):
        for stop in stops:
            assert not train(job(name, Recorder(stop_after=stop), quantization=kind)).finished
        assert train(job(name, quantization=kind)).finished
    one, other = (job(name).output / ADAPTER_WEIGHTS for name in ("through", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_dora_is_trained_on_nf4(job):
    """Peft computes the lengths of rows from dequantized weights."""
    here = evolve(job(quantization="nf4"), adapter=AdapterSettings(rank=4, dora=True))
    assert train(here).finished
