"""Answers to a test set: what a model thinks is parted from what it answers, so that metrics grade the answer."""

from __future__ import annotations

import asyncio

import pytest

from modelwright import Delta, Example, Message
from modelwright.core.chat.renderer import Renderer
from modelwright.core.chat.templates import read_template
from modelwright.core.config.schema import GenerationConfig
from modelwright.core.stages.evaluate.generate import generate
from modelwright.core.stages.prepare.tokenizers import scratch_renderer

QUESTION = Example(messages=[Message(role="user", content="2 + 2?")], source="q:1", answer="4")


class Says:
    """An engine that says one text, a character a delta."""

    def __init__(self, text, finish="stop"):
        self.text, self.finish = text, finish

    async def submit(self, _request):
        for number, character in enumerate(self.text):
            yield Delta(text=character, token_ids=(number,))
        yield Delta(finish=self.finish)


def renderer(template=None) -> Renderer:
    return scratch_renderer("bpe", [QUESTION], 400, template or read_template("chatml"))


def answer(engine, renderer):
    settings = GenerationConfig(max_tokens=64)
    answers = generate(
        engine, renderer, [QUESTION], settings=settings, samples=1, seed=1, context=None, progress=lambda _: None
    )
    ((output,),) = asyncio.run(answers)
    return output


@pytest.mark.parametrize(
    ("said", "finish", "thinking", "text"),
    [
        ("<think>\nIt is 5, no, 4.\n</think>\n\n4", "stop", "It is 5, no, 4.", "4"),
        ("4", "stop", None, "4"),
        ("<think>\nIt is 5, no", "length", "It is 5, no", ""),
        ("", "stop", None, ""),
    ],
)
def test_an_output_is_the_answer_and_beside_it_the_thinking(said, finish, thinking, text):
    """An answer that never came is empty, even if its number was known."""
    output = answer(Says(said, finish), renderer())
    assert (output.thinking, output.text, output.finish) == (thinking, text, finish)
    assert len(output.token_ids) == len(said)


def test_a_model_whose_prompt_opens_the_thinking_begins_inside_it():
    """R1's template: its outputs have no opening tag."""
    template = read_template("chatml").replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
    opening = renderer(template)
    assert opening.opens_thinking
    output = answer(Says("two and two\n</think>\n\n4"), opening)
    assert (output.thinking, output.text) == ("two and two", "4")
