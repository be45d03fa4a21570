"""An adapter merged into its base: one whole model, registered only if it says what the two said.

    base + adapter  →  logits ─────────────────┐
         │                                     ├─ the same? → registered
      merged, written, read again → logits ────┘

What is compared is the folder that is registered, as anyone will load it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from modelwright import __version__
from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelwrightError, RegistryError, UsageError
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import ModelVersion, NewModel
from modelwright.core.chat.renderer import MODEL_RECORD, checked_renderer
from modelwright.core.extras import require
from modelwright.core.models.adapters import AdapterBase, adapter_base
from modelwright.core.registry.environment import environment
from modelwright.core.registry.importing import gathering

if TYPE_CHECKING:
    import torch

# Counts up when the same adapter and base give other weights than before.
VERSION = 1
# Of the largest logit. Both ways are computed in float32, where a number is off by 6e-8 of itself at most; they sum in
# another order, which adds up over the layers to some 1e-6. A merge that is wrong (a scale, a layer that was left out)
# is off by a share of what the adapter does, and that is measured beside it.
TOLERANCE = 1e-4
# One sequence of the last tokens, where those that were added are, and some that are drawn.
_SEQUENCES, _LENGTH = 4, 32


@frozen(kw_only=True)
class Compared:
    """How far logits are apart.

    Attributes:
        difference: of the merged model's from those of base and adapter, at most.
        moved: of base and adapter's from the base's alone, at most: what the adapter does.
        largest: the largest logit, or 1.
    """

    difference: float
    moved: float
    largest: float

    @property
    def allowed(self) -> float:
        """The largest difference that is rounding."""
        return TOLERANCE * self.largest


@frozen(kw_only=True)
class Merged:
    """What came of a merge.

    Attributes:
        version: the whole model.
        compared: None where it had been registered before.
    """

    version: ModelVersion
    compared: Compared | None


def merge(registry: Registry, version: ModelVersion, name: str | None = None) -> Merged:
    """Register an adapter and its base as one whole model; doing it again gives the version that is there.

    Args:
        registry: where the adapter is, and where the model goes.
        version: the adapter.
        name: the model's; default: the adapter's and `-merged`.

    Raises:
        UsageError: the version is no adapter, or the name cannot be one.
        ModelwrightError: the base is not there or another one, files are damaged, or the merged model says something
            else than the two.
        MissingDependencyError: the `train` extra is not installed.
    """
    base = adapter_base(registry, version)
    if base is None:
        raise UsageError(f"{version.address} is no adapter: it is a whole model, and there is nothing to merge")
    model = _new_model(version, name or f"{version.name}-merged")
    before = [each for each in registry.find(model.name) if each.model.fingerprint == model.fingerprint]
    if before:
        return Merged(version=before[0], compared=None)
    for part in filter(None, (version, base.version)):
        for problem in registry.verify(part):
            raise RegistryError(f"{version.address} cannot be merged: {part.address} is damaged: {problem}")
    with gathering() as folder:
        compared = _write(registry.folder(version), base, folder, version)
        return Merged(version=registry.add(model, folder), compared=compared)


def _new_model(version: ModelVersion, name: str) -> NewModel:
    fingerprint = digest_json({"merged": [VERSION, version.digest, version.model.base]})
    try:
        return evolve(
            version.model,
            name=name,
            fingerprint=fingerprint,
            base=version.digest,
            parent=version.address,
            environment=environment(),
            code_version=__version__,
        )
    except ValueError as error:
        raise UsageError(
            f"{name!r:.200} cannot be a model's name: expected a lower-case letter, then any of a-z 0-9 . _ -, at most "
            "128 together; give another by --name"
        ) from error


def _write(adapter: Path, base: AdapterBase, folder: Path, version: ModelVersion) -> Compared:
    """Write the merged model into `folder`, with the adapter's tokenizer, and compare it.

    Raises:
        ModelwrightError: it cannot be made, or is not the same.
    """
    renderer = checked_renderer(adapter)
    try:
        with _quietly():
            require("peft")
            compared = _merge_weights(adapter, base.folder, folder)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelwrightError(f"{version.address} cannot be merged: {type(error).__name__}: {reason:.300}") from error
    # Not by `>`: nothing is larger than what is no number.
    if not compared.difference <= compared.allowed:
        raise ModelwrightError(
            f"{version.address} is not merged: the merged model's logits differ from those of base and adapter by "
            f"{compared.difference:.2g}, and rounding is {compared.allowed:.2g} at most; nothing was registered"
        )
    renderer.save(folder)
    files.write_json(folder / MODEL_RECORD, {"renderer": renderer.fingerprint})
    return compared


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the libraries tell of themselves from people and from standard output, which is the command's."""
    bars = require("transformers.utils.logging")
    before, shown = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if shown:
            bars.enable_progress_bar()


def _merge_weights(adapter: Path, base: Path, folder: Path) -> Compared:
    from modelwright.core.api.adapters import apply_adapter, embedding_rows

    model = apply_adapter(_load(base), adapter)
    tokens = _tokens(embedding_rows(model), model.config)
    together = _logits(model, tokens)
    with model.disable_adapter():
        alone = _logits(model, tokens)
    # safe_merge refuses weights that are no numbers.
    model.merge_and_unload(safe_merge=True).save_pretrained(folder)
    del model
    difference = (_logits(_load(folder), tokens) - together).abs().max().item()
    return Compared(
        difference=difference,
        moved=(together - alone).abs().max().item(),
        largest=together.abs().max().clamp(min=1.0).item(),
    )


def _load(folder: Path) -> Any:
    """A whole model, float32: registered weights are that, and a sum in fewer digits would hide what was merged."""
    transformers, torch = require("transformers"), require("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    return model.eval()


def _tokens(rows: int, config: Any) -> torch.Tensor:
    torch = require("torch")
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    length = min(_LENGTH, context) if isinstance(context, int) and context > 0 else _LENGTH
    drawn = torch.randint(rows, (_SEQUENCES, length), generator=torch.Generator().manual_seed(0))
    drawn[0] = torch.arange(rows - length, rows).clamp(min=0)
    return drawn  # type: ignore[no-any-return]


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with require("torch").no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()
