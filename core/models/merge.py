"""Merging an adapter into its base: one whole model, registered only if its logits equal those of the two.

    base + adapter  →  logits ─────────────────┐
         │                                     ├─ equal? → registered
      merged, written, read again → logits ────┘

The comparison loads the merged folder, as everyone will load it, before it is rounded to the dtype of the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from modelwright import __version__
from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelwrightError, RegistryError, UsageError
from modelwright.core.api.hf_folder import context_length
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import ModelVersion, NewModel
from modelwright.core.api.wording import one_line
from modelwright.core.chat.renderer import MODEL_RECORD, checked_renderer
from modelwright.core.extras import require
from modelwright.core.models.adapters import AdapterBase, adapter_base, quietly
from modelwright.core.models.finishing import complete_generation_config, round_like, round_weights
from modelwright.core.models.gguf_base import dequantized_from
from modelwright.core.registry.importing import gathering
from modelwright.core.registry.record import environment

if TYPE_CHECKING:
    import torch

# Increased when the same adapter and base give other weights than before.
VERSION = 2
# Relative to the largest logit. Both sides are computed in float32, with a relative rounding error of at most 6e-8; the
# order of summation differs, which adds up to about 1e-6 over the layers. A wrong merge (scale, missing layer) is
# off by a share of the adapter's own effect, which is measured as well.
TOLERANCE = 1e-4
# One sequence of the last tokens, which include added ones, and some random ones.
_SEQUENCES, _LENGTH = 4, 32


@frozen(kw_only=True)
class Compared:
    """Largest differences between logits.

    Attributes:
        difference: between the merged model, and base and adapter.
        moved: between base and adapter, and the base alone: the effect of the adapter.
        largest: the largest logit, at least 1.
    """

    difference: float
    moved: float
    largest: float

    @property
    def allowed(self) -> float:
        """The largest difference that counts as rounding."""
        return TOLERANCE * self.largest


@frozen(kw_only=True)
class Merged:
    """The result of a merge.

    Attributes:
        version: the whole model.
        compared: None if it was registered before.
    """

    version: ModelVersion
    compared: Compared | None


def merge(registry: Registry, version: ModelVersion, name: str | None = None, *, dtype: str | None = None) -> Merged:
    """Register an adapter and its base as one whole model, or find the version if they were merged before.

    Args:
        registry: has the adapter, and gets the merged model.
        version: the adapter.
        name: of the merged model; default: the adapter's name with `-merged`.
        dtype: of its weights, one of `DTYPES`; None for the dtype that each has in the base.

    Raises:
        UsageError: the version is not an adapter, the name is not valid, or a weight is too large for the dtype.
        ModelwrightError: the base is missing or another one, files are damaged, or the merged model's logits differ.
        MissingDependencyError: the `train` extra is not installed.
    """
    base = adapter_base(registry, version)
    if base is None:
        raise UsageError(f"{version.address} is not an adapter but a whole model: there is nothing to merge")
    model = _new_model(version, name or f"{version.name}-merged", dtype)
    before = [each for each in registry.find(model.name) if each.model.fingerprint == model.fingerprint]
    if before:
        return Merged(version=before[0], compared=None)
    for part in filter(None, (version, base.version)):
        for problem in registry.verify(part):
            raise RegistryError(f"{version.address} cannot be merged: {part.address} is damaged: {problem}")
    with gathering() as folder:
        compared = _write(registry.folder(version), base, folder, version, dtype)
        return Merged(version=registry.add(model, folder), compared=compared)


def _new_model(version: ModelVersion, name: str, dtype: str | None) -> NewModel:
    chosen = {} if dtype is None else {"dtype": dtype}
    fingerprint = digest_json({"merged": [VERSION, version.digest, version.model.base], **chosen})
    try:
        return evolve(
            version.model,
            name=name,
            fingerprint=fingerprint,
            config={**version.model.config, "merge": chosen} if chosen else version.model.config,
            base=version.digest,
            parent=version.address,
            environment=environment(),
            code_version=__version__,
        )
    except ValueError as error:
        raise UsageError(
            f"{name!r:.200} is not a model name: expected a lower-case letter followed by a-z 0-9 . _ -, at most 128 "
            "characters; give another name with --name"
        ) from error


def _write(adapter: Path, base: AdapterBase, folder: Path, version: ModelVersion, dtype: str | None) -> Compared:
    """Write the merged model into `folder`, with the adapter's tokenizer, and compare it with base and adapter.

    Raises:
        ModelwrightError: it cannot be merged, or its logits differ.
    """
    renderer = checked_renderer(adapter)
    try:
        with quietly():
            require("peft")
            compared = _merge_weights(adapter, base.folder, folder)
    except (OSError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {one_line(error):.300}"
        raise ModelwrightError(f"{version.address} cannot be merged: {reason}") from error
    # Not by `>`, which is false for NaN.
    if not compared.difference <= compared.allowed:
        raise ModelwrightError(
            f"{version.address} was not merged: the merged model's logits differ from those of base and adapter by "
            f"{compared.difference:.2g}, which is more than rounding ({compared.allowed:.2g}); nothing was registered"
        )
    if dtype is None:
        round_like(folder, base.folder)
    else:
        round_weights(folder, dtype)
    renderer.save(folder)
    complete_generation_config(folder, renderer.stop_token_ids)
    record: dict[str, Any] = {"renderer": renderer.fingerprint}
    if gguf := dequantized_from(adapter):
        record["gguf"] = gguf
    files.write_json(folder / MODEL_RECORD, record)
    return compared


def _merge_weights(adapter: Path, base: Path, folder: Path) -> Compared:
    from modelwright.core.api.adapters import apply_adapter, embedding_rows

    model = apply_adapter(_load(base), adapter)
    tokens = _tokens(embedding_rows(model), model.config)
    together = _logits(model, tokens)
    with model.disable_adapter():
        alone = _logits(model, tokens)
    # safe_merge refuses weights with NaN.
    model.merge_and_unload(safe_merge=True).save_pretrained(folder)
    del model
    difference = (_logits(_load(folder), tokens) - together).abs().max().item()
    return Compared(
        difference=difference,
        moved=(together - alone).abs().max().item(),
        largest=together.abs().max().clamp(min=1.0).item(),
    )


def _load(folder: Path) -> Any:
    """Load a whole model in float32: lower precision would hide what was merged."""
    transformers, torch = require("transformers"), require("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    return model.eval()


def _tokens(rows: int, config: Any) -> torch.Tensor:
    torch = require("torch")
    length = min(_LENGTH, context_length(config.to_dict()) or _LENGTH)
    drawn = torch.randint(rows, (_SEQUENCES, length), generator=torch.Generator().manual_seed(0))
    drawn[0] = torch.arange(rows - length, rows).clamp(min=0)
    return drawn  # type: ignore[no-any-return]


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with require("torch").no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()
