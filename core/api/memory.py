"""The memory and disk space that a training needs, from plain numbers: one formula for the preflight and `doctor`.

A training holds weights, gradients and the states of its optimizer as long as it runs, and activations and logits for
one micro-batch at a time. The first three follow S. Rajbhandari et al., "ZeRO", 2020, section 3. The activations are
those of V. Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022, section 4,
counted again for blocks of transformers with RMSNorm, gated MLPs and attention that keeps no scores. Measured peaks are
in benchmarks/README.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from attrs import evolve, frozen

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.train_settings import TrainSettings

# The most bytes that one trained weight takes in a checkpoint: itself, ZeRO's copy of it, and AdamW's two moments, each
# in float32.
_BYTES_IN_CHECKPOINT = 16

Format = Literal["float32", "bfloat16", "int8", "fp8", "nf4", "int4"]
# Bytes of a weight in each format. Four bits come with scales: for nf4 8 bits for each 64 weights, whose own scales
# are float32 for each 256 (T. Dettmers et al., "QLoRA", 2023, section 3); for int4 two 16-bit numbers for each 128.
_BYTES: dict[Format, float] = {
    "float32": 4,
    "bfloat16": 2,
    "int8": 1 + 4 / 4096,  # one scale for each row
    "fp8": 1 + 4 / 4096,
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int4": 0.5 + 4 / 128,
}
# Bytes of an optimizer's states for each trained weight: AdamW has two moments; Muon and Lion one, Muon for matrices;
# Adafactor's are a row and a column of each matrix.
OPTIMIZER_STATES: dict[str, float] = {
    "adamw": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adafactor": 0,
    "muon": 4,
    "lion": 4,
}
# Memory of a process for Python, torch and transformers, and on a GPU for its context and the kernels.
PROGRAM, CONTEXT = 700_000_000, 800_000_000


@frozen(kw_only=True)
class ModelShape:
    """The sizes of a model that decide what its training takes; a trainer reads them from a model without values.

    Attributes:
        parameters: number of weights, those of an adapter included.
        trainable: number of those that are trained.
        matrices: number of weights that a block multiplies by, without an adapter's.
        linear: those of them in linear layers, which a quantization replaces.
        head: number of weights of the output layer.
        head_trained: whether they are trained.
        layers: number of blocks.
        width: size of a hidden state.
        attention: sizes of queries, keys, values and attention's output in a block, together.
        inner: size of the MLP's inner layer; of all experts that a token is sent to.
        vocabulary: number of tokens.
        rows: number of tokens whose logits are in memory at once; None if that is all of a micro-batch.
    """

    parameters: int
    trainable: int
    matrices: int = 0
    linear: int = 0
    head: int = 0
    head_trained: bool = True
    layers: int = 0
    width: int = 0
    attention: int = 0
    inner: int = 0
    vocabulary: int = 0
    rows: int | None = 1

    @property
    def adapted(self) -> bool:
        """Whether some weights are frozen, as under an adapter."""
        return self.trainable < self.parameters


@frozen(kw_only=True)
class MemorySettings:
    """The settings that decide what a training takes, for one of its processes.

    Attributes:
        trained: what trained weights are held in. The optimizer steps a float32 copy if that is bfloat16.
        frozen: what frozen weights are held in; a quantization leaves embeddings and norms in bfloat16.
        precision: of the forward and backward pass.
        gradient: bytes of a number of the gradient; None for those of a trained weight.
        states: bytes of the optimizer's states for each trained weight: see `OPTIMIZER_STATES`.
        stage: ZeRO's stage; 0 without ZeRO.
        ranks: number of processes that share the model.
        offload: what ZeRO keeps in main memory.
        bucket: numbers in ZeRO's buckets: four and a half of 2e8.
        live: numbers that stage 3 gathers at most.
        tokens: of a micro-batch, padding included.
        checkpointing: "on" keeps the inputs of the blocks alone, "offload" keeps them in main memory.
    """

    trained: Literal["float32", "bfloat16"] = "float32"
    frozen: Format = "float32"
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient: float | None = None
    states: float = 8
    stage: int = 0
    ranks: int = 1
    offload: Literal["none", "optimizer", "all"] = "none"
    bucket: int = 900_000_000
    live: int = 1_000_000_000
    tokens: int = 0
    checkpointing: Literal["off", "on", "offload"] = "off"


@frozen(kw_only=True)
class TrainingMemory:
    """Memory of one process, in bytes.

    Attributes:
        weights: on the device that computes, as the next ones.
        gradients: of the trained weights.
        optimizer: its states, and its copy of the weights.
        activations: what the forward pass of a micro-batch keeps for the backward pass, and what that takes in a block
            beyond the logits, which are gone by then.
        logits: the output layer's logits, gradients and copies.
        buffers: of ZeRO, for numbers on their way between processes.
        host: in the computer's own memory, for what is offloaded to it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    host: int = 0

    @property
    def states(self) -> int:
        """What is on the device as long as the training runs: weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> int:
        """All that is on the device at the peak."""
        return self.states + self.activations + self.logits + self.buffers


def training_memory(shape: ModelShape, how: MemorySettings) -> TrainingMemory:
    """The memory that a training takes in one process at its peak: in the second micro-batch of a step.

    Stage 1 of ZeRO shards the optimizer's states and copy among the processes, stage 2 the gradients as well, stage 3
    the weights as well. Not counted are the program itself (`PROGRAM`, `CONTEXT`) and what the allocator leaves unused.

    Args:
        shape: of the model.
        how: it is trained.
    """
    low, trained = how.trained == "bfloat16", _BYTES[how.trained]
    copy = 4 if low or how.stage else 0  # ZeRO steps a copy of its share even of float32 weights
    optimizer = (how.states + copy) * shape.trainable / (how.ranks if how.stage >= 1 else 1)
    number = trained if how.gradient is None else how.gradient
    gradients = number * shape.trainable / (how.ranks if how.stage >= 2 else 1)
    weights = (trained * shape.trainable + _frozen(shape, how)) / (how.ranks if how.stage == 3 else 1)
    kept, block, host = _activations(shape, how)
    logits = _logits(shape, how)
    if how.offload != "none":
        # The processor makes the step: the gradients of the share go to it, in float32, as soon as they are summed.
        host += optimizer + 4 * shape.trainable / how.ranks
        optimizer = gradients = 0
    if how.offload == "all":
        host, weights = host + weights, 0
    return TrainingMemory(
        weights=round(weights),
        gradients=round(gradients),
        optimizer=round(optimizer),
        # The backward pass of the blocks begins when the output layer's is over.
        activations=round(kept + _casts(shape, how) + max(0, block - logits)),
        logits=round(logits),
        buffers=round(_buffers(shape, how)),
        host=round(host),
    )


def _frozen(shape: ModelShape, how: MemorySettings) -> float:
    if not shape.adapted:
        return 0
    frozen = shape.parameters - shape.trainable
    if how.frozen in ("float32", "bfloat16"):
        return _BYTES[how.frozen] * frozen
    return _BYTES[how.frozen] * shape.linear + _BYTES["bfloat16"] * (frozen - shape.linear)


def _stream(shape: ModelShape, how: MemorySettings) -> int:
    """Bytes of a number of the hidden states between the blocks, which are held as the embeddings are."""
    held = how.frozen if shape.adapted else how.trained
    return 4 if held == "float32" else 2


def _activations(shape: ModelShape, how: MemorySettings) -> tuple[float, float, float]:
    """In bytes: what the blocks keep, what the backward pass of one takes besides, and what is in main memory."""
    number, stream = int(_BYTES[how.precision]), _stream(shape, how)
    # Each of two norms keeps its input in float32 and, for the gradient of its weights, the normalized input.
    norms = 2 * shape.width * (4 + (0 if shape.adapted else stream))
    # Autocast makes a copy of an input for each layer that takes it: three projections of attention, two of the MLP.
    # An adapter does so for the fourth as well.
    copies = 5 + shape.adapted if number == 2 and (stream == 4 or shape.adapted) else 2
    # The MLP keeps two products, the activation of one, and their product.
    block = norms + number * (copies * shape.width + shape.attention + 4 * shape.inner)
    # The backward pass of a block: gradients of the inner layer and of the hidden state.
    working = number * (3 * shape.inner + 2 * shape.width)
    if how.checkpointing == "off":
        return how.tokens * shape.layers * block, how.tokens * working, 0
    inputs = how.tokens * shape.layers * shape.width * stream
    again = how.tokens * (block + working)
    return (inputs, again, 0) if how.checkpointing == "on" else (0, again, inputs)


def _casts(shape: ModelShape, how: MemorySettings) -> float:
    """The copies in the precision of the pass of float32 weights, or of one block's quantized ones, in bytes."""
    if how.tokens == 0 or how.precision == "float32":
        return 0
    one = 2 * shape.matrices / max(1, shape.layers)
    if shape.adapted and how.frozen not in ("float32", "bfloat16"):
        return one
    if _stream(shape, how) == 2:
        return 0
    # Those of frozen weights are kept for the backward pass, which goes block by block with checkpointing.
    return one if shape.adapted and how.checkpointing != "off" else 2 * shape.matrices


def _logits(shape: ModelShape, how: MemorySettings) -> float:
    """The logits of a chunk with their gradients, the hidden states, and what the output layer's weights take."""
    if how.tokens == 0:
        return 0
    low = how.precision == "bfloat16"
    if shape.rows is None:  # logits, float32 logits, their logarithms and gradients
        logits = how.tokens * shape.vocabulary * (4 * 4 if low else 3 * 4)
    else:
        logits = min(how.tokens, shape.rows) * shape.vocabulary * (4 + 2 * low)
    states = how.tokens * shape.width * 3 * _BYTES[how.precision]
    copy = 2 * shape.head if low and _stream(shape, how) == 4 else 0
    # A gradient in float32, and the same multiplied by the factor of the backward pass.
    gradient = (4 + _BYTES[how.trained]) * shape.head if shape.head_trained else 0
    return logits + states + copy + gradient


def _buffers(shape: ModelShape, how: MemorySettings) -> float:
    """A bucket of gradients, and the weights that stage 3 gathers from other processes or from main memory."""
    bucket = how.bucket if how.stage and (how.ranks > 1 or how.offload != "none") else 0
    gathers = how.stage == 3 and (how.ranks > 1 or how.offload == "all")
    return _BYTES[how.trained] * (bucket + gathers * min(how.live, shape.parameters))


def most_tokens(shape: ModelShape, how: MemorySettings, room: int, *, sequence: int) -> int:
    """The largest micro-batch that fits, in tokens: a multiple of `sequence`, at most 2**20 tokens; 0 if none does.

    Args:
        shape: of the model.
        how: it is trained; its number of tokens is not used.
        room: bytes on the device.
        sequence: tokens of the longest sequence, which is never split.
    """
    least, most = 0, max(1, 2**20 // sequence)
    while least < most:  # memory grows with the number of tokens
        middle = (least + most + 1) // 2
        fits = training_memory(shape, evolve(how, tokens=middle * sequence)).device <= room
        least, most = (middle, most) if fits else (least, middle - 1)
    return least * sequence


def reading_memory(parameters: int, *, stage: int = 0, grows: bool = False, number: int = 4) -> int:
    """The main memory that a process takes to read a model's weights before they go to their device, in bytes.

    Args:
        parameters: number of the model's weights.
        stage: of ZeRO; at 3 a process keeps its share alone.
        grows: whether the embeddings have to grow, for which the weights must be whole.
        number: bytes of a weight as it is read.
    """
    return number * parameters if stage < 3 or grows else 0


def checkpoint_bytes(trainable: int) -> int:
    """The most bytes that a checkpoint takes on the disk: weights, ZeRO's copy of them, and AdamW's two moments.

    Args:
        trainable: number of weights that are trained.
    """
    return _BYTES_IN_CHECKPOINT * trainable


def check_checkpoint_room(
    folder: Path, trainable: int, settings: TrainSettings, *, holdout: bool, written: int = 0
) -> None:
    """Check that the disk has room for the checkpoints of a training.

    That is the ones that are kept, the one being written, and with held-out data the one with the lowest loss.

    Args:
        folder: an existing folder on the disk that the checkpoints go to.
        trainable: number of weights that are trained.
        settings: the `[train]` table.
        holdout: whether there is held-out data.
        written: bytes of checkpoints that are there already.

    Raises:
        ModelwrightError: there is too little room.
    """
    needed = checkpoint_bytes(trainable) * (settings.keep_checkpoints + 1 + holdout) - written
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelwrightError(
            f"{folder}: not enough disk space for checkpoints: {settings.keep_checkpoints} kept and one being written "
            f"take {_size(needed)}, and {_size(free)} are free: free some, lower keep_checkpoints in [train], or set "
            "MODELWRIGHT_HOME to a folder on another disk"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
