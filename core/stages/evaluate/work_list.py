"""What a worker is to evaluate, some models on some suites, and where the results of each task are.

FOLDER/                                 the evaluate stage's, of a run or of an evaluation without one
├── work_list.json                          the configuration, the models, and what each suite's results depend on
├── current.json                        the task that the worker is at
├── failed.jsonl                        tasks that could not be graded, each with its reason
├── [MODEL@V/]SUITE/                    a graded task: results.json and samples.jsonl
└── [MODEL@V/]SUITE.answers.jsonl       all answers of the task so far; kept, so that grading again generates nothing

A run has one model and leaves the folders MODEL@V out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, fields, frozen

from modelwright.core.api import files
from modelwright.core.api.components import EngineSpec
from modelwright.core.api.files import DamagedError
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import ModelVersion
from modelwright.core.config import eval_from_plain, to_plain
from modelwright.core.config.paths import ModelAddress
from modelwright.core.config.schema import EvalConfig, EvalSuiteConfig, RunConfig
from modelwright.core.plugins import Plugins
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.worker import admitted
from modelwright.core.stages.evaluate.suites import ENGINE, suite_inputs

STAGE = "evaluate"

# Counts up when the same inputs give other figures than before.
VERSION = 2

RESULTS = "results.json"
SAMPLES = "samples.jsonl"
_AGAIN = "it is graded again"
_RESULTS_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "fingerprint": str,
    "examples": int,
    "metrics": dict,
    "verdicts": dict,
    "finishes": dict,
    "generating_seconds": (int, float),
}

# File systems hold names of 255 bytes; longer ones are cut, and a hash keeps them distinct.
_LONGEST_NAME = 200


@frozen(kw_only=True)
class Chosen:
    """A model version, and the addresses by which it was requested."""

    model: ModelVersion
    requested: tuple[str, ...]


@frozen(kw_only=True)
class ListedModel:
    """A registered model to be graded.

    Attributes:
        address: `NAME@VERSION`.
        digest: of its files.
        folder: where they lie.
        base: where those of its base lie, where it is an adapter.
        place: its folder in the stage's; empty in a run.
    """

    address: str
    digest: str
    folder: str
    base: str | None = None
    place: str = ""


@frozen(kw_only=True)
class Failure:
    """A task that could not be graded, or with `suite` None a whole model, and why."""

    model: str
    suite: str | None
    error: str

    def is_of(self, model: ListedModel, suite: str) -> bool:
        """Whether it speaks of this task."""
        return self.model == model.address and self.suite in (None, suite)


@frozen(kw_only=True)
class WorkList:
    """What is to be graded.

    Attributes:
        config: the configuration as plain values.
        models: all of them.
        suites: of each suite, a digest of all that its results depend on beside the model.
        engine: where the engine comes from.
    """

    config: Mapping[str, Any]
    models: tuple[ListedModel, ...]
    suites: Mapping[str, str]
    engine: str

    def tasks(self, root: Path) -> Iterator[Task]:
        """Every model with every suite, a model's together."""
        for model in self.models:
            for suite in self.suites:
                yield self.task(root, model, suite)

    def task(self, root: Path, model: ListedModel, suite: str) -> Task:
        """One model with one suite; `root` is the stage's folder."""
        return Task(
            model=model,
            suite=suite,
            folder=root / model.place / folder_name(suite),
            fingerprint=digest_json([model.digest, self.suites[suite]]),
            answers_fingerprint=digest_json([model.digest, self.engine]),
        )


@frozen(kw_only=True)
class Task:
    """One model with one suite.

    Attributes:
        model: the model.
        suite: the suite's name.
        folder: where its results are, once it is graded.
        fingerprint: of all that they depend on.
        answers_fingerprint: of what a model's answers depend on beside prompt and sampling, which each answer is kept
            with. Metrics are not part of it: other metrics or options grade the same answers.
    """

    model: ListedModel
    suite: str
    folder: Path
    fingerprint: str
    answers_fingerprint: str

    @property
    def answers(self) -> Path:
        """All its answers so far."""
        return self.folder.with_name(f"{self.folder.name}.answers.jsonl")

    @property
    def samples(self) -> Path:
        """Each example with its outputs and scores."""
        return self.folder / SAMPLES

    def results(self) -> dict[str, Any] | None:
        """Its results, if they are there, whole, and made of what they would be made of now."""
        try:
            results = read_results(self.folder)
        except DamagedError:
            return None
        return results if results is not None and results["fingerprint"] == self.fingerprint else None

    def damage(self) -> str | None:
        """What is wrong with results that are there; they are made again."""
        try:
            read_results(self.folder)
        except DamagedError as error:
            return str(error)
        return None


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results in a task's folder; None where there are none.

    Raises:
        DamagedError: they are not what grading left there.
    """
    results = files.read_state(folder / RESULTS, _RESULTS_KEYS, remedy=_AGAIN)
    samples = folder / SAMPLES
    if results is None or not samples.is_file():
        return None
    size, had = samples.stat().st_size, results.get("samples_size")
    if had is not None and size != had:
        raise DamagedError(samples, f"expected {had} bytes, found {size}", remedy=_AGAIN)
    return results


def folder_name(text: str) -> str:
    """A name for a file or folder that is not too long for one."""
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[: _LONGEST_NAME - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def suites_inputs(config: EvalConfig, plugins: Plugins) -> dict[str, Any]:
    """What the results of each suite depend on, beside the model, by the suite's name."""
    tables = to_plain(config)["evaluate"]
    return {
        suite.name: suite_inputs(suite, values, plugins, seed=config.seed)
        for suite, values in zip(config.evaluate, tables, strict=True)
    }


def engine_origin(plugins: Plugins) -> str:
    """Where the engine comes from, for fingerprints."""
    return plugins.origin(plugins.get(EngineSpec, ENGINE))


def make_work_list(config: EvalConfig, models: Sequence[ListedModel], plugins: Plugins) -> WorkList:
    """A work list for a worker."""
    engine = engine_origin(plugins)
    common = [VERSION, engine]
    digests = {name: digest_json([*common, inputs]) for name, inputs in suites_inputs(config, plugins).items()}
    return WorkList(config=to_plain(config), models=tuple(models), suites=digests, engine=engine)


def of_run(config: RunConfig, address: str) -> EvalConfig:
    """The evaluation that a run's `[[evaluate]]` asks for."""
    names = [attribute.name for attribute in fields(EvalSuiteConfig)]
    return EvalConfig(
        models=(ModelAddress(address),),
        seed=config.seed,
        evaluate=tuple(EvalSuiteConfig(**{name: getattr(suite, name) for name in names}) for suite in config.evaluate),
        plugins=config.plugins,
    )


def write_work_list(root: Path, work_list: WorkList) -> None:
    """Leave a work list for a worker."""
    files.write_json(root / "work_list.json", asdict(work_list))


def read_work_list(root: Path) -> WorkList | None:
    """The work list that was left; None where there is none."""
    values = files.read_json(root / "work_list.json")
    if values is None or "engine" not in values:
        return None
    return evolve(WorkList(**values), models=tuple(ListedModel(**model) for model in values["models"]))


def read_work_config(folder: RunFolder) -> tuple[EvalConfig, Plugins]:
    """The work list's configuration, and the plugins that it admits."""
    work_list = read_work_list(folder.stage(STAGE))
    assert work_list is not None
    plugins = admitted(work_list.config)
    return eval_from_plain(work_list.config, plugins), plugins


def add_failure(root: Path, failure: Failure) -> None:
    """Note that a task, or a model, could not be graded."""
    with (root / "failed.jsonl").open("a", encoding="utf-8") as file:
        file.write(files.json_line(asdict(failure)))


def read_failures(root: Path) -> list[Failure]:
    """What could not be graded since the work list was left; a line that a kill cut short is passed over."""
    try:
        content = (root / "failed.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [Failure(**row) for row in files.appended_tables(content)]


def forget_failures(root: Path) -> None:
    """Begin with none: what failed is tried again."""
    (root / "failed.jsonl").unlink(missing_ok=True)
    (root / "current.json").unlink(missing_ok=True)


def write_current(root: Path, model: ListedModel, suite: str | None) -> None:
    """Note what the worker is at; `suite` is None while it loads the model."""
    files.write_json(root / "current.json", {"model": model.address, "suite": suite})


def read_current(root: Path) -> tuple[str, str | None] | None:
    """The address and suite that a worker was at; None where it had not begun."""
    values = files.read_json(root / "current.json")
    return None if values is None else (values["model"], values["suite"])
