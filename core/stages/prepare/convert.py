"""Raw rows to files of examples, without a run: `modelwright prepare --format` and `--all-formats`."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import tomli
from attrs import define, frozen

from modelwright.core.api import files
from modelwright.core.api.components import Format, FormatSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.files import why_no_file, working_directory
from modelwright.core.api.wording import printable
from modelwright.core.config import ConfigError, Problem, SourceConfig
from modelwright.core.config.errors import Invalid, dotted, quoted
from modelwright.core.config.paths import Written
from modelwright.core.config.structure import attributes_of, structure
from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare.examples import FormatFailedError, Rejected, read_lines
from modelwright.core.stages.prepare.sources import RawRow, raw_rows, source_files

SUFFIX = ".jsonl"

Progress = Callable[[str, int], None]


class CannotReadError(ModelwrightError):
    """A format cannot read the rows: too many are rejected, or none gives an example."""


@frozen(kw_only=True)
class Raw:
    """The rows to convert.

    Attributes:
        sources: where the rows are; limit and fraction apply to each source.
        seed: the seed of `fraction`.
        max_rejected: the fraction of rows, 0 to 1, that may be rejected.
    """

    sources: Sequence[SourceConfig]
    seed: int
    max_rejected: float


@frozen(kw_only=True)
class Converted:
    """The result of one format.

    Attributes:
        format: its name.
        output: the file; None if the format cannot read the rows.
        rows: number of rows read.
        examples: number of examples written.
        duplicates: number of examples left out because their content was already written.
        rejected: number of rows that the format cannot read.
        rejected_file: the file with these rows and their reasons; None if there are none.
        reason: why there is no output.
    """

    format: str
    output: Path | None
    rows: int = 0
    examples: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejected_file: Path | None = None
    reason: str | None = None


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse several `KEY=VALUE`, each a line of TOML, into a table of options; dotted keys make inner tables.

    Raises:
        ConfigError: one of them is not valid TOML, or a key is given twice.
    """
    problems = []
    for text in texts:
        try:
            tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            key, given, value = text.partition("=")
            hint = f"put strings in quotes: --option {shlex.quote(f'{key}={quoted(value)}')}"
            advice = hint if given else "write, for example, --option limit=5"
            message = f"not a valid KEY=VALUE in TOML ({error.msg}): {advice}"
            problems.append(Problem(source="--option", key=printable(text), message=message))
    if problems:
        raise ConfigError(problems)
    try:
        values = tomli.loads("\n".join(texts))
    except tomli.TOMLDecodeError as error:
        raise ConfigError(
            [Problem(source="--option", message=f"the options contradict each other: {error.msg}")]
        ) from error
    return dict(Written.mark(values, working_directory()))


def given_source(flag: str, path: str | None, **values: Any) -> SourceConfig:
    """A source from command-line flags, validated like `[[data.sources]]` in a run.toml.

    Args:
        flag: the flag that gave the path, for messages.
        path: a file, glob or folder relative to the working directory, or `builtin:NAME/SPLIT`; None for a `dataset`.
        values: other keys of `[[data.sources]]`, whose flags have the same names; None means not given.

    Raises:
        ConfigError: one of them is wrong.
    """
    given = {key: value for key, value in {"path": path, **values}.items() if value is not None}
    try:
        return structure(Written.mark(given, working_directory()), SourceConfig)
    except Invalid as error:
        problems = [
            Problem(source=flag if path[0] == "path" else f"--{path[0]}", message=message)
            for path, message in error.findings
        ]
        raise ConfigError(problems) from error


def make_format(spec: FormatSpec, options: Mapping[str, Any], *, instruction: str | None = None) -> Format:
    """Create a format from plain options, validated by its options class.

    Args:
        spec: the format's descriptor.
        options: as parsed from TOML.
        instruction: the value of the option `instruction`.

    Raises:
        ConfigError: an option is wrong, the format has no option `instruction`, or `instruction` is given twice.
        MissingDependencyError: the format needs a package that is not installed.
    """
    given = dict(options)
    if instruction is not None:
        known = attributes_of(spec.options)
        if "instruction" not in known:
            there_are = ", ".join(known) or "none"
            message = f"format {spec.name} has no option instruction; its options: {there_are}"
            raise ConfigError([Problem(source="--instruction", message=message)])
        if "instruction" in given:
            raise ConfigError(
                [Problem(source="--instruction", message="--option also sets an instruction: use one of them")]
            )
        given["instruction"] = instruction
    try:
        made: Format = spec.create(structure(given, spec.options))
    except Invalid as error:
        problems = [
            Problem(source="--option", key=dotted(path) if path else "", message=f"{message} (format {spec.name})")
            for path, message in error.findings
        ]
        raise ConfigError(problems) from error
    return made


def convert(
    raw: Raw, reader: Format, name: str, output: Path, progress: Progress, *, keep_rejected: bool = True
) -> Converted:
    """Write the examples of `raw`, read by one format, to `output` as interchange JSONL.

    Exact duplicates are left out. Rejected rows go to `NAME.rejected.jsonl` beside `output`; if there are none, an
    older file of that name is removed. A kill leaves either the old files or the new ones.

    Args:
        raw: the rows.
        reader: the format.
        name: the format's name.
        output: a file name that ends with .jsonl; its folder is created if it is missing.
        progress: called with the format's name and the number of rows read so far.
        keep_rejected: whether to keep the file of rejected rows even if there are too many of them.

    Raises:
        CannotReadError: too many rows cannot be read, or no row gives an example.
        FormatFailedError: the format raised something other than RowError.
        UsageError: an input does not exist, or `output` is not usable.
    """
    _check_places(raw, [output])
    rejected_file = _rejected_file(output)
    rejected = Rejected(files.temporary_name(rejected_file))
    try:
        with files.failing_as(f"{output} cannot be written"), files.writing(output) as file:
            counts = _write(raw, reader, name, file, rejected, progress)
            _check_enough(raw, counts, rejected)
        _settle(rejected, rejected_file)
    except CannotReadError as error:
        if not rejected.count or not keep_rejected:
            raise
        _settle(rejected, rejected_file)
        raise CannotReadError(f"{error}; rejected rows are in {rejected_file}") from None
    finally:
        rejected.path.unlink(missing_ok=True)
    return Converted(
        format=name,
        output=output,
        rows=counts.rows,
        examples=counts.examples,
        duplicates=counts.duplicates,
        rejected=rejected.count,
        rejected_file=rejected_file if rejected.count else None,
    )


@define
class _Counts:
    rows: int = 0
    examples: int = 0
    duplicates: int = 0


def _write(raw: Raw, reader: Format, name: str, file: IO[bytes], rejected: Rejected, progress: Progress) -> _Counts:
    counts, seen = _Counts(), set[str]()

    def counted() -> Iterator[RawRow]:
        for row in itertools.chain.from_iterable(raw_rows(source, raw.seed) for source in raw.sources):
            counts.rows += 1
            progress(name, counts.rows)
            yield row

    for example, line in read_lines(counted(), reader, format_name=name, reject=rejected.add):
        if example.id in seen:
            counts.duplicates += 1
            continue
        seen.add(example.id)
        counts.examples += 1
        file.write(line)
    return counts


def convert_all(
    raw: Raw, plugins: Plugins, folder: Path, progress: Progress, *, instruction: str | None = None
) -> list[Converted]:
    """Write `folder`/FORMAT.jsonl for each installed format that can read the rows; return the reasons of the others.

    Raises:
        UsageError: an input does not exist, or an output would overwrite one.
    """
    names = plugins.names(FormatSpec.kind)
    outputs = {name: folder / f"{name}{SUFFIX}" for name in names}
    _check_places(raw, list(outputs.values()))
    results = []
    for name, output in outputs.items():
        try:
            reader = make_format(plugins.get(FormatSpec, name), {}, instruction=instruction)
        except UsageError as error:  # a conflict of names, a missing package, a required option
            results.append(Converted(format=name, output=None, reason=str(error)))
            continue
        try:
            results.append(convert(raw, reader, name, output, progress, keep_rejected=False))
        except (CannotReadError, FormatFailedError) as error:
            results.append(Converted(format=name, output=None, reason=str(error)))
    return results


def _check_enough(raw: Raw, counts: _Counts, rejected: Rejected) -> None:
    trouble = rejected.too_many(counts.rows, raw.max_rejected, key="--max-rejected")
    if trouble is None and not counts.examples:
        # All rows may be rejected, rows may give no example, or the fraction may select no row.
        first = f"; the first rejected row: {rejected.first}" if rejected.count else ""
        trouble = f"nothing to write: {counts.rows} rows gave no examples{first}"
    if trouble is not None:
        raise CannotReadError(trouble)


def _rejected_file(output: Path) -> Path:
    return output.with_name(f"{output.name.removesuffix(SUFFIX)}.rejected{SUFFIX}")


def _settle(rejected: Rejected, file: Path) -> None:
    """Move the rejected rows to their file, or remove an older such file."""
    if not rejected.count:
        file.unlink(missing_ok=True)
        return
    with rejected.path.open("rb") as written:
        os.fsync(written.fileno())
    rejected.path.replace(file)
    files.sync_folder(file.parent)


def _check_places(raw: Raw, outputs: Sequence[Path]) -> None:
    """Check that there is something to read and that the outputs can be written, before doing either."""
    inputs = {file.resolve() for source in raw.sources for file in source_files(source)}
    for output in outputs:
        if not output.name.endswith(SUFFIX):
            raise UsageError(
                f"{output}: the output is JSONL (one example per line): choose a name that ends with {SUFFIX}"
            )
        for place in (output, _rejected_file(output)):
            if why := why_no_file(place):
                raise UsageError(f"{place} {why}: choose another output")
        taken = next((file for file in (output, _rejected_file(output)) if file.resolve() in inputs), None)
        if taken is not None:
            raise UsageError(f"{taken} is one of the inputs and would be overwritten: choose another output")
