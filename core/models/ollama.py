"""Ollama's Modelfile: the chat template as Ollama's Go template, the tokens to stop at, and sampling parameters.

Ollama does not run chat templates of Hugging Face. Most of them only put fixed texts around each message; these texts
are found by rendering conversations with marked messages,

    template rendering    <|im_start|>system⏎S<|im_end|>⏎<|im_start|>user⏎U<|im_end|>⏎<|im_start|>assistant⏎
    fixed texts           └─before──────────┘ └─after──┘└─before───────┘ └─generation──────────────────────┘

and the template that is made of them is checked on longer conversations. One that writes anything else is refused.
https://docs.ollama.com/modelfile has the instructions, https://docs.ollama.com/template the variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.errors import UsageError
from modelwright.core.api.hf_folder import CONFIG, context_length
from modelwright.core.api.records import Message
from modelwright.core.chat.renderer import Renderer, TemplateRefusedError
from modelwright.core.models.finishing import GENERATION_CONFIG
from modelwright.core.models.gguf_export import begins

# Ollama's own default cuts long conversations without a word; a larger one costs memory.
_LONGEST_CONTEXT = 8192
# Ollama's names for the settings of generation_config.json.
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
# Ollama samples with others where a Modelfile is silent: temperature 0.8, top_k 40, top_p 0.9, repeat_penalty 1.1.
_NEUTRAL = {"temperature": 1, "top_p": 1, "top_k": 0, "repeat_penalty": 1}
_S, _U, _A = "SYSTEM-TEXT", "USER-TEXT", "ANSWER-TEXT"


@frozen(kw_only=True)
class Fixed:
    """The texts that a template puts around messages.

    Attributes:
        begin: before the first message.
        default: the system message that the template writes if there is none; None if it writes nothing.
        system: before and after a system message; None if the template refuses one.
        user: before a user's message; what follows it belongs to the next.
        assistant: before and after an answer.
        generation: after the last user's message.
    """

    begin: str
    default: str | None
    system: tuple[str, str] | None
    user: str
    assistant: tuple[str, str]
    generation: str

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, as Ollama makes it from `go_template`."""
        if self.default is not None and messages[0].role != "system":
            messages = (Message(role="system", content=self.default), *messages)
        around = {"system": self.system or ("", ""), "user": (self.user, ""), "assistant": self.assistant}
        parts = [f"{around[each.role][0]}{each.content}{around[each.role][1]}" for each in messages]
        return f"{self.begin}{''.join(parts)}{self.generation}"

    def go_template(self) -> str:
        """The template in Go, without `begin`: it is left to the tokenizer, or added by the caller."""
        parts = [("user", self.user, ""), ("assistant", *self.assistant)]
        if self.system is not None:
            parts.insert(0, ("system", *self.system))
        branches = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}'
            + (
                f"{{{{ if not $last }}}}{_literal(after)}{{{{ end }}}}"
                if role == "assistant" and after
                else _literal(after)
            )
            for role, before, after in parts
        )
        return (
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ "
            f'{branches}{{{{ end }}}}{{{{ if and $last (ne .Role "assistant") }}}}{_literal(self.generation)}'
            "{{ end }}{{ end }}"
        )


def write_modelfile(folder: Path, out: Path, gguf: str, name: str, note: Any) -> None:
    """Write a model's Modelfile.

    Args:
        folder: the model in Hugging Face layout.
        out: the file.
        gguf: the name of the GGUF file beside it.
        name: the model's address, for messages and a comment.
        note: receives a sentence for the user about what Ollama's template leaves out.

    Raises:
        UsageError: the model has no chat template, or one that writes more than fixed texts around messages.
    """
    renderer = Renderer.from_folder(folder)
    fixed = fixed_texts(renderer, name)
    note("Ollama's template has neither tools nor separate thinking; conversations without them get the same prompts")
    if fixed.system is None:
        note("the chat template refuses system messages; Ollama's leaves them out without a word")
    begin = fixed.begin
    bos = renderer.special_ids.get("bos_token")
    if begins(renderer) and bos is not None:
        begin = begin.removeprefix(renderer.spell([bos]))  # Ollama adds it
    lines = [
        f"# {name}, for: ollama create NAME -f Modelfile",
        f"FROM ./{gguf}",
        f'TEMPLATE """{_literal(begin)}{fixed.go_template()}"""',
    ]
    if fixed.default is not None:
        lines.append(f'SYSTEM """{fixed.default}"""')
    lines += [f"PARAMETER stop {_quoted(renderer.spell([stop]))}" for stop in sorted(renderer.stop_token_ids)]
    lines += [f"PARAMETER {key} {value}" for key, value in _parameters(folder).items()]
    files.write_text(out, "\n".join(lines) + "\n")


def fixed_texts(renderer: Renderer, name: str) -> Fixed:
    """The fixed texts of a renderer's chat template, checked on longer conversations.

    Raises:
        UsageError: it has no template, or the template writes something else.
    """
    user, system = Message(role="user", content=_U), Message(role="system", content=_S)
    answer = Message(role="assistant", content=_A)
    try:
        first, generation = _cut(_render(renderer, [user]), (_U,))
        _, between, opened = _cut(_render(renderer, [user, answer, user]), (_U, _A, _U))[:3]
    except (TemplateRefusedError, UsageError, ValueError) as error:
        raise UsageError(f"{name}: no Modelfile can be made of its chat template: {error}") from error
    allowed = _token_starts(renderer, user)
    user_before = _common_end(first, opened, allowed)
    begin, default, around = first.removesuffix(user_before), None, None
    try:
        before, middle, _ = _cut(_render(renderer, [system, user]), (_S, _U))
    except (TemplateRefusedError, ValueError):
        pass  # it takes no system message
    else:
        user_before = _common_end(user_before, middle, {at - len(begin) for at in allowed})
        begin, after = first.removesuffix(user_before), middle.removesuffix(user_before)
        if before.startswith(begin):
            around = (before.removeprefix(begin), after)
        elif begin.startswith(before):
            default, around, begin = begin.removeprefix(before).removesuffix(after), (before, after), ""
    fixed = Fixed(
        begin=begin,
        default=default,
        system=around,
        user=user_before,
        assistant=(between, opened.removesuffix(user_before)),
        generation=generation,
    )
    _check(renderer, fixed, name)
    return fixed


def _check(renderer: Renderer, fixed: Fixed, name: str) -> None:
    if '"""' in fixed.go_template() + fixed.begin + (fixed.default or ""):
        raise UsageError(
            f'{name}: its chat template writes """, which ends a text in a Modelfile: export with --to gguf'
        )
    turns = [Message(role=role, content=f"{role} {number}.") for number in range(3) for role in ("user", "assistant")]
    system = [Message(role="system", content="Be brief.\nAlways.")]
    cases = [turns[:1], turns[:3], turns[:5]]
    if fixed.system is not None:
        cases += [system + case for case in cases]
    for case in cases:
        expected = _render(renderer, case)
        if fixed.render(case) != expected:
            at = next((i for i, (a, b) in enumerate(zip(fixed.render(case), expected, strict=False)) if a != b), 0)
            raise UsageError(
                f"{name}: its chat template writes more than fixed texts around messages (a conversation of "
                f"{len(case)} messages differs near {expected[max(at - 20, 0) : at + 20]!r}), which Ollama's template "
                "cannot express: export with --to gguf, and write the Modelfile yourself"
            )


def _render(renderer: Renderer, messages: Sequence[Message]) -> str:
    return renderer.spell(renderer.prompt(messages))


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    """The texts around marks, which have to be there once each, in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError("it does not show every message")
        parts.append(before)
    return [*parts, text]


def _token_starts(renderer: Renderer, question: Message) -> set[int]:
    """The characters of a question's prompt at which tokens begin."""
    pieces = [renderer.spell([number]) for number in renderer.prompt([question])]
    return {0, *itertools.accumulate(map(len, pieces))}


def _common_end(one: str, other: str, allowed: Collection[int]) -> str:
    """The longest text that both end in, and that begins at one of the `allowed` characters of `one`."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    start = len(one) - length
    while start not in allowed and start < len(one):
        start += 1
    return one[start:]


def _literal(text: str) -> str:
    """A text in a Go template, which must not begin an action."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parameters(folder: Path) -> dict[str, Any]:
    settings = files.read_json(folder / GENERATION_CONFIG) or {}
    given = {name: settings[key] for key, name in _PARAMETERS.items() if settings.get(key) is not None}
    found = _NEUTRAL | given
    context = context_length(files.read_json(folder / CONFIG))
    return found | ({"num_ctx": min(context, _LONGEST_CONTEXT)} if context else {})
