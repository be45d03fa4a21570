"""One formula says what a training takes: for made-up models, settings and cards."""

import pytest
from attrs import evolve

from modelwright.core.api import MemorySettings, ModelShape, reading_memory, training_memory
from modelwright.core.api.memory import most_tokens

LOW = MemorySettings(trained="bfloat16", frozen="bfloat16", precision="bfloat16")
FULL = ModelShape(parameters=1000, trainable=1000)
ADAPTED = ModelShape(parameters=1000, trainable=10, linear=800, matrices=800, head_trained=False)
# Llama 3's 8 B, without its norms.
LLAMA = ModelShape(
    parameters=8_030_000_000,
    trainable=8_030_000_000,
    matrices=6_980_000_000,
    linear=6_980_000_000,
    head=525_336_576,
    layers=32,
    width=4096,
    attention=2 * (32 + 8) * 128,
    inner=14336,
    vocabulary=128_256,
    rows=65,
)


@pytest.mark.parametrize(
    ("how", "device", "host"),
    [
        (MemorySettings(), 16, 0),
        (LOW, 4 + 8 + 4, 0),
        (evolve(LOW, stage=1, ranks=4), 4 + 3, 0),
        (evolve(LOW, stage=2, ranks=4), 2 + 0.5 + 3, 0),
        (evolve(LOW, stage=3, ranks=4), 4, 0),
        (evolve(LOW, stage=3, ranks=4, offload="optimizer"), 0.5, 3 + 1),
        (evolve(LOW, stage=3, ranks=4, offload="all"), 0, 3.5 + 1),
        (MemorySettings(states=2), 10, 0),
        (evolve(LOW, stage=2, ranks=4, gradient=4), 2 + 1 + 3, 0),
    ],
)
def test_states_are_counted_as_zeros_paper_does(how, device, host):
    """Bytes for each weight: 2 + 2 + 12 in mixed precision, shared out by stage; offloaded with a float32 gradient."""
    found = training_memory(FULL, how)
    assert (found.states, found.host) == (1000 * device, 1000 * host)


@pytest.mark.parametrize(
    ("frozen", "weights"),
    [
        ("float32", 4 * 990),
        ("bfloat16", 2 * 990),
        ("int8", 800 + 2 * 190 + 1),
        ("nf4", 0.516 * 800 + 2 * 190),
        ("int4", 0.531 * 800 + 2 * 190),
    ],
)
def test_a_frozen_weight_takes_what_it_is_held_in_and_nothing_else(frozen, weights):
    """A quantization leaves the embeddings in bfloat16; gradients and states are the adapter's alone."""
    found = training_memory(ADAPTED, MemorySettings(frozen=frozen))
    assert found.weights == pytest.approx(weights + 4 * 10, abs=1)
    assert (found.gradients, found.optimizer) == (4 * 10, 8 * 10)


def test_activations_grow_with_the_tokens_and_checkpointing_keeps_the_inputs_of_the_blocks():
    """Of 8 B in bfloat16: 6 numbers of the width, attention's, and 4 of the inner size, of each block and token."""
    model = evolve(LLAMA, head=0, vocabulary=0)
    found = training_memory(model, evolve(LOW, tokens=1000))
    block = 2 * 4096 * (4 + 2) + 2 * (2 * 4096 + 10240 + 4 * 14336)
    working = 2 * (3 * 14336 + 2 * 4096)
    assert found.activations + found.logits == 1000 * (32 * block + working)
    kept = training_memory(model, evolve(LOW, tokens=1000, checkpointing="on"))
    assert kept.activations + kept.logits == 1000 * (32 * 4096 * 2 + block + working)
    moved = training_memory(model, evolve(LOW, tokens=1000, checkpointing="offload"))
    assert (moved.activations + moved.logits, moved.host) == (1000 * (block + working), 1000 * 32 * 4096 * 2)
    large = training_memory(evolve(LLAMA, rows=None), evolve(LOW, tokens=1000))
    assert large.activations == 1000 * 32 * block, "a block's backward pass takes less than the logits did"


def test_autocast_keeps_a_copy_of_each_weight_that_it_computes_with():
    """2 bytes more for each float32 weight: of one block, if the blocks of a frozen model are computed again."""
    auto = MemorySettings(precision="bfloat16", tokens=1)
    alone = training_memory(LLAMA, evolve(auto, precision="float32")).activations
    assert training_memory(LLAMA, auto).activations == pytest.approx(2 * LLAMA.matrices + alone, rel=1e-3)
    adapted = evolve(LLAMA, trainable=1, head_trained=False)
    again = training_memory(adapted, evolve(auto, checkpointing="on")).activations
    assert again == pytest.approx(2 * LLAMA.matrices / 32, rel=0.02)
    assert training_memory(adapted, evolve(auto, frozen="bfloat16")).activations < 10**8


def test_logits_are_in_memory_for_one_chunk_unless_the_model_changes_them():
    """A chunk of 65 tokens; gradients of the output layer in float32 and as they are added."""
    whole = evolve(LLAMA, head_trained=False)
    chunk = training_memory(whole, evolve(LOW, tokens=8192)).logits
    assert chunk == 65 * 128_256 * 6 + 8192 * 4096 * 6
    assert training_memory(LLAMA, evolve(LOW, tokens=8192)).logits == chunk + 6 * LLAMA.head
    assert training_memory(evolve(whole, rows=None), evolve(LOW, tokens=8192)).logits > 8192 * 128_256 * 16


def test_zeros_buffers_are_counted_where_processes_share():
    """One bucket of gradients; at stage 3 also the weights that are gathered."""
    assert training_memory(LLAMA, evolve(LOW, stage=2)).buffers == 0
    assert training_memory(LLAMA, evolve(LOW, stage=2, ranks=2)).buffers == 2 * 900_000_000
    assert training_memory(LLAMA, evolve(LOW, stage=3, ranks=2)).buffers == 2 * 1_900_000_000
    assert training_memory(FULL, evolve(LOW, stage=3, ranks=2, bucket=10)).buffers == 2 * 1010
    assert training_memory(FULL, evolve(LOW, stage=3, offload="all")).buffers == 2 * (900_000_000 + 1000)


def test_the_largest_micro_batch_is_whole_sequences_that_fit():
    """The next one would not; none does if the states alone are too much."""
    how = evolve(LOW, stage=3, ranks=16, checkpointing="on")
    most = most_tokens(LLAMA, how, 40 * 10**9, sequence=3000)
    assert most > 0
    assert most % 3000 == 0
    assert training_memory(LLAMA, evolve(how, tokens=most)).device <= 40 * 10**9
    assert training_memory(LLAMA, evolve(how, tokens=most + 3000)).device > 40 * 10**9
    assert most_tokens(LLAMA, LOW, 24 * 10**9, sequence=1) == 0


def test_only_stage_3_reads_a_share_and_only_if_the_vocabulary_stays():
    """Split weights cannot grow, so each process reads the whole model first."""
    assert [reading_memory(10, stage=stage) for stage in (0, 1, 2, 3)] == [40, 40, 40, 0]
    assert reading_memory(10, stage=3, grows=True, number=2) == 20
