"""Chat templates: the built-in ones, and the sandbox in which any template runs.

Jinja2 is imported when the first template is compiled, so that a run.toml can be checked without it.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.records import Message
from modelwright.core.api.wording import one_line
from modelwright.core.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import jinja2
    import jinja2.nodes
    import jinja2.parser

# The date that `strftime_now` gives a template: the same in training, evaluation and serving, on any day.
PINNED_DATE = datetime(2026, 1, 1, tzinfo=UTC)

# An assistant's content is trimmed, so that the newline before it is a token of its own in the prompt and in training.
CHATML = """\
{%- if tools %}{{ raise_exception('chatml shows no tools; choose another chat_template') }}{% endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- raise_exception('chatml shows no tool calls; choose another chat_template') }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set thinking = (message.reasoning_content or message.thinking or '') | trim %}
        {%- if thinking %}{{ '<think>\\n' + thinking + '\\n</think>\\n\\n' }}{% endif %}
        {{- message.content | trim }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

BUILT_IN: Mapping[str, str] = {"chatml": CHATML}


class TemplateRefusedError(ModelwrightError):
    """A conversation or text cannot be rendered: the template refuses it, or it is not valid text."""


def read_template(name_or_path: str) -> str:
    """The text of a chat template: a built-in one by its name, or the content of a file.

    Raises:
        UsageError: it is neither, or the text is not a template.
    """
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    try:
        # As bytes: reading as text would change line ends, and with them the fingerprint.
        text = Path(name_or_path).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"chat_template {name_or_path!r} is neither built in ({', '.join(sorted(BUILT_IN))}) "
            f"nor a file that can be read: {reason}"
        ) from error
    ChatTemplate(text, name_or_path)
    return text


def without_opening(source: str, opening: str, shared: str) -> str:
    """The text of a template whose generation prompts end in `shared` alone instead of `opening` and `shared`."""
    end, kept = (json.dumps(text, ensure_ascii=False) for text in (opening + shared, shared))
    # The newline after a block tag is removed when the template is read, and so is the last newline of a template.
    return (
        f"{{% set served %}}\n{source.removesuffix(chr(10))}{{% endset %}}"
        f"{{{{ served[:-{len(opening + shared)}] + {kept} if add_generation_prompt and served.endswith({end}) "
        f"else served }}}}"
    )


def with_end(source: str, end: str) -> str:
    """The text of a template that puts the token `end` after a conversation's last answer."""
    answered = "messages and messages[-1].role == 'assistant' and not add_generation_prompt"
    return f"{source.removesuffix(chr(10))}{{{{ {json.dumps(end, ensure_ascii=False)} if {answered} else '' }}}}"


def template_message(message: Message) -> dict[str, Any]:
    """A message as templates read it: no keys for missing fields, thinking under both usual names, calls parsed.

    Raises:
        TemplateRefusedError: its tool calls are not a JSON array.
    """
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        values["reasoning_content"] = values["thinking"] = message.thinking
    if message.tool_calls is not None:
        values["tool_calls"] = [_parsed_call(call) for call in parse_array(message.tool_calls, "tool_calls")]
    if message.tool_call_id is not None:
        values["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        values["name"] = message.name
    return values


def parse_array(text: str, what: str) -> list[Any]:
    """Parse a JSON array.

    Raises:
        TemplateRefusedError: `text` is not a JSON array.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise TemplateRefusedError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, list):
        raise TemplateRefusedError(f"{what} must be a JSON array, not {text!r:.60}")
    return value


def _parsed_call(call: Any) -> Any:
    """A call with its arguments as an object, as templates expect; OpenAI writes them as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call  # Not JSON: the template shows the text unchanged.
    return {**call, "function": {**function, "arguments": arguments}}


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: its text.
        where: the file that it is in, for messages.

    Attributes:
        source: its text.
        date: the date that it gets, in ISO 8601; None if it does not ask for one.
    """

    def __init__(self, source: str, where: object = None) -> None:
        self.source = source
        self.date = PINNED_DATE.date().isoformat() if "strftime_now" in source else None
        prefix = "" if where is None else f"{where}: "
        try:
            self._template = _environment().from_string(source)
            self._globals = dict(self._template.globals)
        except require("jinja2").TemplateSyntaxError as error:
            reason = f"line {error.lineno}: {' '.join((error.message or '').split()).removesuffix('.')}"
            raise UsageError(f"{prefix}the chat template cannot be read, {reason}; fix it there") from error
        except (SyntaxError, RecursionError) as error:  # from compiling it to Python
            reason = f"{one_line(error)}; reduce its nesting"
            raise UsageError(f"{prefix}the chat template cannot be read: {reason}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None,
        special: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> str:
        """The conversation as text.

        Args:
            messages: from `template_message`.
            tools: JSON schemas of the available tools.
            special: the tokenizer's special tokens by name, such as "bos_token".
            add_generation_prompt: whether the text ends where an assistant's answer begins.

        Raises:
            TemplateRefusedError: the template raised an error; the message has its text.
        """
        try:
            given: dict[str, Any] = {"messages": messages, "tools": tools, "documents": None}
            given["add_generation_prompt"] = add_generation_prompt
            # As `Template.render`, but without building a chain of dictionaries from the globals each time.
            context = self._template.new_context({**self._globals, **special, **given}, shared=True)
            return "".join(self._template.root_render_func(context))
        except require("jinja2").TemplateError as error:
            raise TemplateRefusedError(f"the chat template refuses this conversation: {one_line(error)}") from error
        except Exception as error:  # a template is a program and can fail in any way
            kind = type(error).__name__
            raise TemplateRefusedError(
                f"the chat template fails on this conversation: {kind}: {one_line(error)}"
            ) from error


@functools.cache
def _environment() -> jinja2.Environment:
    """The same sandbox as in transformers, except for the date."""
    sandbox, ext, exceptions = require("jinja2.sandbox"), require("jinja2.ext"), require("jinja2.exceptions")

    def raise_exception(message: str) -> None:
        raise exceptions.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc,name-defined]
        def getattr(self, obj: Any, attribute: str) -> Any:
            # A missing attribute of a dictionary is a key; Jinja finds it by two exceptions, which is slow.
            if type(obj) is not dict or hasattr(dict, attribute):
                return super().getattr(obj, attribute)
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)

    environment: jinja2.Environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(ext.Extension), ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = PINNED_DATE.strftime
    return environment


def _generation_tag(extension: Any) -> Any:
    """The block `{% generation %}`, with which some templates mark trained text; here it only renders its content."""

    class GenerationTag(extension):  # type: ignore[misc]
        tags = frozenset({"generation"})

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            nodes = require("jinja2.nodes")
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            block: jinja2.nodes.Node = nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)
            return block

        def _content(self, caller: Callable[[], str]) -> str:
            return caller()

    return GenerationTag
