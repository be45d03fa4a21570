"""The register stage: the trained model, with all that is known of it, becomes a version in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelwright import __version__
from modelwright.core.api.errors import ModelNotFoundError
from modelwright.core.api.registry import NewModel
from modelwright.core.config import to_plain
from modelwright.core.registry.environment import environment
from modelwright.core.stage import Run


class Register:
    """A trained model to a registered version."""

    name = "register"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The model's digest, its name and tags, and where it goes."""
        trained = run.outputs("train")
        return {
            "digest": trained["digest"],
            "base": [trained["base"], trained["parent"]],
            "name": run.config.name,
            "tags": dict(run.config.registry.tags),
            "registry": run.registry_url,
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:
        """The version, where the registry does not have it any more."""
        try:
            model = run.registry.get(outputs["name"], outputs["version"])
        except ModelNotFoundError as error:
            return str(error)
        return None if model.digest == outputs["digest"] else f"{model.address} is another model now"

    def unfinished(self, run: Run, fingerprint: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Registering is one transaction."""
        return None

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:
        """Add the model; adding the same one again gives the version that is there."""
        run.folder.check_stop()
        trained, prepared = run.outputs("train"), run.folder.done("prepare")
        model = run.registry.add(
            NewModel(
                name=run.config.name,
                fingerprint=fingerprint,
                base=trained["base"],
                parent=trained["parent"],
                config=to_plain(run.config),
                data=_data(prepared.inputs["sources"]) if prepared else {},
                environment=environment(),
                code_version=__version__,
                training=trained["training"],
                tags=run.config.registry.tags,
            ),
            run.folder.stage("train") / "model",
        )
        outputs = {"name": model.name, "version": model.version, "digest": model.digest, "address": model.address}
        emit("registered", outputs)
        return outputs


def _data(sources: list[dict[str, str]]) -> dict[str, str]:
    return {path: digest for source in sources for path, digest in source.items()}
