"""Tokenizer folders in Hugging Face layout: reading, checking and writing them."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from modelwright.core.api.errors import UsageError
from modelwright.core.api.files import write_json, write_text
from modelwright.core.api.records import digest_json
from modelwright.core.api.wording import one_line
from modelwright.core.chat.templates import ChatTemplate
from modelwright.core.extras import require

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SPECIAL_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"


@frozen(kw_only=True)
class TokenizerFiles:
    """The content of a tokenizer's folder.

    Attributes:
        model: the text of tokenizer.json.
        config: tokenizer_config.json without the template, and with the tokens that special_tokens_map.json adds.
        template: the chat template, if there is one.
        template_file: the file that it is in, if it is the folder's own.
    """

    model: str = field(repr=False)
    config: Mapping[str, Any]
    template: str | None = field(default=None, repr=False)
    template_file: Path | None = field(default=None, repr=False, eq=False)

    @classmethod
    def read(cls, folder: Path, *, template: str | None = None) -> TokenizerFiles:
        """Read a folder; `template` replaces its own.

        Raises:
            UsageError: tokenizer.json is missing, or a file cannot be read.
        """
        if not (folder / TOKENIZER).is_file():
            raise UsageError(
                f"{folder} has no {TOKENIZER}: convert a tokenizer of another kind with "
                "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            )
        config, file = dict(_read_object(folder / CONFIG)), None
        if "added_tokens_decoder" not in config:  # As in transformers: the older file is read only then.
            config |= _read_object(folder / SPECIAL_MAP)
        own = config.pop("chat_template", None)
        if template is None:
            template, file = _template_of(folder, own)
        model = _complete(_read(folder / TOKENIZER), config, folder / TOKENIZER)
        return cls(model=model, config=config, template=template, template_file=file)

    def write(self, folder: Path) -> None:
        """Write a folder that `read` and transformers read alike, and remove the files of an older tokenizer in it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SPECIAL_MAP, ADDED_TOKENS, TEMPLATE):
            (folder / name).unlink(missing_ok=True)
        write_text(folder / TOKENIZER, self.model)
        write_json(folder / CONFIG, dict(self.config))
        if self.template is not None:
            write_text(folder / TEMPLATE, self.template)

    def special(self) -> dict[str, str]:
        """The named special tokens, such as {"eos_token": "</s>"}."""
        named = {key: _content(value) for key, value in self.config.items() if key.endswith("_token")}
        return {key: value for key, value in named.items() if isinstance(value, str)}

    def digest(self) -> str:
        """The sha256 of the tokenizer's content, without truncation and padding, which are up to the caller."""
        tree = json.loads(self.model)
        return digest_json({key: value for key, value in tree.items() if key not in ("truncation", "padding")})


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} must contain a JSON object, not a {type(value).__name__}")
    return value


def _content(token: Any) -> Any:
    """A token's text; files have it as a string or as an object with flags."""
    return token.get("content") if isinstance(token, dict) else token


def check_template(folder: Path) -> None:
    """Check that a folder's own chat template, if there is one, can be used.

    Raises:
        UsageError: it cannot be used.
    """
    template, file = _template_of(folder, _read_object(folder / CONFIG).get("chat_template"))
    if template is not None:
        ChatTemplate(template, file)


def _template_of(folder: Path, own: Any) -> tuple[str | None, Path]:
    """The folder's template and its file: chat_template.jinja, else the config's, a text or a list of named ones."""
    if (folder / TEMPLATE).is_file():
        return _read(folder / TEMPLATE), folder / TEMPLATE
    if own is None or isinstance(own, str):
        return own, folder / CONFIG
    try:
        named = {entry["name"]: entry["template"] for entry in own}
    except (TypeError, KeyError) as error:
        raise UsageError(
            f"{folder / CONFIG}: chat_template must be a string, or a list of names and templates"
        ) from error
    if not isinstance(named.get("default"), str):
        raise UsageError(f"{folder / CONFIG} has chat templates {', '.join(map(repr, named))} but no 'default'")
    return str(named["default"]), folder / CONFIG


def load_tokenizer(model: str, where: object = TOKENIZER) -> Tokenizer:
    """Build a tokenizer from the text of tokenizer.json, without truncation and padding.

    Raises:
        UsageError: the text is not a tokenizer.
    """
    library = require("tokenizers")
    try:
        tokenizer: Tokenizer = library.Tokenizer.from_str(model)
    except Exception as error:  # the library raises plain Exceptions
        raise UsageError(f"{where} is not a tokenizer: {one_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _complete(model: str, config: Mapping[str, Any], where: Path) -> str:
    """Add the tokens that only the config has, as transformers does when it loads a folder."""
    tokenizer = load_tokenizer(model, where)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    try:
        missing = _declared(config, added)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UsageError(
            f"{where.with_name(CONFIG)}: cannot read its tokens: expected added_tokens_decoder to map ids to tokens, "
            'such as {"0": {"content": "<s>"}}, and each …_token to be a string or a token; copy the file again'
        ) from error
    if not missing:
        return model
    tokenizer.add_tokens(missing)
    return str(tokenizer.to_str())


def _declared(config: Mapping[str, Any], added: Container[str]) -> list[Any]:
    """The tokens of a tokenizer_config.json that are not among the added ones."""
    declared = config.get("added_tokens_decoder") or {}
    wanted = [dict(declared[number]) for number in sorted(declared, key=int)]
    named = [value for key, value in config.items() if key.endswith("_token")]
    wanted += [{**(value if isinstance(value, dict) else {"content": value}), "special": True} for value in named]
    make, flags = require("tokenizers").AddedToken, ("single_word", "lstrip", "rstrip", "normalized", "special")
    missing: dict[str, Any] = {}
    for token in wanted:
        content = token.get("content")
        if isinstance(content, str) and content and content not in added:
            missing.setdefault(content, make(content, **{key: token[key] for key in flags if key in token}))
    return list(missing.values())
