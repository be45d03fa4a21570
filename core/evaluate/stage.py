"""The evaluate stage: a worker grades the registered model, its figures go to the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelwright.core.api import files
from modelwright.core.api.components import EngineSpec
from modelwright.core.api.records import Figure
from modelwright.core.config import to_plain
from modelwright.core.evaluate.suites import suite_inputs
from modelwright.core.processes import run_worker, worker_command
from modelwright.core.stage import Run

ENGINE = "torch"

# Counts up when the same inputs give other figures than before.
VERSION = 1


class Evaluate:
    """A registered version to its metrics."""

    name = "evaluate"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The model, the test sets' bytes and options, the plugins that read and grade them."""
        tables = to_plain(run.config).get("evaluate", [])
        registered = run.outputs("register")
        return {
            "version": VERSION,
            "model": [registered["address"], registered["digest"]],
            "engine": run.plugins.origin(run.plugins.get(EngineSpec, ENGINE)),
            "suites": {
                suite.name: suite_inputs(suite, values, run.config, run.plugins)
                for suite, values in zip(run.config.evaluate, tables, strict=True)
            },
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """The first suite whose results are gone, from the run's folder or from the registry."""
        registered = run.outputs("register")
        recorded = run.registry.get(registered["name"], registered["version"]).metrics
        for suite in run.config.evaluate:
            if not set(suite.metrics) <= set(recorded.get(suite.name, {})):
                return f"the registry's figures of {suite.name}"
            results = run.folder.stage(self.name) / suite.name / "results.json"
            if not results.is_file():
                return str(results)
        return None

    def unfinished(self, run: Run, fingerprint: str) -> str | None:
        """The suites that an interrupted evaluation has finished."""
        folder = run.folder.stage(self.name)
        order = files.read_json(folder / "order.json")
        if order is None or order["fingerprint"] != fingerprint:
            return None
        finished = [suite.name for suite in run.config.evaluate if (folder / suite.name / "results.json").is_file()]
        return f"interrupted; {', '.join(finished)} finished" if finished else None

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:
        """Start the worker; record what it measured."""
        registered = run.outputs("register")
        model = run.registry.get(registered["name"], registered["version"])
        if not run.config.evaluate:
            return {"metrics": {}}
        folder = run.folder.stage(self.name)
        order = files.read_json(folder / "order.json")
        if order is None or order["fingerprint"] != fingerprint:
            run.folder.forget(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(folder)
        files.write_json(folder / "order.json", {"fingerprint": fingerprint, "model": str(run.registry.folder(model))})
        command = worker_command("modelwright.core.evaluate.worker", run.folder)
        emit("starting", {"command": command, "log": str(run.folder.log(self.name))})
        outputs = run_worker(run, self.name, command)
        for suite, figures in outputs["metrics"].items():
            metrics = {name: Figure(**figure) for name, figure in figures.items()}
            run.registry.add_metrics(model.name, model.version, suite, metrics)
        return outputs
