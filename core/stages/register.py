"""The register stage: the trained model, with all that is known of it, becomes a version in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelwright import __version__
from modelwright.core.api import files
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import NewModel
from modelwright.core.config import to_plain
from modelwright.core.registry.record import environment
from modelwright.core.runs.stage import Run


class Register:
    """A trained model to a registered version."""

    name = "register"

    def inputs(self, run: Run) -> dict[str, Any]:
        """What the version is made of, and where it goes."""
        return {**self._identity(run), "registry": run.registry_url}

    @staticmethod
    def _identity(run: Run) -> dict[str, Any]:
        """What makes it another version. A registry that has moved is the same one, so its URL is not part of this."""
        trained = run.outputs("train")
        return {
            "digest": trained["digest"],
            "base": [trained["base"], trained["parent"]],
            "name": run.config.name,
            "tags": dict(run.config.registry.tags),
        }

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
        trained, folder = run.outputs("train"), run.folder.stage("train") / "model"
        if files.manifest_digest(files.folder_manifest(folder)) != trained["digest"]:
            raise ModelwrightError(
                f"{folder} has changed since the training wrote it: train again with --only train --fresh"
            )
        model = run.registry.add(
            NewModel(
                name=run.config.name,
                fingerprint=digest_json(self._identity(run)),
                base=trained["base"],
                parent=trained["parent"],
                config=to_plain(run.config),
                data=run.outputs("prepare")["sources"],
                environment=environment(),
                code_version=__version__,
                training=trained["training"],
                tags=run.config.registry.tags,
            ),
            folder,
        )
        outputs = {"name": model.name, "version": model.version, "digest": model.digest, "address": model.address}
        emit("registered", outputs)
        return outputs
