"""Answers are written down as they come, and none is generated twice."""

from __future__ import annotations

import asyncio
import json

import pytest

from modelwright import Delta, GenerationRequest, Sampling
from modelwright.core.stages.evaluate.generate import CachedEngine
from modelwright.core.testing.engine import collect


class Counting:
    """An engine that answers with the prompt's sum, in two pieces, and counts what it was asked."""

    def __init__(self):
        self.requested = []

    def load(self, folder):
        pass

    async def submit(self, request):
        self.requested.append(request.id)
        yield Delta(text="ü", token_ids=(1,))
        if request.id == "stop":
            yield Delta(finish="cancelled")
        else:
            yield Delta(text=f"{sum(request.prompt)}\n", token_ids=(2, 3), finish="length")

    def cancel(self, request_id):
        pass

    def close(self):
        raise AssertionError("the engine is not the cached one's to close")


@pytest.fixture
def ask(tmp_path):
    """Asks through a new process's eyes: `ask(engine, "id", …)` gives the outputs."""

    def ask(engine, *ids, fingerprint="f", seed=1):
        cached = CachedEngine(engine, tmp_path / "task" / "s.answers.jsonl", fingerprint)
        requests = [
            GenerationRequest(id=name, prompt=[len(name), 7], sampling=Sampling(seed=seed, max_tokens=3))
            for name in ids
        ]

        async def all_of_them():
            return [await collect(cached.submit(request)) for request in requests]

        try:
            return asyncio.run(all_of_them())
        finally:
            cached.close()

    return ask


def test_an_answer_is_the_same_again_without_the_engine(ask):
    """In one piece, with its tokens and its end."""
    first, second = Counting(), Counting()
    assert ask(first, "a", "bb") == ask(second, "a", "bb")
    assert (first.requested, second.requested) == (["a", "bb"], [])
    third = Counting()
    assert [output.text for output in ask(third, "a", "ccc")] == ["ü8\n", "ü10\n"]
    assert third.requested == ["ccc"]


def test_another_model_suite_or_seed_generates_again(ask):
    """The fingerprint is the task's; the seed is in the request."""
    ask(Counting(), "a")
    seed, task = Counting(), Counting()
    ask(seed, "a", seed=2)
    ask(task, "a", fingerprint="g")
    assert (seed.requested, task.requested) == (["a"], ["a"])


def test_a_cancelled_answer_is_not_kept(ask, tmp_path):
    """It is not an answer, and no file is made for it."""
    ask(Counting(), "stop")
    assert not (tmp_path / "task").exists()


def test_a_line_that_a_kill_cut_short_is_dropped(ask, tmp_path):
    """At any byte; what comes next is whole."""
    path = tmp_path / "task" / "s.answers.jsonl"
    ask(Counting(), "a", "bb")
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert [output.text for output in ask(Counting(), "a", "bb")] == ["ü8\n", "ü9\n"]
        assert all(json.loads(line) for line in path.read_text().splitlines())
