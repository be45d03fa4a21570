"""The promote stage: an alias moves to the new version if the condition holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import asdict

from modelwright.core.config.registry import parse_condition
from modelwright.core.runs.stage import Run


class Promote:
    """A registered, evaluated version to an alias."""

    name = "promote"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The version, its metrics, the alias and the condition."""
        promote = run.config.registry.promote
        return {
            "model": run.outputs("register")["address"],
            "metrics": run.outputs("evaluate")["metrics"],
            "promote": promote and asdict(promote),
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Nothing: an alias that has moved on since is not moved back."""
        return None

    def unfinished(self, run: Run, fingerprint: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Promoting is one transaction."""
        return None

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:  # noqa: ARG002
        """Check the condition against the registry's metrics; a condition that does not hold is not a failure."""
        run.folder.check_stop()
        promote = run.config.registry.promote
        registered = run.outputs("register")
        if promote is None:
            outputs: dict[str, Any] = {"promoted": False, "why": "the run sets no alias"}
        else:
            model = run.registry.get(registered["name"], registered["version"])
            failing: list[str] = []
            if promote.condition:
                for clause, measured, holds in parse_condition(promote.condition).check(model.metrics):
                    if not holds:
                        found = "it was not measured" if measured is None else f"the value is {measured:.4g}"
                        failing.append(f"{clause} does not hold: {found}")
            if failing:
                outputs = {"promoted": False, "why": "; ".join(failing)}
            else:
                alias = run.registry.set_alias(promote.alias, model.name, model.version)
                outputs = {"promoted": True, "alias": alias.alias, "why": promote.condition or "no condition"}
        if promote is not None:
            emit("promoted" if outputs["promoted"] else "not promoted", outputs)
        return outputs
