"""The process that trains: `python -m modelwright.core.stages.train.worker RUN_FOLDER`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from modelwright.core.api import files
from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, CONFIG, vocabulary_size
from modelwright.core.api.training import Job
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config.schema import RunConfig, ScratchConfig
from modelwright.core.models.finishing import complete_generation_config, round_like
from modelwright.core.models.gguf_base import Dequantized, dequantized_from
from modelwright.core.models.hf_folder import token_count
from modelwright.core.runs.worker import Place, Worker, read_run_config, work
from modelwright.core.stages.train.report import Emit, with_tensorboard


def train(worker: Worker[RunConfig]) -> dict[str, Any]:
    """Build the job, let the trainer do it, and add the tokenizer to the model's folder."""
    config, folder = worker.config, worker.folder.stage("train")
    order = files.read_json(folder / "order.json")
    prepared = worker.folder.stage("prepare")
    renderer = Renderer.from_folder(prepared / "tokenizer")
    if config.model.scratch:
        base = folder / "initial"
        if worker.place.rank == 0:
            # A config without weights: the trainer initializes them from the run's seed.
            initial = scratch_config(
                config.model.scratch,
                vocabulary=renderer.vocab_size,
                stops=renderer.stop_token_ids,
                max_length=config.data.tokens.max_length,
            )
            files.write_json(base / "config.json", initial)
    else:
        base = Path(order["base"]["folder"])
        if worker.place.rank == 0 and (gguf := dequantized_from(base)):
            worker.emit("notice", {"text": f"the base is a GGUF: {Dequantized(folder=base, **gguf)}"})
    settings = config.training
    trainer = worker.plugins.get(TrainerSpec, settings.trainer).create(settings.options)
    trained = trainer.train(
        Job(
            folder=folder,
            model=base,
            output=folder / "model",
            tokens=prepared / "train",
            holdout=prepared / "holdout" if config.data.holdout.fraction else None,
            settings=settings,
            adapter=config.adapter,
            vocabulary=_vocabulary(worker, base),
            hub=_hub_name(order["base"]),
            seed=config.seed,
            attention=config.model.attention,
            trust_remote_code=config.model.trust_remote_code,
            fingerprint=order["fingerprint"],
            emit=worker.emit if worker.place.rank else _first_emit(worker, order["kill_after"]),
            stopping=worker.stopping,
        )
    )
    if not trained.finished:
        done = f"step {trained.step} of {trained.steps}"
        raise StopRequested(f"{config.name}: stopped on request after {done}; the same command resumes it")
    if worker.place.rank:
        return {}
    model = folder / "model"
    if not (model / "config.json").is_file() or not list(model.glob("*.safetensors")):
        raise ModelwrightError(
            f"trainer {settings.trainer!r} finished without a model: expected config.json and *.safetensors in {model}"
        )
    if config.adapter is not None and not (model / ADAPTER_CONFIG).is_file():
        raise ModelwrightError(
            f"trainer {settings.trainer!r} finished without an adapter: expected {ADAPTER_CONFIG} in {model}"
        )
    _finish(worker, model, base, renderer, order["base"])
    manifest = files.folder_manifest(model)
    return {"training": attrs.asdict(trained), "digest": files.manifest_digest(manifest), "files": files.sizes(model)}


def _finish(
    worker: Worker[RunConfig], model: Path, base: Path, renderer: Renderer, origin: Mapping[str, Any] | None
) -> None:
    """Add to the trainer's files: the tokenizer, the record, and for a whole model the base's dtype and every stop."""
    # An earlier worker that was killed here may have left half a file, which would count as part of the model.
    files.remove_temporaries(model)
    renderer.save(model)
    record: dict[str, Any] = {"renderer": renderer.fingerprint}
    if origin and (gguf := dequantized_from(base)):
        record["gguf"] = gguf
    if worker.config.adapter is None:
        if origin:
            round_like(model, base)
        complete_generation_config(model, renderer.stop_token_ids)
    elif origin:
        record["base"] = {"address": origin["parent"], "digest": origin["digest"]}
    files.write_json(model / "modelwright.json", record)


def scratch_config(scratch: ScratchConfig, *, vocabulary: int, stops: Iterable[int], max_length: int) -> dict[str, Any]:
    """The `config.json` for `[model.scratch]`: a Llama in Hugging Face layout with tied embeddings.

    Args:
        scratch: its sizes.
        vocabulary: number of tokens.
        stops: tokens that end an answer.
        max_length: the model's context, in tokens.
    """
    eos = sorted(stops)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": scratch.hidden_size,
        "intermediate_size": scratch.intermediate_size or 4 * scratch.hidden_size,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "num_key_value_heads": scratch.heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        # Rows of length about 1. The embeddings are tied, so this is also the initial scale of the logits. The usual
        # 0.02 suits widths of a few thousand; a narrow model starts so flat with it that it learns several times slower
        # (benchmarks/README.md).
        "initializer_range": scratch.hidden_size**-0.5,
    }


def _first_emit(worker: Worker[RunConfig], kill_after: int | None) -> Emit:
    """How the first process writes events."""
    if kill_after is None:
        return with_tensorboard(worker.emit, worker.folder.stage("train"))

    def emit_and_die(kind: str, data: Mapping[str, Any]) -> None:
        worker.emit(kind, data)
        if kind == "step" and data["step"] >= kill_after:
            os.killpg(os.getpgid(0), signal.SIGKILL)  # the launcher and all processes, so that none can clean up

    return emit_and_die


def _vocabulary(worker: Worker[RunConfig], base: Path) -> int:
    """The number of tokens of the tokenizer; a notice reports those that the base has no embeddings for."""
    tokens = token_count(worker.folder.stage("prepare") / "tokenizer")
    rows = None if worker.config.model.scratch else vocabulary_size(files.read_json(base / CONFIG))
    if rows is not None and rows < tokens:
        new = "1 token is" if tokens - rows == 1 else f"{tokens - rows} tokens are"
        worker.emit("notice", {"text": f"{new} new to the base: its embeddings grow from {rows} to {tokens}"})
    return tokens


def _hub_name(base: Mapping[str, Any] | None) -> str | None:
    parent = base and base["parent"]
    return parent if parent and "/" in parent else None


def place() -> Place:
    """Which process this is, as its launcher says; the only one if there was no launcher."""
    return Place(int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1))


if __name__ == "__main__":
    work("train", train, read_run_config, place())
