"""TensorBoard, where it is installed: the figures of a training beside its events, which hold the same and more."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
# What of the event of a step is drawn, by the name of its curve.
_OF_STEP = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "mfu": "speed/mfu",
    "memory": "speed/memory_bytes",
}

Emit = Callable[[str, Mapping[str, Any]], None]


def with_tensorboard(emit: Emit, folder: Path) -> Emit:
    """`emit`, which also writes what TensorBoard draws below `folder`; unchanged where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return emit
    writer: Any = None

    def emit_and_draw(kind: str, data: Mapping[str, Any]) -> None:
        nonlocal writer
        emit(kind, data)
        figures = dict(_figures(kind, data))
        if not figures:
            return
        if writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Steps that a resumed training does again are drawn once.
            writer = SummaryWriter(str(folder / FOLDER), purge_step=data["step"])
        for name, value in figures.items():
            writer.add_scalar(name, value, data["step"])
        if kind == "holdout":
            writer.flush()

    return emit_and_draw


def _figures(kind: str, data: Mapping[str, Any]) -> list[tuple[str, float]]:
    if kind == "holdout":
        return [("holdout/loss", data["loss"])]
    if kind != "step":
        return []
    figures = [(name, data[key]) for key, name in _OF_STEP.items() if data.get(key) is not None]
    if data.get("seconds"):
        figures.append(("speed/tokens_per_second", data["tokens"] / data["seconds"]))
    return [*figures, *((f"loss by source/{source}", loss) for source, loss in data.get("by_source", {}).items())]
