"""A training's events for people: report.md and loss.svg beside the model, and live curves for TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from modelwright.core.api import files
from modelwright.core.api.records import digest_json
from modelwright.core.runs.events import Event

REPORT = "report.md"
PICTURE = "loss.svg"
TENSORBOARD = "tensorboard"

Emit = Callable[[str, Mapping[str, Any]], None]

# The size of the picture, and the margins around its plot, in pixels.
_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 40
# Number of points kept of a curve: enough for a smooth picture, few enough to keep in a registry.
POINTS = 200


@frozen
class Curve:
    """A loss by step.

    Attributes:
        name: of the data that it was measured on.
        points: (step, loss in nats), in order.
    """

    name: str
    points: Sequence[tuple[int, float]]


def loss_curves(events: Sequence[Event]) -> list[Curve]:
    """The losses on training data and on held-out data; of many points, every n-th and the last."""
    named = {"training": "step", "held out": "holdout"}
    curves = []
    for name, kind in named.items():
        points = [(event.data["step"], event.data["loss"]) for event in events if event.kind == kind]
        finite = [(step, loss) for step, loss in points if loss is not None]
        if finite:
            every = -(-len(finite) // POINTS)
            curves.append(Curve(name, [*finite[:-1:every], finite[-1]]))
    return curves


def write_report(folder: Path, events: Sequence[Event]) -> None:
    """Write report.md and loss.svg into the folder of a training."""
    curves = loss_curves(events)
    files.write_text(folder / PICTURE, picture(curves))
    files.write_text(folder / REPORT, "\n".join(_lines(events)) + "\n")


def _lines(events: Sequence[Event]) -> Iterator[str]:
    by_kind = {event.kind: event.data for event in events}
    started, finished = by_kind.get("started", {}), by_kind.get("finished", {})
    steps = [event.data for event in events if event.kind == "step"]
    yield "# Training"
    yield ""
    yield f"![Loss by step]({PICTURE})"
    yield ""
    yield "| | |"
    yield "|---|---|"
    rows = {
        "device": started.get("device"),
        "processes": started.get("processes"),
        "precision": started.get("precision"),
        "frozen weights": started.get("frozen_weights"),
        "attention": started.get("attention"),
        "parameters": _count(started.get("parameters")),
        "trainable parameters": _count(started.get("trainable")),
        "steps": _count(finished.get("step")),
        "tokens": _count(finished.get("tokens")),
        "last training loss": _figure(finished.get("loss")),
        "held-out loss": _figure(finished.get("holdout_loss")),
        "dropped steps": finished.get("skipped") or None,
        **_speed(steps),
    }
    for name, value in rows.items():
        if value is not None:
            yield f"| {name} | {value} |"
    yield ""
    yield (
        "Losses are means over trained tokens, in nats. MFU (model FLOPs utilization) is the model's own arithmetic "
        "(6 operations per weight and token, plus causal attention) as a share of what the device reaches in "
        "multiplying matrices."
    )


def summary(events: Sequence[Event]) -> dict[str, Any]:
    """What a registry records about a training besides its outcome: its machine, and the digest of its events."""
    by_kind = {event.kind: event.data for event in events}
    started, finished = by_kind.get("started", {}), by_kind.get("finished", {})
    named = ("device", "processes", "precision", "frozen_weights", "parameters", "trainable")
    kept = {key: started[key] for key in named if key in started}
    kept |= {key: finished[key] for key in ("tokens", "skipped", "seconds") if key in finished}
    return kept | {"events": digest_json([asdict(event) for event in events])}


def _speed(steps: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Figures of the median step: the first steps also load kernels, and some wait for other programs."""
    timed = sorted(step["tokens"] / step["seconds"] for step in steps if step.get("seconds"))
    used = sorted(step["mfu"] for step in steps if "mfu" in step)
    memory = max((step.get("memory", 0) for step in steps), default=0)
    return {
        "tokens per second": _count(round(timed[len(timed) // 2])) if timed else None,
        "MFU": f"{used[len(used) // 2]:.1%}" if used else None,
        "peak memory (first process)": f"{memory / 1e9:.2f} GB" if memory else None,
    }


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def picture(curves: Sequence[Curve]) -> str:
    """Curves as a self-contained SVG, in colors that are visible on white and on black."""
    points = [point for curve in curves for point in curve.points]
    steps = [step for step, _ in points] or [0]
    losses = [loss for _, loss in points] or [0.0]
    left, right = min(steps), max(*steps, min(steps) + 1)
    high = max(*losses, min(losses) + 1e-9)
    # The axis starts at 0 unless that would flatten the curve.
    low = 0.0 if min(losses) < high / 4 else min(losses)

    def place(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (step - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - loss) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'

    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12" fill="#808080"'
    elements = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', "<title>Loss by step</title>"]
    for share in (0, 0.25, 0.5, 0.75, 1):
        loss, step = low + share * (high - low), left + share * (right - left)
        (_, y), (x, _) = place(left, loss), place(step, low)
        elements.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#808080" stroke-opacity="0.25"/>')
        elements.append(text(_LEFT - 6, y + 4, f"{loss:.3g}", "end"))
        elements.append(text(x, _HEIGHT - _BOTTOM + 18, f"{step:,.0f}"))
    elements.append(text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "step"))
    for number, (curve, color) in enumerate(zip(curves, ("#3b82f6", "#f97316"), strict=False)):
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve.points))
        elements.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if len(curve.points) == 1 or number:
            placed = (place(*point) for point in curve.points)
            elements += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in placed]
        elements.append(f'<g fill="{color}">{text(_WIDTH - _RIGHT, _TOP + 12 + 16 * number, curve.name, "end")}</g>')
    return "\n".join([*elements, "</svg>", ""])


# The figures of the event `step` that are drawn, and the names of their curves.
_OF_STEP = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "mfu": "speed/mfu",
    "memory": "speed/memory_bytes",
}


def with_tensorboard(emit: Emit, folder: Path) -> Emit:
    """Wrap `emit` to also write TensorBoard's files below `folder`; unchanged if TensorBoard is not installed."""
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

            # Steps that a resumed training repeats are drawn once.
            writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=data["step"])
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
