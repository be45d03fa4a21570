"""A DeepSpeed engine as the loop's strategy: the stages of ZeRO, and checkpoints split among the processes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import deepspeed
import torch

from modelwright.core.api import ModelwrightError, TrainSettings, UsageError, files
from modelwright.core.api.wording import one_line
from modelwright.plugins.trainers import DeepSpeedOptions
from modelwright.plugins.trainers.checkpoints import writing_to
from modelwright.plugins.trainers.model.adapter import export_adapter, is_adapted
from modelwright.plugins.trainers.optimizers import make_optimizer, set_learning_rate
from modelwright.plugins.trainers.ranks import Ranks
from modelwright.plugins.trainers.strategy import device_facts

# The folder in a checkpoint that holds all of DeepSpeed's files.
TAG = "zero"
UNIVERSAL = "universal"


class Zero:
    """A DeepSpeed engine as the loop's strategy.

    Args:
        model: as it was loaded; the engine takes it over.
        settings: the `[train]` table.
        options: of the trainer.
        config: for DeepSpeed, from `zero_config`.
        device: of this process.
        precision: of the forward pass.
        ranks: the processes that train together.

    Raises:
        UsageError: DeepSpeed refuses the configuration.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainSettings,
        options: DeepSpeedOptions,
        config: Mapping[str, Any],
        *,
        device: torch.device,
        precision: torch.dtype,
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.ranks = ranks
        self.layout = layout_of(options, ranks)
        self._options = options
        self._optimizer = settings.optimizer
        if settings.compile:
            model.base_model.compile()
        if options.zero_stage == 3:
            # The engine converts no weights of a model that was split as it was read, nor those of its adapter.
            for parameter in model.parameters():
                if not hasattr(parameter, "ds_id") and parameter.is_floating_point():
                    parameter.data = parameter.data.to(precision)
        try:
            optimizer = make_optimizer(model, settings)
            self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(config))
        except (AssertionError, TypeError, ValueError) as error:  # pydantic's error is a ValueError
            raise UsageError(f"[train.options] config: DeepSpeed refuses it: {one_line(error)[:300]}") from error
        # The engine switches autocast off in its forward pass, which has nothing to gather or to split at stage 0.
        self.forward = self.engine if options.zero_stage else model
        if options.zero_stage == 0:
            # The norm must be known before the step, and DeepSpeed without ZeRO does not check it.
            self.engine.enable_backward_allreduce = False

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass at stage 0; ZeRO has converted the weights to it."""
        if self._options.zero_stage or self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`; the engine divides the sum over the processes by their number."""
        self.engine.backward(loss * self.ranks.size)

    def step(self, learning_rate: float) -> float:
        """Clip, step, reset the gradients; returns the norm before clipping. ZeRO drops a step if it is not finite."""
        set_learning_rate(self.engine.optimizer, learning_rate)
        if self._options.zero_stage == 0:
            return self._step_alone()
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def _step_alone(self) -> float:
        for parameter in self.model.parameters():
            if parameter.requires_grad and self.ranks.size > 1:
                if parameter.grad is None:  # such as experts that no token of this process reached
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.ranks.size
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if norm - norm == 0:
            self.engine.step()
        else:
            self.engine.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """Write this process's share into the folder `zero`."""
        with writing_to(folder):
            self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path, layout: Mapping[str, Any]) -> None:
        """Read the files of `save`; those of another number of processes are converted to a common form first.

        Raises:
            UsageError: they were written with another stage of ZeRO, or by another trainer.
        """
        check_layout(folder, layout, self._options, self._optimizer, self.ranks.size)
        if self._options.zero_stage == 0 or layout["ranks"] == self.ranks.size:
            self._read(folder, TAG)
            return
        with self._universal(folder) as place:
            self._read_universal(place)

    def _read(self, folder: Path, tag: str) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
        if path is None:
            raise ModelwrightError(f"{folder / tag}: DeepSpeed found no checkpoint there")

    def _read_universal(self, place: Path) -> None:
        """Read a checkpoint in the common form, and fix what DeepSpeed's reader mixes up at stage 3.

        It gives all groups the settings of the first, and all parameters the same counter of steps, which each of them
        then counts up.
        """
        groups = self.engine.optimizer.param_groups
        own = [{key: group[key] for key in ("weight_decay", "factor")} for group in groups]
        self._read(place.parent, place.name)
        for group, settings in zip(groups, own, strict=True):
            group.update(settings)
        for state in self.engine.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    @contextlib.contextmanager
    def _universal(self, folder: Path) -> Iterator[Path]:
        """A temporary copy of the checkpoint in the form that any number of processes can read."""
        place = folder.parent / f"{files.TEMPORARY}{folder.name}-{UNIVERSAL}"
        if self.ranks.first:
            shutil.rmtree(place, ignore_errors=True)
            _convert(folder / TAG, place, stage=self._options.zero_stage)
        self.ranks.wait()
        settings = self.engine._config  # noqa: SLF001 - there is no public switch, and the next checkpoint may need no conversion
        settings.load_universal_checkpoint = True
        try:
            yield place
        finally:
            settings.load_universal_checkpoint = False
        self.ranks.wait()
        if self.ranks.first:
            shutil.rmtree(place)

    def export(self, folder: Path) -> None:
        """Write config, generation config and safetensors in Hugging Face layout, or the adapter."""
        state = self._gathered()
        if not self.ranks.first:
            return
        with writing_to(folder):
            if is_adapted(self.model):
                export_adapter(self.model, folder, state=state)
            else:
                self.model.save_pretrained(folder, state_dict=state)

    def _gathered(self) -> dict[str, torch.Tensor]:
        """The model's complete tensors in the first process; with an adapter, only the trained ones."""
        state: dict[str, torch.Tensor] = {}
        copies: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if is_adapted(self.model) and not tensor.requires_grad:
                continue
            with deepspeed.zero.GatheredParameters([tensor] if hasattr(tensor, "ds_id") else []):
                if self.ranks.first:
                    state[name] = copies.setdefault(id(tensor), tensor.detach().cpu().clone())
        return state

    def facts(self) -> dict[str, Any]:
        """Device, precision, the number of threads on a CPU, and the stage of ZeRO."""
        return device_facts(self.device, self.precision) | {"zero_stage": self._options.zero_stage}


def layout_of(options: DeepSpeedOptions, ranks: Ranks) -> dict[str, Any]:
    """How a checkpoint's files are split among the processes."""
    return {"strategy": "zero", "stage": options.zero_stage, "ranks": ranks.size}


def check_layout(folder: Path, there: Mapping[str, Any], options: DeepSpeedOptions, optimizer: str, ranks: int) -> None:
    """Check that a checkpoint can be read with these options, by this number of processes.

    Raises:
        UsageError: it was written with another stage of ZeRO, by another trainer, or by another number of processes
            with an optimizer whose states DeepSpeed cannot convert.
    """
    if there.get("strategy") != "zero" or there["stage"] != options.zero_stage:
        raise UsageError(
            f"{folder} was written with {_named(there)}, and [train.options] zero_stage is {options.zero_stage}: use "
            "the same as before to resume, or train again with --only train --fresh"
        )
    if options.zero_stage and optimizer != "adamw" and there["ranks"] != ranks:
        raise UsageError(
            f'{folder} was written by {there["ranks"]} processes, and there are {ranks}: optimizer = "{optimizer}" can '
            "only be resumed by the same number; start as many, or train again with --only train --fresh"
        )


def _named(layout: Mapping[str, Any]) -> str:
    return f"zero_stage = {layout['stage']}" if layout.get("strategy") == "zero" else "another trainer"


def _convert(source: Path, place: Path, *, stage: int) -> None:
    """Turn a checkpoint into DeepSpeed's universal form, as its script `ds_to_universal` does."""
    from deepspeed.checkpoint import ds_to_universal

    arguments = ds_to_universal.argparse.Namespace(
        input_folder=str(source),
        output_folder=str(place),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # For stages 1 and 2 it expects a state that only Megatron's launchers write.
        inject_missing_state=stage < 3,
    )
    ds_to_universal.main(arguments)
