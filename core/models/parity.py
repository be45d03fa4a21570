"""Parity: another tool, given an export, must read the same tokens and answer the same as this library.

Both sides get the same twenty conversations:

    messages ──► this renderer ──► ids ──► engine torch ──► greedy answer, log-probabilities
        │                           ├ equal? │                        ├ within the tolerance?
        └──────► the other tool ──► ids      └► the other tool ──► greedy answer, log-probabilities

The other tool answers this library's ids, so that a difference in tokens and one in numbers are told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from modelwright.core.api.components import Engine, EngineSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.generation import Answer, GenerationRequest, Sampling
from modelwright.core.api.records import Message
from modelwright.core.api.registry import ModelVersion
from modelwright.core.chat.renderer import Renderer, TemplateRefusedError
from modelwright.core.extras import check_installed
from modelwright.core.models import peers
from modelwright.core.models.adapters import quietly
from modelwright.core.models.hf_folder import folder_context
from modelwright.core.models.peers import Peer, PeerError, Prompt, Reply

if TYPE_CHECKING:
    from modelwright.core.plugins import Plugins

# Tokens of each answer.
MOST = 16
# The longest of the conversations has about 400 tokens.
_CONTEXT = 2048
_TYPED = "a typed control token"
# Tokens shown on each side of the one where two sides part.
_SHOWN = 4
# What may differ in a date that a template writes: another month is another word, a second digit one more token.
_DATE_PARTS, _DIGITS = re.compile(r"[\w\s.,/:-]{1,40}"), re.compile(r"\s?\d{1,4}")
# In a table of tokens, where an answer ended.
_END = -1


@frozen(kw_only=True)
class Tool:
    """A tool that an export can be verified in.

    Attributes:
        name: as users write it.
        program: what is started; None if it runs in this process.
        option: by which a user names the program.
        reads_gguf: whether it takes a GGUF file; if not, a folder in Hugging Face layout.
        open: starts it with an export, a program and a context length.
        tolerances: the largest difference of a token's log-probability, by the export's quantization; None is for
            weights that are not quantized.
    """

    name: str
    program: str | None = None
    option: str = ""
    reads_gguf: bool = False
    open: Callable[[Path, str | None, int], AbstractContextManager[Peer]]
    tolerances: Mapping[str | None, float]


# Measured with SmolLM2-135M-Instruct, 261 tokens: 1.1e-5 in transformers and 2.2e-5 in vLLM, which is the rounding of
# float32 in another order of summation (vLLM has kernels of its own, hence more room); in llama.cpp 0.04 in bfloat16,
# in which it multiplies, and 0.21 in q8_0. A wrong weight, mask or position moves some token by several units.
TOOLS = {
    tool.name: tool
    for tool in (
        Tool(name="transformers", open=peers.transformers, tolerances={None: 1e-3}),
        Tool(name="vllm", program="vllm", option="--vllm", open=peers.vllm, tolerances={None: 1e-2}),
        Tool(
            name="llama.cpp",
            program="llama-server",
            option="--llama-server",
            reads_gguf=True,
            open=peers.llama_cpp,
            tolerances={None: 0.25, "q8_0": 1.0, "q4_k_m": 3.0},
        ),
    )
}


@frozen(kw_only=True)
class Parity:
    """What was found where both sides are equal.

    Attributes:
        tool: the other side.
        conversations: how many both sides got.
        tokens: how many tokens of answers were compared.
        largest: the largest difference of a token's log-probability.
        mean: the mean difference.
        tolerance: the largest that is accepted.
        parted: answers that part where the other side's two tokens are equally likely, within the tolerance.
        left_out: conversations that the template refuses or the context cannot hold.
        own: conversations whose tokens differ on purpose: a control token that a user types is text here and a control
            token there, and a template that writes the date gets a fixed one here.
    """

    tool: str
    conversations: int
    tokens: int
    largest: float
    mean: float
    tolerance: float
    parted: int
    left_out: tuple[str, ...]
    own: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people."""
        parted = f", {self.parted} answers part between equally likely tokens" if self.parted else ""
        left_out = f", {len(self.left_out)} left out ({', '.join(self.left_out)})" if self.left_out else ""
        own = f", {len(self.own)} of them read differently on purpose ({', '.join(self.own)})" if self.own else ""
        return (
            f"same tokens and answers in {self.tool}: {self.conversations} conversations{own}{left_out}; "
            f"log-probabilities of {self.tokens} tokens differ by {self.largest:.2g} at most (accepted: "
            f"{self.tolerance:g}){parted}"
        )


class ParityError(ModelwrightError):
    """The other tool reads or answers a conversation otherwise; the message has both sides' tokens."""


def conversations(control: str) -> tuple[Prompt, ...]:
    """The twenty conversations.

    Args:
        control: the text of a control token, typed by a user in the last one.
    """

    def chat(name: str, *turns: str, system: str | None = None, tools: str | None = None) -> Prompt:
        messages = [Message(role="system", content=system)] if system is not None else []
        for number, content in enumerate(turns):
            messages.append(Message(role="assistant" if number % 2 else "user", content=content))
        return Prompt(name=name, messages=tuple(messages), tools=tools)

    rivers = ("Name a river.", "The Danube.", "Through which capitals does it flow?", "Vienna, Budapest.", "And then?")
    code = 'def mean(xs):\n\treturn sum(xs) / len(xs)  # TODO: empty?\n\nprint(f"{mean([1, 2]):.2f}")\n'
    described = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    return (
        chat("a question", "What is the capital of France?"),
        chat("a system prompt", "Who are you?", system="You are a pirate. Answer in one sentence."),
        chat("two turns", "What is 2 + 3?", "5", "And twice that?"),
        chat("many turns", *rivers, system="Be brief."),
        chat("an empty system prompt", "Say hello.", system=""),
        chat("arithmetic", "Tom has 3 boxes of 12 eggs and breaks 7 of them. How many are whole?"),
        chat("numbers", "Sort: 1,234.50; -7e-3; 0x1F; 007; 99999999999999999999; 3/4; 12:30; 50%"),
        chat("code", f"What is wrong here?\n\n```python\n{code}```"),
        chat("JSON and an address", '{"a": [1, null, true], "b\\n": "https://example.org/?q=1&r=%20#x"}'),
        chat(
            "Markdown and LaTeX",
            "# Title\n\n* **bold** _it_\n* $\\frac{a}{b} \\le \\sqrt{x^2}$\n\n| a | b |\n|--:|:--|",
        ),
        chat("European letters", "Übersetze: „Größe“, naïve façade, Łódź, Ångström, ΑΒΓ, Привет, мир!"),
        chat("Chinese and Japanese", "把这句话翻译成英文: 今天天气很好。 日本語でもお願いします。"),
        chat("right to left", "ترجم: مرحبا بالعالم. שלום עולם 123"),
        chat("emoji and combined characters", "👩‍👩‍👧‍👦 🇫🇷 ❤️ e\u0301 = é? ﬁ ½ \u200b\u00a0|"),
        chat("white space", "  two spaces,\ttab,\r\nline\n\n\n   end  "),
        chat("an empty message", ""),
        chat("one letter", "x", "y", "z"),
        chat("a long text", "Summarize: " + " ".join(f"Item {n} costs {n * n % 97} dollars." for n in range(40))),
        chat("tools", "What is the weather in Oslo?", tools=json.dumps([described])),
        chat(_TYPED, f"What does {control} mean, and {control}\nassistant\nYes?"),
    )


def find_tool(name: str, given: Path | None, version: ModelVersion) -> tuple[Tool, str | None]:
    """A tool that can verify a model, and where its program is.

    Args:
        name: one of `TOOLS`.
        given: the program or its folder, as the user says; None looks on PATH.
        version: the model.

    Raises:
        UsageError: its program or package is missing, or the model is an adapter.
    """
    if version.is_adapter:
        raise UsageError(
            f"{version.address} is an adapter, which can be verified once it is merged into its base (modelwright "
            f"models merge {version.address})"
        )
    tool = TOOLS[name]
    if tool.program is None:
        check_installed("torch", "transformers", what=f"--verify {name}")
    program = peers.find_program(tool.program, given, tool.option) if tool.program else None
    if tool.program and program is None:
        raise UsageError(
            f"--verify {name} needs its program {tool.program}, which is not on PATH: name it with {tool.option} PATH"
        )
    return tool, program


def verify(
    reference: Path,
    export: Path,
    tool: Tool,
    *,
    plugins: Plugins,
    program: str | None = None,
    quantization: str | None = None,
) -> Parity:
    """Compare this library's answers with another tool's.

    Args:
        reference: the model's folder in Hugging Face layout, which the engine torch loads in float32.
        export: what the other tool loads: a folder in Hugging Face layout, or a GGUF file.
        tool: the other side.
        plugins: have the engine.
        program: of the tool.
        quantization: how the export's weights are quantized.

    Raises:
        ParityError: they differ beyond the tolerance, or the tool does not load or answer.
        ModelwrightError: this library cannot load or answer.
    """
    renderer = Renderer.from_folder(reference)
    context = min(folder_context(reference) or _CONTEXT, _CONTEXT)
    prompts, left_out = _rendered(renderer, context)
    if not prompts:
        raise ParityError(f"it cannot be verified: its template or context of {context} tokens fits no conversation")
    with quietly():
        here = asyncio.run(_answers(plugins.get(EngineSpec, "torch"), reference, list(prompts.values()), renderer))
    compared = _Compared(renderer=renderer, tool=tool.name, tolerance=tool.tolerances[quantization])
    try:
        with quietly(), tool.open(export, program, context) as peer:
            for (prompt, ids), ours in zip(prompts.items(), here, strict=True):
                with _naming(prompt):
                    compared.prompt(prompt, ids, peer.tokens(prompt))
                    compared.answer(prompt, ours, peer.answer(ids, MOST))
    except PeerError as error:
        raise ParityError(f"it cannot be verified in {tool.name}: {error}") from error
    return compared.result(len(prompts), left_out)


@contextlib.contextmanager
def _naming(prompt: Prompt) -> Iterator[None]:
    try:
        yield
    except PeerError as error:
        raise PeerError(f'conversation "{prompt.name}": {error}') from error


def _rendered(renderer: Renderer, context: int) -> tuple[dict[Prompt, tuple[int, ...]], tuple[str, ...]]:
    """The prompts that this model can answer, with their tokens, and the names of the others."""
    ends = sorted(renderer.stop_token_ids)
    found: dict[Prompt, tuple[int, ...]] = {}
    left_out = []
    for prompt in conversations(renderer.spell(ends[:1]) if ends else "</s>"):
        shown = prompt
        try:
            if not renderer.has_template:
                shown = Prompt(name=prompt.name, text=prompt.messages[-1].content or "")
                ids = renderer.encode(shown.text)
            else:
                ids = renderer.prompt(prompt.messages, tools=prompt.tools)
                if prompt.tools and ids == renderer.prompt(prompt.messages):
                    ids = ()  # The template does not show tools.
        except TemplateRefusedError:
            ids = ()
        if ids and len(ids) + MOST <= context:
            found[shown] = ids
        else:
            left_out.append(prompt.name)
    return found, tuple(left_out)


async def _answers(
    spec: EngineSpec, folder: Path, prompts: Sequence[tuple[int, ...]], renderer: Renderer
) -> list[Reply]:
    assert spec.options is not None
    engine: Engine = spec.create(spec.options(dtype="float32"))

    async def answer(number: int, ids: tuple[int, ...]) -> Reply:
        request = GenerationRequest(
            id=str(number),
            prompt=ids,
            sampling=Sampling(max_tokens=MOST),
            stop_token_ids=renderer.stop_token_ids,
            logprobs=True,
        )
        whole = Answer()
        async for delta in engine.submit(request):
            whole.add(delta)
        made, ended = whole.token_ids, whole.token_ids[-1] in renderer.stop_token_ids
        steps = [{token: value} for token, value in zip(made, whole.logprobs or (), strict=True)]
        return Reply(ids=tuple(made[:-1] if ended else made), ended=ended, steps=tuple(steps))

    with contextlib.closing(engine):
        engine.load(folder)
        return await asyncio.gather(*(answer(number, ids) for number, ids in enumerate(prompts)))


@frozen(kw_only=True)
class _Compared:
    """The comparison of both sides, conversation by conversation."""

    renderer: Renderer
    tool: str
    tolerance: float
    _differences: list[float] = field(factory=list, init=False)
    _parted: list[str] = field(factory=list, init=False)
    _own: list[str] = field(factory=list, init=False)

    def prompt(self, prompt: Prompt, here: Sequence[int], there: Sequence[int]) -> None:
        """Compare the tokens of a prompt."""
        if tuple(here) == tuple(there):
            return
        if prompt.name == _TYPED or (self.renderer.date is not None and self._differ_in_a_date(here, there)):
            self._own.append(prompt.name)
            return
        at = _first_difference(here, there)
        raise ParityError(
            f"{self.tool} reads other tokens in conversation {prompt.name!r}: {len(here)} here, {len(there)} there, "
            f"and they part at token {at + 1}\n{self._table(here, there, at)}"
        )

    def _differ_in_a_date(self, here: Sequence[int], there: Sequence[int]) -> bool:
        """Whether all that differs are digits and words that replace each other, as dates do."""
        for change, start, end, begin, stop in SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
            texts = [self.renderer.spell(part) for part in (here[start:end], there[begin:stop])]
            pattern = _DATE_PARTS if change == "replace" else _DIGITS
            if change != "equal" and not all(pattern.fullmatch(text) for text in texts if text):
                return False
        return True

    def answer(self, prompt: Prompt, here: Reply, there: Reply) -> None:
        """Compare two answers to the same tokens, up to where they part."""
        ours, theirs = _with_end(here), _with_end(there)
        at = _first_difference(ours, theirs)
        for place, token in enumerate(here.ids[:at]):
            if not there.steps[place]:
                continue
            difference = abs(here.steps[place][token] - there.steps[place].get(token, float("-inf")))
            self._differences.append(difference)
            # Not by `>`, which is false for NaN.
            if not difference <= self.tolerance:
                raise ParityError(
                    f"{self.tool} gives other probabilities in conversation {prompt.name!r}: the log-probability of "
                    f"token {place + 1} of the answer differs by {difference:.2g} (accepted: {self.tolerance:g})\n"
                    f"{self._table(ours, theirs, place)}"
                )
        if ours == theirs:
            return
        is_cut = at == min(len(ours), len(theirs))
        if is_cut or not self._gap(ours[at], theirs[at], here.steps[at], there.steps[at]) <= self.tolerance:
            raise ParityError(
                f"{self.tool} answers otherwise in conversation {prompt.name!r}: the greedy answers part at token "
                f"{at + 1}\n{self._table(ours, theirs, at)}"
            )
        self._parted.append(prompt.name)

    def _gap(self, ours: int, theirs: int, here: Mapping[int, float], step: Mapping[int, float]) -> float:
        """By how much the other side prefers its own token to the one chosen here, in log-probability.

        llama.cpp gives no probabilities of a token that only begins a character. Then it is the least by which the
        token is preferred here to any other: all others share what it leaves of the probability.
        """
        if ours == _END and theirs in self.renderer.stop_token_ids:
            return float("inf")  # It wrote the end, and went on.
        if not step:
            chosen_here = max(here.values())
            return chosen_here - math.log(max(-math.expm1(chosen_here), 1e-30))
        chosen = self.renderer.stop_token_ids if ours == _END else {ours}
        found = [step[token] for token in chosen if token in step]
        return max(step.values()) - max(found) if found else float("inf")

    def _table(self, here: Sequence[int], there: Sequence[int], at: int) -> str:
        """The tokens around a place, side by side."""
        rows: list[tuple[str, ...]] = [("", "token", "here", self.tool)]
        for place in range(max(0, at - _SHOWN), min(max(len(here), len(there)), at + _SHOWN + 1)):
            sides = [self._shown(ids[place]) if place < len(ids) else "" for ids in (here, there)]
            rows.append(("→" if place == at else "", str(place + 1), *sides))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"  {mark:1} {number:>{widths[1]}}  {left:<{widths[2]}}  {right}".rstrip()
            for mark, number, left, right in rows
        )

    def _shown(self, token: int) -> str:
        return "(end)" if token == _END else f"{token} {self.renderer.spell([token])!r}"

    def result(self, count: int, left_out: tuple[str, ...]) -> Parity:
        """What was found.

        Raises:
            ParityError: nothing could be compared.
        """
        if not self._differences and not self._parted:
            raise ParityError(f"it cannot be verified: {self.tool} gives no probabilities of tokens")
        return Parity(
            tool=self.tool,
            conversations=count,
            tokens=len(self._differences),
            largest=max(self._differences, default=0.0),
            mean=sum(self._differences) / max(1, len(self._differences)),
            tolerance=self.tolerance,
            parted=len(self._parted),
            left_out=left_out,
            own=tuple(self._own),
        )


def _with_end(reply: Reply) -> tuple[int, ...]:
    return (*reply.ids, _END) if reply.ended else reply.ids


def _first_difference(here: Sequence[int], there: Sequence[int]) -> int:
    """The first place where they differ; the length of the shorter if it begins the longer."""
    pairs = zip(here, there, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(here), len(there)))
