"""A model card, made from the registry's record: Markdown with the metadata header of the Hugging Face Hub.

The header's keys: https://huggingface.co/docs/hub/model-cards. Names, tags, paths and configuration are
untrusted text: a YAML dumper writes the header with every string in quotes, and the body shows them as code.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import tomli_w

from modelwright.core.api.registry import ModelVersion
from modelwright.core.api.wording import printable
from modelwright.core.registry.compare import flat
from modelwright.core.registry.record import PACKAGE, TELLING

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def model_card(version: ModelVersion) -> str:
    """The card as text that ends with a newline."""
    model = version.model
    lineage = {
        "adapter of": (model.parent or "the base with this digest") if version.is_adapter else None,
        "base": model.base,
        "continues": model.parent,
        "digest": version.digest,
        "fingerprint": model.fingerprint,
    }
    facts = {
        "version": version.address,
        "registered": f"{version.created:%Y-%m-%d %H:%M:%S} UTC",
        **lineage,
        **{f"tag {key}": value for key, value in model.tags.items()},
    }
    sections = [
        f"# {code(version.address)}",
        _table(("", ""), ((code(key), code(value)) for key, value in facts.items() if value)),
        _section("Results", _results(version)),
        _section("Training data", _table(("data", "sha256"), ((code(p), code(d)) for p, d in model.data.items()))),
        _section("Training", _table(("figure", "value"), _pairs(flat(model.training)))),
        _section("Configuration", _configuration(model.config)),
        _section("Environment", _table(("", "version"), _pairs(_environment(version)))),
        _section("Files", _table(("file", "bytes", "sha256"), _files(version))),
        _section("Use", _use(version)),
    ]
    return f"{_header(version)}\n" + "\n\n".join(section for section in sections if section) + "\n"


def _header(version: ModelVersion) -> str:
    from ruamel.yaml import YAML

    model = version.model
    library = "peft" if version.is_adapter else "transformers"
    header: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    # A parent of the form org/name is on the hub; addresses in this registry mean nothing to others.
    hub_id = (model.parent or "").partition("@")[0]
    if _HUB_ID.fullmatch(hub_id):
        header["base_model"] = hub_id
        if version.is_adapter:
            header["base_model_relation"] = "adapter"
    header["tags"] = ["modelwright", *(f"{key}:{value}" for key, value in model.tags.items())]
    datasets = list(dict.fromkeys(PurePosixPath(path).name or path for path in model.data))
    if datasets:
        header["datasets"] = datasets
    if version.metrics:
        header["metrics"] = sorted({metric for figures in version.metrics.values() for metric in figures})
        header["model-index"] = [{"name": model.name, "results": [*_index(version)]}]
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10**9
    stream = io.StringIO()
    yaml.dump(_quoted(header), stream)
    return f"---\n{stream.getvalue()}---\n"


def _quoted(value: Any) -> Any:
    """Put every string of a value in double quotes, so that every reader takes `no` and `1e3` for strings."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) else value


def _index(version: ModelVersion) -> Iterable[dict[str, Any]]:
    for suite, figures in version.metrics.items():
        yield {
            "task": {"type": "text-generation"},
            "dataset": {"type": suite, "name": suite},
            "metrics": [{"type": metric, "name": metric, "value": figure.value} for metric, figure in figures.items()],
        }


def code(value: Any) -> str:
    """A value as inline code on one line, with more backticks around it than it has in a row."""
    text = value if isinstance(value, str) and value and value.isprintable() else json.dumps(value, ensure_ascii=False)
    text = printable(text)
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    padding = " " if text[0] in "` " or text[-1] in "` " else ""
    # A table's cell ends at a bar even inside of code (GitHub Flavored Markdown, section 4.10).
    return f"{fence}{padding}{text}{padding}{fence}".replace("|", "\\|")


def block(language: str, text: str) -> str:
    """A code block, fenced by more backticks than the text has in a row."""
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *lines]) if lines else ""


def _pairs(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ((code(key), code(value)) for key, value in values.items() if value is not None)


def _results(version: ModelVersion) -> str:
    rows = [
        (code(suite), code(metric), f"{figure.value:.4g}", f"{figure.low:.4g} to {figure.high:.4g}", str(figure.n))
        for suite, figures in version.metrics.items()
        for metric, figure in figures.items()
    ]
    return _table(("test set", "metric", "value", "95 % interval", "examples"), rows)


def _configuration(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    return block("toml", printable(tomli_w.dumps(_without_null(config)), keep="\n\t"))


def _without_null(value: Any) -> Any:
    """TOML has no null: a key without a value is left out, an element of an array is an empty text."""
    if isinstance(value, Mapping):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return ["" if item is None else _without_null(item) for item in value]
    return value


def _environment(version: ModelVersion) -> dict[str, str]:
    recorded = version.model.environment
    found = {"modelwright": version.model.code_version} if version.model.code_version else {}
    found |= {key: recorded[key] for key in ("python", "platform") if key in recorded}
    return found | {name: recorded[PACKAGE + name] for name in TELLING if PACKAGE + name in recorded}


def _files(version: ModelVersion) -> Iterable[tuple[str, str, str]]:
    return ((code(file.path), str(file.size), code(file.sha256)) for file in version.files)


def _use(version: ModelVersion) -> str:
    serve = f"modelwright models import FOLDER\nmodelwright serve {version.name}\nmodelwright chat"
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    )
    where = "FOLDER is the folder that this model was exported to (`modelwright models export`)"
    if version.is_adapter:
        where += f", BASE the folder of its base, whose digest is {code(version.model.base)}"
        load = (
            "from peft import PeftModel\nfrom transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
            'base = AutoModelForCausalLM.from_pretrained("BASE")\n'
            'rows = AutoConfig.from_pretrained("FOLDER").get_text_config().vocab_size\n'
            "base.resize_token_embeddings(rows)  # has an effect only if tokens were added\n"
            'model = PeftModel.from_pretrained(base, "FOLDER")'
        )
    return f"{where}.\n\n{block('bash', serve)}\n\n{block('python', load)}"
