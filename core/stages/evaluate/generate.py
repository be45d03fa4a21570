"""The answers to a test set: many requests at once, each answer kept in a file and never generated twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from attrs import asdict

from modelwright.core.api import files
from modelwright.core.api.answers import ThinkingSplitter
from modelwright.core.api.components import Engine
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.generation import Answer, Delta, GenerationRequest, Sampling
from modelwright.core.api.records import Example, Output, digest_json
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config.schema import GenerationConfig
from modelwright.core.stages.evaluate.suites import prompt_messages, seeds


class CachedEngine:
    """An engine in front of another one.

    Each finished answer is a line of a file, handed to the system at once: a killed process loses none, and a machine
    without power may lose some, which are generated again. A line that was cut short or damaged is dropped.
    """

    def __init__(self, engine: Engine, path: Path, fingerprint: str) -> None:
        """Read the answers of `path`, if they were given for the same `fingerprint`; otherwise start with none."""
        self.engine = engine
        self.path = path
        self.known = _read(path, fingerprint)
        self._header = {"fingerprint": fingerprint}
        self._file: IO[str] | None = None

    def load(self, folder: Path) -> None:
        """Load a model; the answers must be that model's."""
        self.engine.load(folder)

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Give what is known in one piece, or run the request and remember its answer."""
        key = request_key(request)
        known = self.known.get(key)
        if known is not None:
            yield Delta(text=known["text"], token_ids=tuple(known["token_ids"]), finish=known["finish"])
            return
        answer = Answer()
        async for delta in self.engine.submit(request):
            answer.add(delta)
            if delta.finish and delta.finish != "cancelled":
                self._write({"key": key, "text": answer.text, "token_ids": answer.token_ids, "finish": answer.finish})
            yield delta

    def cancel(self, request_id: str) -> None:
        """End a request early."""
        self.engine.cancel(request_id)

    def close(self) -> None:
        """Close the file; the engine goes on to other suites."""
        if self._file is not None:
            self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._opened()
        self._file.write(files.json_line(value))
        self._file.flush()

    def _opened(self) -> IO[str]:
        if self.known:
            with self.path.open("r+b") as earlier:
                earlier.truncate(_whole(self.path))
            return self.path.open("a", encoding="utf-8")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("w", encoding="utf-8")
        file.write(files.json_line(self._header))
        return file


def request_key(request: GenerationRequest) -> str:
    """What an answer depends on, but for the model."""
    return digest_json([request.prompt, asdict(request.sampling), sorted(request.stop_token_ids)])


def _whole(path: Path) -> int:
    """How many bytes of a file are whole lines."""
    return path.read_bytes().rfind(b"\n") + 1


def _read(path: Path, fingerprint: str) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    lines = list(files.appended_tables(path.read_bytes()))
    if not lines or lines[0].get("fingerprint") != fingerprint:
        return {}
    return {line["key"]: line for line in lines[1:] if line.keys() >= {"key", "text", "token_ids", "finish"}}


# More than an engine runs at once, so that it never waits for us; few enough that stopping is quick.
IN_FLIGHT = 128


async def generate(
    engine: Engine,
    renderer: Renderer,
    examples: Sequence[Example],
    *,
    settings: GenerationConfig,
    samples: int,
    seed: int,
    context: int | None,
    progress: Callable[[int], None],
) -> list[tuple[Output, ...]]:
    """The outputs of every example, `samples` each, in the order of `examples`, with the thinking separated.

    Args:
        engine: a loaded engine.
        renderer: the model's own.
        examples: the test set.
        settings: how to sample.
        samples: answers for each example.
        seed: the run's; each sample derives its own from it.
        context: the model's context in tokens; `max_tokens` shrinks to what a prompt leaves of it. None: no limit.
        progress: called with the number of finished examples; may raise to stop.

    Raises:
        ModelwrightError: a prompt does not fit into the context.
    """
    places = asyncio.Semaphore(IN_FLIGHT)
    finished = 0

    async def one(request: GenerationRequest, source: str) -> Output:
        nonlocal finished
        answer = Answer(splitter=ThinkingSplitter(inside=renderer.opens_thinking))
        async with places:
            async for delta in engine.submit(request):
                answer.add(delta)
        if answer.finish in (None, "cancelled"):
            raise ModelwrightError(f"{source}: the engine ended without an answer")
        finished += 1
        progress(finished // samples)
        return answer.output()

    def requests(number: int, example: Example) -> Iterator[GenerationRequest]:
        prompt = renderer.prompt(prompt_messages(example), tools=example.tools)
        room = settings.max_tokens if context is None else context - len(prompt)
        if room < 1:
            raise ModelwrightError(
                f"{example.source}: the prompt has {len(prompt)} tokens, and the model's context is {context}"
            )
        for sample, sample_seed in enumerate(seeds(example, samples, seed)):
            sampling = Sampling(
                max_tokens=min(settings.max_tokens, room),
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                stop=settings.stop,
                seed=sample_seed,
            )
            yield GenerationRequest(
                id=f"{number}-{sample}", prompt=prompt, sampling=sampling, stop_token_ids=renderer.stop_token_ids
            )

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                [group.create_task(one(request, example.source)) for request in requests(number, example)]
                for number, example in enumerate(examples)
            ]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [tuple(task.result() for task in each) for each in tasks]
