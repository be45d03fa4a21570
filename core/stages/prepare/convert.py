"""Raw rows to a file of examples, without a run: what `modelwright prepare --format` and `--all-formats` do."""

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
from modelwright.core.config import ConfigError, Problem, SourceConfig
from modelwright.core.config.errors import Invalid, dotted, printable, quoted
from modelwright.core.config.paths import Written
from modelwright.core.config.structure import attributes_of, structure
from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare.builtin import parse_builtin
from modelwright.core.stages.prepare.examples import FormatFailedError, Rejected, read_lines
from modelwright.core.stages.prepare.sources import RawRow, raw_rows, source_files

SUFFIX = ".jsonl"

Progress = Callable[[str, int], None]


class CannotReadError(ModelwrightError):
    """A format cannot read these rows: too many are rejected, or none gives an example."""


@frozen(kw_only=True)
class Raw:
    """What is converted.

    Attributes:
        sources: where the rows are; limit and fraction are each source's.
        seed: of the fraction.
        max_rejected: the share of rows, 0 to 1, that may be unreadable.
    """

    sources: Sequence[SourceConfig]
    seed: int
    max_rejected: float


@frozen(kw_only=True)
class Converted:
    """What became of the rows, with one format.

    Attributes:
        format: its name.
        output: the file; None where the format cannot read the rows.
        rows: that were read.
        examples: that were written.
        duplicates: examples left out because their content was written already.
        rejected: rows that the format cannot read.
        rejected_file: where they are, with their reasons; None where there is none.
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
    """The table of options that several `KEY=VALUE` make, each a line of TOML; a key with dots is one in a table.

    Raises:
        ConfigError: one of them is something else, or a key is given twice.
    """
    problems = []
    for text in texts:
        try:
            tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            key, given, value = text.partition("=")
            hint = f"strings need quotes: --option {shlex.quote(f'{key}={quoted(value)}')}"
            message = f"is no KEY=VALUE in TOML ({error.msg}); {hint if given else 'such as --option limit=5'}"
            problems.append(Problem(source="--option", key=printable(text), message=message))
    if problems:
        raise ConfigError(problems)
    try:
        values = tomli.loads("\n".join(texts))
    except tomli.TOMLDecodeError as error:
        raise ConfigError([Problem(source="--option", message=f"together they are no TOML: {error.msg}")]) from error
    return dict(Written.mark(values, working_directory()))


def given_source(flag: str, path: str, **values: Any) -> SourceConfig:
    """A source from the command line, held to what the same keys of a run.toml are held to.

    Args:
        flag: the one that gave the path, for messages.
        path: a file, glob or folder against the working directory, or `builtin:NAME/SPLIT`.
        values: other keys of `[[data.sources]]`, each given by the flag of its name; None is not given.

    Raises:
        ConfigError: one of them is wrong.
    """
    given = {"path": path} | {key: value for key, value in values.items() if value is not None}
    try:
        return structure(Written.mark(given, working_directory()), SourceConfig)
    except Invalid as error:
        problems = [
            Problem(source=flag if path[0] == "path" else f"--{path[0]}", message=message)
            for path, message in error.findings
        ]
        raise ConfigError(problems) from error


def make_format(spec: FormatSpec, options: Mapping[str, Any], *, instruction: str | None = None) -> Format:
    """A format with plain options, checked against its options class.

    Args:
        spec: the format's descriptor.
        options: as TOML gives them.
        instruction: put into the option of that name.

    Raises:
        ConfigError: an option is wrong; the format has no option `instruction`, or it is given twice.
        MissingDependencyError: the format needs a package that is not installed.
    """
    given = dict(options)
    if instruction is not None:
        known = attributes_of(spec.options)
        if "instruction" not in known:
            there_are = ", ".join(known) or "none"
            message = f"format {spec.name} has no option instruction (it has: {there_are})"
            raise ConfigError([Problem(source="--instruction", message=message)])
        if "instruction" in given:
            raise ConfigError([Problem(source="--instruction", message="--option gives an instruction, too; use one")])
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

    Exact duplicates are left out. Rows that cannot be read go to `NAME.rejected.jsonl` beside `output`; an older such
    file is gone where there are none. A kill leaves the old files or the new.

    Args:
        raw: what to convert.
        reader: the format.
        name: the format's name.
        output: a name that ends with .jsonl, in a folder that is made where it is missing.
        progress: called with the format's name and the number of rows read so far.
        keep_rejected: whether the rejected rows are written also where they are too many.

    Raises:
        CannotReadError: too many rows cannot be read, or no row gives an example.
        FormatFailedError: the format failed in another way than by RowError.
        UsageError: an input is not there, or `output` is no place for the examples.
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
        raise CannotReadError(f"{error}; all are in {rejected_file}") from None
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
    """Write `folder`/FORMAT.jsonl for each installed format that can read the rows; the others say why they cannot.

    Raises:
        UsageError: an input is not there, or an output would take the place of one.
    """
    names = plugins.names(FormatSpec.kind)
    outputs = {name: folder / f"{name}{SUFFIX}" for name in names}
    _check_places(raw, list(outputs.values()))
    results = []
    for name, output in outputs.items():
        try:
            reader = make_format(plugins.get(FormatSpec, name), {}, instruction=instruction)
        except UsageError as error:  # a conflict of names, a missing package, an option that must be given
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
        # Rows that are all allowed to be lost, rows that give nothing, or a fraction that drew no row.
        first = f"; the first is {rejected.first}" if rejected.count else ""
        trouble = f"nothing to write: {counts.rows} rows give no example{first}"
    if trouble is not None:
        raise CannotReadError(trouble)


def _rejected_file(output: Path) -> Path:
    return output.with_name(f"{output.name.removesuffix(SUFFIX)}.rejected{SUFFIX}")


def _settle(rejected: Rejected, file: Path) -> None:
    """Put the rejected rows where they belong, or take an older file of such away."""
    if not rejected.count:
        file.unlink(missing_ok=True)
        return
    with rejected.path.open("rb") as written:
        os.fsync(written.fileno())
    rejected.path.replace(file)
    files.sync_folder(file.parent)


def _check_places(raw: Raw, outputs: Sequence[Path]) -> None:
    """Find out whether there is something to read and a place to write, before either is done."""
    inputs = {
        file.resolve() for source in raw.sources if not parse_builtin(source.path) for file in source_files(source)
    }
    for output in outputs:
        if not output.name.endswith(SUFFIX):
            raise UsageError(
                f"{output}: the output is JSONL, one example a line: give it a name that ends with {SUFFIX}"
            )
        for place in (output, _rejected_file(output)):
            if why := why_no_file(place):
                raise UsageError(f"{place} {why}: give another place for the output")
        taken = next((file for file in (output, _rejected_file(output)) if file.resolve() in inputs), None)
        if taken is not None:
            raise UsageError(f"{taken} is one of the inputs and would be lost: choose another output")
