"""The register stage: the trained model, with all that is known of it, becomes a version in the registry.

A run with `train = false` registers its base: the registry stores a content once, so that a registered base is not
copied, and the digest is the one that adapters and continued models have as their base.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelwright import __version__
from modelwright.core.api import files
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import NewModel
from modelwright.core.chat.renderer import Renderer
from modelwright.core.chat.templates import read_template
from modelwright.core.config import to_plain
from modelwright.core.models.base import Base, base_files
from modelwright.core.registry.importing import gathering, link_files
from modelwright.core.registry.record import environment
from modelwright.core.runs.stage import Run


class Register:
    """A trained model, or an untrained base, to a registered version."""

    name = "register"

    def inputs(self, run: Run) -> dict[str, Any]:
        """What the version is made of, and where it goes."""
        return {**self._identity(run), "registry": run.registry_url}

    @staticmethod
    def _identity(run: Run) -> dict[str, Any]:
        """What makes it another version. A registry that has moved is the same one, so its URL is not part of this."""
        identity: dict[str, Any] = {"name": run.config.name, "tags": dict(run.config.registry.tags)}
        if run.has("train"):
            trained = run.outputs("train")
            return identity | {"digest": trained["digest"], "base": [trained["base"], trained["parent"]]}
        base = _base(run)
        return identity | {"digest": base.digest, "base": [base.digest, base.parent], "template": _template(run)}

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:
        """The version, where the registry does not have it any more."""
        try:
            model = run.registry.get(outputs["name"], outputs["version"])
        except ModelNotFoundError as error:
            return str(error)
        return None if model.digest == outputs["digest"] else f"{model.address} is a different model now"

    def unfinished(self, run: Run, fingerprint: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Registering is one transaction."""
        return None

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:  # noqa: ARG002
        """Add the model; adding the same one again gives the version that is there."""
        run.folder.check_stop()
        identity = self._identity(run)
        base, parent = identity["base"]
        with _trained(run) if run.has("train") else _untrained(run) as folder:
            model = run.registry.add(
                NewModel(
                    name=run.config.name,
                    fingerprint=digest_json(identity),
                    base=base,
                    parent=parent,
                    config=to_plain(run.config),
                    data=run.outputs("prepare")["sources"] if run.has("train") else {},
                    environment=environment(),
                    code_version=__version__,
                    training=run.outputs("train")["training"] if run.has("train") else {},
                    tags=run.config.registry.tags,
                ),
                folder,
            )
        outputs = {"name": model.name, "version": model.version, "digest": model.digest, "address": model.address}
        emit("registered", outputs)
        return outputs


@contextlib.contextmanager
def _trained(run: Run) -> Iterator[Path]:
    """The folder that the training wrote, unchanged since."""
    folder = run.folder.stage("train") / "model"
    if files.manifest_digest(files.folder_manifest(folder)) != run.outputs("train")["digest"]:
        raise ModelwrightError(
            f"{folder} has changed since the training wrote it: train again with --only train --fresh"
        )
    yield folder


@contextlib.contextmanager
def _untrained(run: Run) -> Iterator[Path]:
    """A folder with the base's files, and the chat template of the run, if it has one of its own."""
    base, template = _base(run), _template(run)
    with gathering() as folder:
        link_files({path.name: path.resolve() for path in base_files(base.folder)}, folder)
        if template is not None:
            renderer = Renderer.from_folder(base.folder, chat_template=template)
            renderer.save(folder)
        yield folder


def _base(run: Run) -> Base:
    assert run.base is not None, "a configuration without training has a base"
    return run.base


def _template(run: Run) -> str | None:
    template = run.config.model.chat_template
    return read_template(template) if template else None
