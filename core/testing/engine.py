"""What every engine must do, as tests that an engine's author subclasses.

    # test_my_engine.py
    from modelwright.core.testing.engine import EngineContract

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def spec(self):
            return MY_SPEC

        @pytest.fixture
        def engine(self, model_folder):
            engine = MyEngine(MyOptions())
            engine.load(model_folder)
            yield engine
            engine.close()

        @pytest.fixture
        def prompt(self):
            return (5, 3, 8)

        @pytest.fixture
        def decode(self, model_folder):
            return Tokenizer.from_file(str(model_folder / "tokenizer.json")).decode

The model may be tiny and random. The tests whose ability the spec does not claim are skipped.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest

from modelwright.core.api.components import Engine, EngineSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.generation import Answer, Delta, GenerationRequest, Sampling
from modelwright.core.api.records import Output

T = TypeVar("T")
Prompt = tuple[int, ...]

# Seconds after which a test of an engine that hangs fails.
PATIENCE = 60.0

_ids = (f"contract-{number}" for number in itertools.count())


def request(prompt: Sequence[int], **changes: Any) -> GenerationRequest:
    """A request with an id of its own; what belongs to `Sampling` goes there, the rest to the request."""
    own: dict[str, Any] = {key: changes.pop(key) for key in ("id", "stop_token_ids", "logprobs") if key in changes}
    own.setdefault("id", next(_ids))
    changes.setdefault("max_tokens", 12)
    return GenerationRequest(prompt=tuple(prompt), sampling=Sampling(**changes), **own)


def join(deltas: Sequence[Delta]) -> Output:
    """The output that a whole stream makes; fails unless the last delta, and it alone, has `finish`."""
    assert deltas, "a stream must have a delta"
    assert deltas[-1].finish is not None, "the last delta must have finish"
    assert all(delta.finish is None for delta in deltas[:-1]), "only the last delta may have finish"
    answer = Answer()
    for delta in deltas:
        answer.add(delta)
    return answer.output()


async def collect(stream: AsyncIterator[Delta]) -> Output:
    """Read a stream to its end."""
    return join([delta async for delta in stream])


def patiently(work: Awaitable[T]) -> T:
    """Run in an event loop, at most `PATIENCE` seconds."""

    async def wait() -> T:
        return await asyncio.wait_for(work, PATIENCE)

    return asyncio.run(wait())


def run_all(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Output]:
    """Submit all requests at once and read all streams to their ends."""

    async def gather() -> list[Output]:
        return await asyncio.gather(*(collect(engine.submit(request)) for request in requests))

    return patiently(gather())


class EngineContract:
    """The tests. A subclass gives the four fixtures that raise here."""

    @pytest.fixture
    def spec(self) -> EngineSpec:
        """The engine's descriptor."""
        raise NotImplementedError

    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        """An engine with a model loaded, closed after the test; its context holds 200 tokens or more."""
        raise NotImplementedError

    @pytest.fixture
    def prompt(self) -> Prompt:
        """Tokens of the model that it continues by 12 tokens or more when greedy, if nothing stops it."""
        raise NotImplementedError

    @pytest.fixture
    def decode(self) -> Callable[[Sequence[int]], str]:
        """From generated tokens to their text, special tokens skipped."""
        raise NotImplementedError

    @pytest.fixture
    def able(self, spec: EngineSpec) -> Callable[..., None]:
        """Skip a test whose abilities the engine does not claim."""

        def check(*abilities: str) -> None:
            missing = set(abilities) - spec.abilities
            if missing:
                pytest.skip(f"engine {spec.name} does not claim {', '.join(sorted(missing))}")

        return check

    def test_greedy_output_is_repeatable(self, engine: Engine, prompt: Prompt) -> None:
        """The same prompt at temperature 0 gives the same output, alone and beside others."""
        alone = run_all(engine, [request(prompt)])[0]
        together = run_all(engine, [request(prompt), request(prompt[:1]), request(prompt * 3), request(prompt)])
        assert together[0] == together[3] == alone

    def test_max_tokens_ends_with_length(self, engine: Engine, prompt: Prompt) -> None:
        """A request that nothing else stops ends at max_tokens with finish "length"."""
        for limit in (1, 5):
            output = run_all(engine, [request(prompt, max_tokens=limit)])[0]
            assert (len(output.token_ids), output.finish) == (limit, "length")

    def test_texts_join_to_the_decoding(
        self, engine: Engine, prompt: Prompt, decode: Callable[[Sequence[int]], str]
    ) -> None:
        """The deltas' texts, joined, are the decoding of all generated tokens."""
        output = run_all(engine, [request(prompt)])[0]
        assert output.text == decode(output.token_ids)

    def test_stop_token_ends_and_is_no_text(
        self, engine: Engine, prompt: Prompt, decode: Callable[[Sequence[int]], str]
    ) -> None:
        """Generation ends at a stop token with finish "stop"; the text is that of the tokens before it."""
        tokens = run_all(engine, [request(prompt)])[0].token_ids
        stop = tokens[4]
        output = run_all(engine, [request(prompt, stop_token_ids=frozenset({stop}))])[0]
        assert output.finish == "stop"
        assert output.text == decode(tokens[: tokens.index(stop)])

    def test_stop_text_is_cut(self, engine: Engine, prompt: Prompt, able: Callable[..., None]) -> None:
        """Generation ends where a stop text first occurs; neither it nor what follows is given."""
        able("stop")
        text = run_all(engine, [request(prompt)])[0].text
        stop = text[len(text) // 2 :][:3]
        output = run_all(engine, [request(prompt, stop=(stop,))])[0]
        assert (output.text, output.finish) == (text[: text.index(stop)], "stop")

    def test_seed_repeats_runs_beside(self, engine: Engine, prompt: Prompt, able: Callable[..., None]) -> None:
        """A seed gives the same sample alone and in company; other seeds give other samples."""
        able("temperature", "seed")
        alone = run_all(engine, [request(prompt, temperature=1.5, seed=3)])[0]
        seeds = [request(prompt, temperature=1.5, seed=seed) for seed in (1, 2, 3, 4)]
        together = run_all(engine, [request(prompt * 2), *seeds, request(prompt[:1])])
        assert together[3] == alone
        assert len({output.token_ids for output in together[1:5]}) > 1

    def test_top_k_of_one_is_greedy(self, engine: Engine, prompt: Prompt, able: Callable[..., None]) -> None:
        """With top_k = 1 there is nothing to choose from, however hot."""
        able("temperature", "top_k")
        greedy, hot = run_all(engine, [request(prompt), request(prompt, temperature=2.0, top_k=1)])
        assert hot.token_ids == greedy.token_ids

    def test_tiny_top_p_is_greedy(self, engine: Engine, prompt: Prompt, able: Callable[..., None]) -> None:
        """The likeliest token alone reaches a tiny top_p."""
        able("temperature", "top_p")
        greedy, hot = run_all(engine, [request(prompt), request(prompt, temperature=2.0, top_p=1e-6)])
        assert hot.token_ids == greedy.token_ids

    def test_logprobs_one_a_token(self, engine: Engine, prompt: Prompt, able: Callable[..., None]) -> None:
        """A request with log-probabilities gets one a token, finite and at most 0; others get none."""
        able("logprobs")
        shown, silent = run_all(engine, [request(prompt, logprobs=True), request(prompt)])
        assert shown.logprobs is not None
        assert len(shown.logprobs) == len(shown.token_ids)
        assert all(math.isfinite(value) and value <= 0 for value in shown.logprobs)
        assert silent.logprobs is None

    def test_cancel_ends_the_stream(self, engine: Engine, prompt: Prompt) -> None:
        """Cancelling by id ends a stream early with finish "cancelled", and others go on."""

        async def scenario() -> tuple[Output, Output]:
            long = request(prompt, max_tokens=150)
            stream = engine.submit(long)
            other = asyncio.create_task(collect(engine.submit(request(prompt))))
            deltas = [await anext(stream)]
            engine.cancel(long.id)
            deltas += [delta async for delta in stream]
            return join(deltas), await other

        cancelled, other = patiently(scenario())
        assert cancelled.finish == "cancelled"
        assert len(cancelled.token_ids) < 150
        assert other.finish == "length"

    def test_unknown_id_is_ignored(self, engine: Engine) -> None:
        """Cancelling what does not run, or has ended, does nothing."""
        engine.cancel("nobody")

    def test_closing_the_iterator_frees_the_id(self, engine: Engine, prompt: Prompt) -> None:
        """A request whose iterator was closed is gone: its id can be used again."""

        async def scenario() -> Output:
            stream: Any = engine.submit(request(prompt, id="again", max_tokens=150))
            await anext(stream)
            await stream.aclose()
            return await collect(engine.submit(request(prompt, id="again")))

        assert patiently(scenario()).finish == "length"

    def test_id_of_a_running_request_is_refused(self, engine: Engine, prompt: Prompt) -> None:
        """Two running requests cannot share an id; the first goes on."""

        async def scenario() -> Output:
            first = engine.submit(request(prompt, id="twice"))
            with pytest.raises(ModelwrightError, match="twice"):
                await collect(engine.submit(request(prompt, id="twice")))
            return await collect(first)

        assert patiently(scenario()).finish == "length"

    def test_close_cancels_what_runs(self, engine: Engine, prompt: Prompt) -> None:
        """Closing the engine ends running streams with "cancelled"; then it refuses requests."""

        async def scenario() -> Output:
            stream = engine.submit(request(prompt, max_tokens=150))
            deltas = [await anext(stream)]
            await asyncio.to_thread(engine.close)
            deltas += [delta async for delta in stream]
            with pytest.raises(ModelwrightError):
                await collect(engine.submit(request(prompt)))
            return join(deltas)

        assert patiently(scenario()).finish == "cancelled"
