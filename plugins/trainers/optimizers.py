"""The optimizers that `[train] optimizer` names, from torch and bitsandbytes, and what each of them needs.

Every trainer gets its optimizer from here. One learning rate and one weight decay serve them all, so that another
optimizer is a change of one key.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Iterable
from typing import Any

import torch

from modelwright.core.api import OF_BITSANDBYTES, TrainSettings, UsageError
from modelwright.plugins.trainers.model.adapter import learning_rate_factor

_EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")
# They see whole matrices, which ZeRO has cut into flat pieces from stage 1 on.
WHOLE_MATRICES = ("muon", "adafactor")
# The second moment forgets faster than Adam's 0.999: the usual choice for language models since T. Brown et al.,
# "Language models are few-shot learners" (2020), appendix B. Lion's are its authors' for language models (X. Chen et
# al., "Symbolic discovery of optimization algorithms", 2023, section 5).
_USUAL_BETAS = (0.9, 0.95)
_BETAS = {"lion": (0.95, 0.98)}
_EPS = 1e-8
# The running mean of gradients; K. Jordan et al., "Muon", 2024, which Nesterov's momentum belongs to.
_MUON_MOMENTUM = 0.95


def lacking(settings: TrainSettings, *, device: str, bitsandbytes: bool, muon: bool) -> str | None:
    """What an optimizer lacks here, as the second half of an error's line; None if nothing.

    Args:
        settings: the `[train]` table.
        device: type of the device that the optimizer steps on, such as "cuda".
        bitsandbytes: whether that package is installed.
        muon: whether the installed torch has Muon.
    """
    name = settings.optimizer
    if name in OF_BITSANDBYTES and not bitsandbytes:
        return 'needs the package bitsandbytes: pip install "modelwright[quantization]", or set it to "adamw"'
    if name == "paged_adamw_8bit" and device != "cuda":
        return 'moves its states between GPU and CPU memory, and steps on the CPU here: set it to "adamw_8bit"'
    if name == "muon" and not muon:
        return 'needs torch 2.9 or later: pip install -U torch, or set it to "adamw"'
    return None


def check_optimizer(settings: TrainSettings, *, device: str) -> None:
    """Check that there is all that the optimizer needs.

    Raises:
        UsageError: its package is not installed, or the device cannot do what it does.
    """
    there = importlib.util.find_spec("bitsandbytes") is not None
    problem = lacking(settings, device=device, bitsandbytes=there, muon=hasattr(torch.optim, "Muon"))
    if problem:
        raise UsageError(f'[train] optimizer: "{settings.optimizer}" {problem}')


def make_optimizer(model: Any, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer for the parameters that require a gradient; each step sets its learning rate.

    Muon is for matrices between vectors of features: embeddings, output layer, vectors and experts (which are several
    matrices in one tensor) get AdamW, as its authors do it. Its updates are scaled to the size of AdamW's (J. Liu et
    al., "Muon is scalable for LLM training", 2025, section 2.2), so that both take the same learning rate.
    """
    name, groups = settings.optimizer, parameter_groups(model, settings)
    if name == "adafactor":
        return torch.optim.Adafactor(groups)
    adamw = functools.partial(torch.optim.AdamW, betas=_betas(settings), eps=settings.eps or _EPS, fused=True)
    if name == "adamw":
        return adamw(groups)
    if name == "muon":
        matrices, others = ([group for group in groups if group["apart"] is apart] for apart in (False, True))
        muon = functools.partial(torch.optim.Muon, momentum=_MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")
        return Together([make(each) for make, each in ((muon, matrices), (adamw, others)) if each])
    return _of_bitsandbytes(groups, settings)


def _of_bitsandbytes(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    of_package = importlib.import_module("bitsandbytes.optim")
    betas = _betas(settings)
    if settings.optimizer == "lion":
        lion: torch.optim.Optimizer = of_package.Lion(groups, betas=betas)
        return lion
    paged = settings.optimizer.startswith("paged")
    made: Any = of_package.AdamW8bit(groups, betas=betas, eps=settings.eps or _EPS, is_paged=paged)
    usual = made.get_config

    def by_group(gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = usual(gindex, pindex, group)
        return config | {"optim_bits": 32 if group["apart"] else 8}

    # Its own way to exempt a parameter goes by the parameter's address, which ZeRO's flat copies do not have.
    made.get_config = by_group
    checked: torch.optim.Optimizer = made
    return checked


def _betas(settings: TrainSettings) -> tuple[float, float]:
    first, second = settings.betas or _BETAS.get(settings.optimizer, _USUAL_BETAS)
    return first, second


def parameter_groups(model: Any, settings: TrainSettings) -> list[dict[str, Any]]:
    """Groups of the trained parameters: matrices (also embeddings) decay; norms and biases, which are vectors, do not.

    Each group has a `factor`, by which `set_learning_rate` multiplies the rate; and `apart` if the optimizer treats
    its parameters in another way than the rest: all but hidden matrices with Muon, input embeddings with states of 8
    bits (T. Dettmers et al., "8-bit optimizers via block-wise quantization", 2022, section 2.3).
    """
    set_apart = _set_apart(model, settings.optimizer)
    groups: dict[tuple[bool, bool, float], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = (id(parameter) in set_apart, _dimensions(parameter) < 2, learning_rate_factor(model, name))
            groups.setdefault(kind, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.learning_rate,
            "weight_decay": 0.0 if vectors else settings.weight_decay,
            "factor": factor,
            "apart": apart,
        }
        for (apart, vectors, factor), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def _set_apart(model: Any, optimizer: str) -> set[int]:
    """The parameters of the groups that are `apart`, by their ids."""

    def of(module: Any) -> set[int]:
        return set() if module is None else {id(parameter) for parameter in module.parameters()}

    if optimizer in _EIGHT_BIT:
        return of(model.get_input_embeddings())
    if optimizer == "muon":
        others = {id(parameter) for parameter in model.parameters() if _dimensions(parameter) != 2}
        return others | of(model.get_input_embeddings()) | of(model.get_output_embeddings())
    return set()


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the rate of a step in all groups of an optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["factor"]


def _dimensions(parameter: torch.Tensor) -> int:
    """The number of dimensions of a parameter; ZeRO-3 leaves a flat remainder and keeps the shape beside it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


class Together(torch.optim.Optimizer):
    """Several optimizers that step, are saved and are loaded as one, each with parameters of its own.

    Args:
        parts: the optimizers, whose groups and states become those of this one.
    """

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = list(itertools.islice(groups, len(part.param_groups)))
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `load_state_dict` has read."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Step each of them."""
        assert closure is None
        for part in self._parts:
            part.step()
