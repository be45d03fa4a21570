"""Templates whose generation prompts open or close a thinking block, and those that end no answer.

`opening/NAME.jinja` begins with a comment that lists its control tokens.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import attrs
import pytest

from modelwright.core.api import Example, Message, RowError, UsageError
from modelwright.core.chat.renderer import Renderer, TemplateRefusedError
from modelwright.core.chat.tokenizer_files import TokenizerFiles

OPENING = Path(__file__).parent / "opening"
ENDLESS = {"glm": "<|user|>", "apertus": "<|bot_end|>"}
QUESTION, ANSWER = Message(role="user", content="Ask"), Message(role="assistant", content="Reply")
THOUGHT = attrs.evolve(ANSWER, thinking="Muse")
MORE, LATER = Message(role="user", content="More"), Message(role="assistant", content="Later")


@pytest.fixture(scope="session")
def opening(make_folder, tmp_path_factory):
    """(a name, a tokenizer's kind, empty) → the renderer of opening/NAME.jinja."""

    @functools.cache
    def folder(name, kind):
        template = (OPENING / f"{name}.jinja").read_text(encoding="utf-8")
        tokens = template.partition("#}")[0].removesuffix("-").partition("tokens:")[2].split()
        path = tmp_path_factory.mktemp("opening")
        eos = "<|END_TURN|>" if "<|END_TURN|>" in tokens else "<e>"
        return make_folder(path, kind, template, added=["<e>", *tokens], bos_token=None, eos_token=eos)

    @functools.cache
    def make(name, kind="byte_level", *, empty=False):
        return Renderer.from_folder(folder(name, kind), empty_thinking=empty)

    return make


def train(renderer, *messages, turns="all"):
    """The text with its trained stretches as «…», and the anomalies."""
    (rendered,) = renderer.train(Example(messages=messages), turns)
    runs = itertools.groupby(zip(rendered.ids, rendered.trained, strict=True), key=lambda pair: pair[1])
    parts = [(trained, renderer.spell([number for number, _ in run])) for trained, run in runs]
    return "".join(f"«{text}»" if trained else text for trained, text in parts), set(rendered.anomalies)


def check_served(renderer, messages, tools, turns):
    """Check that silent rows are trained as they are served; gives the number of turns compared."""
    try:
        every = renderer.train(Example(messages=messages, tools=tools), turns)
    except RowError:
        return 0
    compared = 0
    for rendered in every:
        for number in {span.message for span in rendered.spans} if not rendered.anomalies else ():
            try:
                prompt = renderer.prompt(messages[:number], tools=tools)
            except TemplateRefusedError:
                continue
            assert rendered.ids[: len(prompt)] == prompt, rendered.text
            assert min(span.start for span in rendered.spans if span.message == number) == len(prompt), rendered.text
            compared += 1
    return compared


WAYS = list(itertools.product(("auto", "all", "last", "split"), ("stop", "empty", "omit")))


@pytest.mark.parametrize("name", sorted(path.stem for path in OPENING.glob("*.jinja")))
def test_what_is_silent_is_trained_as_it_is_served(name, shapes, conversation, opening):
    """Every shape, choice of turns and option: the prompt's tokens are the row's first, and the turn's begin there."""
    compared = 0
    for kind, (turns, thinking) in itertools.product(("byte_level", "unigram"), WAYS):
        renderer = opening(name, kind, empty=thinking == "empty")
        renderer = renderer.adapted(omit_thinking=thinking == "omit", end=ENDLESS.get(name))
        compared += sum(check_served(renderer, *conversation(shape), turns) for shape in shapes)
    assert compared > 50


def test_what_is_silent_in_any_family_is_trained_as_it_is_served(family_name, shapes, conversation, renderer_of):
    """The families of the exact masks."""
    for kind, turns in itertools.product(("byte_level", "llama2"), ("auto", "all", "last", "split")):
        for shape in shapes:
            check_served(renderer_of(family_name, kind), *conversation(shape), turns)


BOT = "<|TURN|><|USER|>Ask<|END_TURN|><|TURN|><|BOT|>"
HEAD = "<|begin|><|head|>user<|/head|>\n\nAsk<|eot|><|head|>assistant<|/head|>\n\n"
USER = "<|im_start|>user\nAsk<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minimal", USER + "<think>\n«\n</think>\n\nReply<|im_end|>»\n"),
        ("qwq", USER + "<think>\n«\n</think>\n\nReply<|im_end|>»\n"),
        ("minimax", "]~b]user\nAsk[e~[\n]~b]ai\n<think>\n«\n</think>\n\nReply[e~[»\n"),
        (
            "commandr7b",
            "<BOS>" + BOT + "<|START_THINKING|>«<|END_THINKING|><|START_RESPONSE|>Reply<|END_RESPONSE|><|END_TURN|>»",
        ),
    ],
)
def test_an_open_block_stops_an_answer_without_thinking_unless_it_is_to_be_closed(opening, name, expected):
    """`empty` closes it as the family does; the model is trained to write that."""
    text, anomalies = train(opening(name), QUESTION, ANSWER)
    assert anomalies == {"prompt-boundary"}
    assert expected.rpartition("«")[0] not in text
    assert train(opening(name, empty=True), QUESTION, ANSWER) == (expected, set())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minimal", USER + "<think>\n«Muse\n</think>\n\nReply<|im_end|>»\n"),
        ("qwq", USER + "<think>\n«Muse\n</think>\n\nReply<|im_end|>»\n"),
        ("minimax", "]~b]user\nAsk[e~[\n]~b]ai\n<think>\n«Muse\n</think>\n\nReply[e~[»\n"),
        ("nemotron", HEAD + "<think>\n«Muse\n</think>\n\nReply<|eot|>»"),
    ],
)
def test_thinking_is_trained_in_the_block_that_the_prompt_opens(opening, name, expected):
    """Whether or not the template shows it: the model has to write it there."""
    assert train(opening(name), QUESTION, THOUGHT) == (expected, set())
    masked = attrs.evolve(THOUGHT, train_thinking=False)
    before, _, after = expected.partition("«")
    thinking, close, reply = after.partition("\n</think>\n\n")
    assert train(opening(name), QUESTION, masked) == (f"{before}{thinking}{close}«{reply}", set())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma4", "<bos><|turn>user\nAsk<turn|>\n<|turn>model\n<|channel>thought\n<channel|>«Reply<turn|>»\n"),
        (
            "closing",
            BOT + "<|START_THINKING|><|END_THINKING|><|START_RESPONSE|>«Reply<|END_RESPONSE|><|END_TURN|>»",
        ),
        ("showing", USER + "<think>\n«\n</think>\n\nReply<|im_end|>»\n"),
    ],
)
def test_a_block_that_the_prompt_closes_needs_no_option(opening, name, expected):
    """The answer is trained behind it."""
    assert train(opening(name), QUESTION, ANSWER) == (expected, set())


def test_thinking_behind_a_closed_block_is_dropped_and_said(opening):
    """What is served has no place for it."""
    assert train(opening("gemma4"), QUESTION, THOUGHT)[1] == {"thinking-dropped"}


def test_a_prompt_that_depends_on_the_system_message_is_followed(opening):
    """Nemotron's closes the block if it says so."""
    quiet = Message(role="system", content="/no_think")
    text, anomalies = train(opening("nemotron"), quiet, QUESTION, ANSWER)
    assert text.endswith("assistant<|/head|>\n\n<think></think>«Reply<|eot|>»")
    assert anomalies == set()


@pytest.mark.parametrize("name", ["gemma4", "minimal", "closing", "nemotron"])
def test_earlier_turns_are_trained_by_split(opening, name):
    """Their history shows no block, so one row cannot train two turns as they are served."""
    renderer, talk = opening(name, empty=True), (QUESTION, ANSWER, MORE, LATER)
    assert train(renderer, *talk)[1] == {"prompt-boundary"}
    assert [one.anomalies for one in renderer.train(Example(messages=talk), "split")] == [(), ()]
    assert train(renderer, *talk, turns="last")[1] == set()


THOUGHTS = (QUESTION, THOUGHT, MORE, attrs.evolve(LATER, thinking="Ponder"))
SPLIT = {
    "gemma4": (QUESTION, ANSWER, MORE, LATER),
    "minimal": (QUESTION, ANSWER, MORE, LATER),
    "qwq": THOUGHTS,
    "minimax": THOUGHTS,
    "gptoss": THOUGHTS,
    "qwen3": THOUGHTS,
    "r1": THOUGHTS,
}


@pytest.mark.parametrize("name", SPLIT)
def test_auto_splits_a_conversation_whose_earlier_answers_are_served_otherwise(opening, renderer_of, name):
    """Each answer is trained with its thinking behind the history that serving shows; nothing is left to be said."""
    own = (OPENING / f"{name}.jinja").exists()
    renderer = opening(name, empty=True) if own else renderer_of(name, "byte_level")
    example = Example(messages=SPLIT[name])
    (whole,) = renderer.train(example)
    assert whole.anomalies
    split = renderer.train(example, "auto")
    assert split == renderer.train(example, "split")
    assert [(one.anomalies, {span.message for span in one.spans}) for one in split] == [((), {1}), ((), {3})]


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("chatml", THOUGHTS),  # as they are served
        ("gptoss", (QUESTION, ANSWER, MORE, LATER)),
        ("mistral", THOUGHTS),  # thinking is dropped from the last turn too
        ("r1", (QUESTION, ANSWER, MORE, LATER)),  # its prompt opens a block that these answers do not close
    ],
    ids=["chatml", "gptoss", "mistral", "r1"],
)
def test_auto_keeps_a_conversation_whole_where_splitting_settles_nothing(renderer_of, name, messages):
    """One row, with what is strange about it."""
    renderer, example = renderer_of(name, "byte_level"), Example(messages=messages)
    assert renderer.train(example, "auto") == renderer.train(example)


def test_auto_keeps_a_conversation_whole_that_the_template_refuses_in_part(make_renderer):
    """Here one must not end with its first answer."""
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{{ '<think>' + m.thinking if m.thinking and loop.last }}</s>{% endfor %}"
        "{{ raise_exception('too short') if messages | length == 2 }}"
    )
    renderer, example = make_renderer(source), Example(messages=THOUGHTS)
    (whole,) = renderer.train(example, "auto")
    assert "thinking-dropped" in whole.anomalies
    with pytest.raises(RowError, match="too short"):
        renderer.train(example, "split")


def test_a_block_that_nobody_knows_how_to_close_can_be_omitted_only(opening):
    """Nothing is guessed."""
    assert train(opening("unknown", empty=True), QUESTION, ANSWER)[1] == {"prompt-boundary"}
    omitted = opening("unknown").adapted(omit_thinking=True)
    assert train(omitted, QUESTION, ANSWER) == (f"{USER}«Reply<|im_end|>»\n", set())


@pytest.mark.parametrize("name", ["minimal", "qwq", "gemma4", "minimax", "nemotron", "commandr7b", "closing"])
def test_omit_takes_the_block_out_of_the_prompts_wherever_the_template_is_used(opening, name, tmp_path):
    """Here, in a saved folder and in transformers; the history's text is the same."""
    from transformers import AutoTokenizer

    renderer = opening(name, "unigram")  # whose prompts end with a token before any text
    omitted = renderer.adapted(omit_thinking=True)
    assert omitted.thinking_block.opening == ""
    assert not omitted.opens_thinking
    ids = omitted.prompt((QUESTION,))
    assert "think" not in omitted.spell(ids).lower()
    (rendered,) = omitted.train(Example(messages=(QUESTION, ANSWER)))
    assert rendered.anomalies == ()
    omitted.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "Ask"}]
    assert theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == list(ids)
    said = [*turns, {"role": "assistant", "content": "Reply"}]
    assert theirs.apply_chat_template(said, tokenize=False) == rendered.text
    again = Renderer.from_folder(tmp_path).adapted(omit_thinking=True)
    assert again.fingerprint == omitted.fingerprint != renderer.fingerprint


def test_omit_keeps_white_space_at_the_ends_of_a_template(make_renderer):
    """The newline at its beginning is its own; one at its end never was."""
    loop = "\n{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    source = f"{loop}{{{{ '[assistant]<think>' if add_generation_prompt }}}}\n"
    plain = make_renderer(source.replace("<think>", ""))
    omitted = make_renderer(source).adapted(omit_thinking=True)
    assert omitted.prompt((QUESTION,)) == plain.prompt((QUESTION,))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glm", "[gMASK]<|user|>\nAsk<|assistant|>\n«<think></think>\nReply<|user|>»"),
        ("apertus", "<s><|user_start|>Ask<|user_end|><|bot_start|>«Reply<|bot_end|>»"),
    ],
)
def test_an_end_can_be_given_to_answers_that_have_none(opening, name, expected, tmp_path):
    """It is trained, stops a generation, and stays with the template; also of earlier turns, where it follows them."""
    renderer = opening(name)
    assert train(renderer, QUESTION, ANSWER)[1] == {"end-missing"}
    ended = renderer.adapted(end=ENDLESS[name])
    assert train(ended, QUESTION, ANSWER) == (expected, set())
    assert ended.prompt((QUESTION,)) == renderer.prompt((QUESTION,))
    assert ended._tokenizer.controls[ENDLESS[name]] in ended.stop_token_ids
    text, anomalies = train(ended, QUESTION, ANSWER, MORE, LATER)
    assert (text.count(f"{ENDLESS[name]}»"), anomalies) == (2, set())
    ended.save(tmp_path)
    again = Renderer.from_folder(tmp_path)
    assert again.stop_token_ids == ended.stop_token_ids
    assert again.adapted(end=ENDLESS[name]).fingerprint == ended.fingerprint


def test_another_end_than_what_follows_earlier_turns_needs_split(opening):
    """With the end-of-sequence token an earlier answer has no end, which is reported."""
    ended = opening("glm").adapted(end="<e>")
    assert train(ended, QUESTION, ANSWER, MORE, LATER)[1] == {"end-missing"}
    texts = [one.text for one in ended.train(Example(messages=(QUESTION, ANSWER, MORE, LATER)), "split")]
    assert [text[-8:] for text in texts] == ["Reply<e>", "Later<e>"]


@pytest.mark.parametrize(
    ("name", "end"), [("glm", "<|usr|>"), ("glm", "stop"), ("minimal", "<e>")], ids=["close", "no token", "has an end"]
)
def test_an_end_that_does_not_fit_is_refused(wording, opening, name, end):
    """In one line, with what to do."""
    with pytest.raises(UsageError) as caught:
        opening(name).adapted(end=end)
    wording(caught.value)


def test_a_template_without_text_is_left_alone(make_folder, tmp_path):
    """A tokenizer without a template, for plain texts."""
    renderer = Renderer(TokenizerFiles.read(make_folder(tmp_path, "byte_level", None)))
    assert renderer.adapted(omit_thinking=True) is renderer
    assert renderer.thinking_block.opening == ""
