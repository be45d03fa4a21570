"""Ask an engine for the answers to a whole test set, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from modelwright.core.api.answers import split_thinking
from modelwright.core.api.components import Engine
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.generation import GenerationRequest, Sampling
from modelwright.core.api.records import Example, Output
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config.schema import GenerationConfig
from modelwright.core.stages.evaluate.suites import prompt_messages, seeds

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
    """The outputs of every example, `samples` each, in the order of `examples`; thinking is parted from the answers.

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
        text, finish = "", None
        tokens: list[int] = []
        async with places:
            async for delta in engine.submit(request):
                text += delta.text
                tokens += delta.token_ids
                finish = delta.finish or finish
        if finish is None or finish == "cancelled":
            raise ModelwrightError(f"{source}: the engine ended without an answer")
        finished += 1
        progress(finished // samples)
        thinking, answer = split_thinking(text, inside=renderer.opens_thinking)
        return Output(text=answer, token_ids=tuple(tokens), finish=finish, thinking=thinking)

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
