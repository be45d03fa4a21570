"""The process that trains: `python -m modelwright.core.stages.train.worker RUN_FOLDER`."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from modelwright.core.api import files
from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, CONFIG, vocabulary_size
from modelwright.core.api.training import Job
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config.schema import RunConfig
from modelwright.core.models.hf_folder import token_count
from modelwright.core.runs.worker import Place, Worker, read_run_config, work
from modelwright.core.stages.train.scratch import write_scratch
from modelwright.core.stages.train.trackers import Emit, with_tensorboard


def train(worker: Worker[RunConfig]) -> dict[str, Any]:
    """Build the job, let the trainer do it, and complete the model's folder with its tokenizer."""
    config, folder = worker.config, worker.folder.stage("train")
    order = files.read_json(folder / "order.json")
    prepared = worker.folder.stage("prepare")
    renderer = Renderer.from_folder(prepared / "tokenizer")
    if config.model.scratch:
        base = folder / "initial"
        if worker.place.rank == 0:
            write_scratch(base, config.model.scratch, renderer, max_length=config.data.tokens.max_length)
    else:
        base = Path(order["base"]["folder"])
    trainer = worker.plugins.get(TrainerSpec, config.train.trainer).create(config.train.options)
    trained = trainer.train(
        Job(
            folder=folder,
            model=base,
            output=folder / "model",
            tokens=prepared / "train",
            holdout=prepared / "holdout" if config.data.holdout.fraction else None,
            settings=config.train,
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
            f"trainer {config.train.trainer!r} ended without a model: {model} must hold config.json and *.safetensors"
        )
    if config.adapter is not None and not (model / ADAPTER_CONFIG).is_file():
        raise ModelwrightError(
            f"trainer {config.train.trainer!r} ended without an adapter: {model} must hold {ADAPTER_CONFIG}"
        )
    # A worker that was killed here before may have left half a file, which would be taken for part of the model.
    files.remove_temporaries(model)
    renderer.save(model)
    record: dict[str, Any] = {"renderer": renderer.fingerprint}
    if config.adapter is not None:
        record["base"] = {"address": order["base"]["parent"], "digest": order["base"]["digest"]}
    files.write_json(model / "modelwright.json", record)
    manifest = files.folder_manifest(model)
    return {"training": attrs.asdict(trained), "digest": files.manifest_digest(manifest), "files": files.sizes(model)}


def _first_emit(worker: Worker[RunConfig], kill_after: int | None) -> Emit:
    """How the first process tells of the training."""
    if kill_after is None:
        return with_tensorboard(worker.emit, worker.folder.stage("train"))

    def emit_and_die(kind: str, data: Mapping[str, Any]) -> None:
        worker.emit(kind, data)
        if kind == "step" and data["step"] >= kill_after:
            os.killpg(os.getpgid(0), signal.SIGKILL)  # the launcher and all processes, none of which can tidy up

    return emit_and_die


def _vocabulary(worker: Worker[RunConfig], base: Path) -> int:
    """How many tokens there are; those that the base has no embeddings for are told of."""
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
    """Which process this is, as its launcher says: the one of one where there was none."""
    return Place(int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1))


if __name__ == "__main__":
    work("train", train, read_run_config, place())
