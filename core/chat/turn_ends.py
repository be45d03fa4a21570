"""How a template ends an assistant's turns, found by rendering conversations with known texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from modelwright.core.api.records import Message
from modelwright.core.chat.sentinels import Conversation, Fields
from modelwright.core.chat.templates import ChatTemplate, TemplateRefusedError
from modelwright.core.chat.tokenizer import Control, ControlledTokenizer, Range

_QUESTION, _RULE = Message(role="user", content="Question"), Message(role="system", content="Rule")
_SHORT = (_QUESTION, Message(role="assistant", content="Answer"))
# The first one that the template accepts is used.
_ANSWERS = ((*_SHORT, *_SHORT), (_RULE, *_SHORT, *_SHORT), _SHORT, (_RULE, *_SHORT))

_FUNCTION = {"name": "search", "description": "Find it.", "parameters": {"type": "object", "properties": {}}}
_TOOLS = json.dumps([{"type": "function", "function": _FUNCTION}])
_CALL = {"id": "call00000", "type": "function", "function": {"name": "search", "arguments": {}}}
_CALLING = (_QUESTION, Message(role="assistant", content="", tool_calls=json.dumps([_CALL])))
_CALLS = (_CALLING, (_RULE, *_CALLING))


@frozen
class TurnEnds:
    """The control tokens with which a template ends the turns of an assistant.

    Attributes:
        ends: the last tokens of turns.
        stops: those that stop generation. The end of an earlier answer need not be one, since some templates (gpt-oss)
            put the same token after thinking.
        closers: tokens between a text and such a token, such as Command-R's `<|END_RESPONSE|>`.
    """

    ends: frozenset[int] = frozenset()
    stops: frozenset[int] = frozenset()
    closers: frozenset[int] = frozenset()

    def after(self, text: str, position: int, controls: Sequence[Control]) -> Control | None:
        """The end token after `position`, the end of a text, with only white space and closers between them."""
        for control in controls:
            if control.start >= position:
                if text[position : control.start].strip():
                    return None
                if control.id not in self.closers:
                    return control if control.id in self.ends else None
                position = control.end
        return None


def find_turn_ends(template: ChatTemplate, tokenizer: ControlledTokenizer) -> TurnEnds:
    """Find how a template ends turns; the end-of-sequence token, if there is one, always ends one."""
    eos = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    answers = _ends_of_answers(template, tokenizer)
    calls = _ends_of_calls(template, tokenizer, eos | answers.ends)
    return TurnEnds(eos | answers.ends | calls, eos | answers.stops | calls, answers.closers)


def _ends_of_answers(template: ChatTemplate, tokenizer: ControlledTokenizer) -> TurnEnds:
    """The end of answers: end-of-sequence if only control tokens come before it, else the first control token."""
    eos = tokenizer.eos_id
    for conversation, messages in _accepted(template, tokenizer, _ANSWERS, None):
        controls = tokenizer.find_controls(conversation.text)
        located = conversation.locate(range(len(messages)))
        questions, answered = (
            [located[index].found.get("content") for index, message in enumerate(messages) if message.role == role]
            for role in ("user", "assistant")
        )
        runs = [[] if place is None else _run(conversation.text, place[1], controls) for place in answered]
        closers = {number for run in runs if eos in run for number in run[: run.index(eos)]}
        closers -= {run[0] for run in runs if run and eos not in run}
        *earlier, last = (frozenset([number for number in run if number not in closers][:1]) for run in runs)
        opener = _opener(questions, answered, controls)
        return TurnEnds(last.union(*(ends - opener for ends in earlier)), last, frozenset(closers))
    return TurnEnds()


def _opener(
    questions: Sequence[Range | None], answered: Sequence[Range | None], controls: Sequence[Control]
) -> frozenset[int]:
    """The token that opens the question after an answer without an end; it also comes before the first question."""
    if len(questions) < 2 or questions[0] is None or questions[1] is None or answered[0] is None:
        return frozenset()
    before = [control.id for control in controls if control.end <= questions[0][0]]
    between = [control.id for control in controls if answered[0][1] <= control.start < questions[1][0]]
    return frozenset(between) if between == before[-1:] else frozenset()


def _ends_of_calls(template: ChatTemplate, tokenizer: ControlledTokenizer, known: frozenset[int]) -> frozenset[int]:
    """The last token after a tool call, unless a known end follows the call (gpt-oss writes `<|call|>`)."""
    for conversation, messages in _accepted(template, tokenizer, _CALLS, _TOOLS):
        index, text = len(messages) - 1, conversation.text
        fields = conversation.locate([index]).get(index, Fields())
        if "calls" not in fields.found:
            return frozenset()
        after = [each for each in tokenizer.find_controls(text) if each.start >= fields.found["calls"][1]]
        if not after or any(each.id in known for each in after) or text[after[-1].end :].strip():
            return frozenset()
        return frozenset({after[-1].id})
    return frozenset()


def _accepted(
    template: ChatTemplate, tokenizer: ControlledTokenizer, cases: Iterable[Sequence[Message]], tools: str | None
) -> Iterator[tuple[Conversation, Sequence[Message]]]:
    """The conversations that the template accepts."""
    for messages in cases:
        try:
            yield Conversation(template, tokenizer, messages, tools), messages
        except TemplateRefusedError:
            continue


def _run(text: str, position: int, controls: Iterable[Control]) -> list[int]:
    """The control tokens right after `position`; only white space may come before the first one."""
    run: list[int] = []
    for control in controls:
        if control.start >= position:
            gap = text[position : control.start]
            if gap if run else gap.strip():
                break
            run.append(control.id)
            position = control.end
    return run
