from __future__ import annotations

import pytest
from ids import shown

from modelwright import Example, Message, RowError
from modelwright.core.plugins import discover
from modelwright.plugins.formats.general import GeneralColumns, GeneralFormat, GeneralOptions

USER = {"role": "user", "content": "Hello?"}
ASSISTANT = {"role": "assistant", "content": "Good day."}


def read_one(row, **options):
    (example,) = GeneralFormat(GeneralOptions(**options)).read(row)
    return example


def turns(example):
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi.", "input": " \n", "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi.", "input": None, "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi.", "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi to him.", "input": "Tom", "output": "hi"}, "Say hi to him.\n\nTom"),
        ({"prompt": "Say hi.", "completion": "hi", "id": 7}, "Say hi."),
    ],
)
def test_alpaca_and_completion_rows_become_one_turn_each(row, question):
    """Instruction and input, or prompt, are the user's; output, or completion, the assistant's and the reference."""
    example = read_one(row)
    assert turns(example) == [("user", question), ("assistant", "hi")]
    assert example.answer == "hi"


@pytest.mark.parametrize(
    ("question", "said"),
    [("question", "answer"), ("question", "response"), ("problem", "solution"), ("prompt", "response")],
)
def test_pairs_of_columns_become_one_turn_each(question, said):
    """With any of a data set's names for question and answer."""
    example = read_one({question: "How many?", said: "Two.\n#### 2", "level": 1})
    assert turns(example) == [("user", "How many?"), ("assistant", "Two.\n#### 2")]
    assert example.answer == "Two.\n#### 2"


def test_self_instruct_rows_become_an_example_for_each_instance(shared_rows):
    """All 175 seed tasks are read."""
    rows = shared_rows("self_instruct/seed_tasks.jsonl")
    read = [list(GeneralFormat(GeneralOptions()).read(row)) for row in rows]
    assert [len(examples) for examples in read] == [len(row["instances"]) for row in rows]
    assert read[1][0].messages[0].content == f"{rows[1]['instruction']}\n\n{rows[1]['instances'][0]['input']}"


@pytest.mark.parametrize("answer", ["42", 42])
def test_the_column_answer_is_the_reference_beside_any_completion(answer):
    """What is trained is not always what is graded against."""
    for row in ({"messages": [USER, ASSISTANT]}, {"prompt": "a", "completion": "b"}):
        assert read_one({**row, "answer": answer}).answer == "42"
        assert read_one({**row, "answer": None}).answer == read_one(row).answer


def test_sharegpt_messages_are_read():
    """Their keys are from and value, their speakers human and gpt."""
    row = {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Good day."}]}
    assert turns(read_one(row)) == [("user", "Hello?"), ("assistant", "Good day.")]


def test_messages_say_which_turns_and_which_thinking_is_trained():
    """The flags `train` and `train_thinking` are kept."""
    masked = {**ASSISTANT, "thinking": "Greet.", "train_thinking": False}
    example = read_one({"messages": [USER, {**ASSISTANT, "train": False}, USER, masked]})
    assert [message.train for message in example.messages] == [None, False, None, None]
    assert [message.train_thinking for message in example.messages] == [True, True, True, False]


@pytest.mark.parametrize(
    "example",
    [
        Example(messages=[Message(role="user", content="a"), Message(role="assistant", content="b", thinking="c")]),
        Example(
            messages=[
                Message(role="user", content="a"),
                Message(role="assistant", content="", tool_calls='[{"name": "add"}]', train=False),
                Message(role="tool", content="4", name="add"),
                Message(role="assistant", content="four", thinking="so", train_thinking=False),
            ],
            answer="4",
            tools='[{"name": "add"}]',
            meta={"level": 5},
        ),
        Example(text="plain text"),
        Example(messages=[Message(role="user", content="Which?")], choices=["a", "b"], answer="a"),
    ],
)
def test_rows_that_prepare_wrote_are_read_back_as_they_were(example):
    """With all that other rows may not have: tools, choices, text without turns."""
    assert read_one({**example.to_row(), "source": "rows.jsonl:3"}).to_row() == {
        **example.to_row(),
        "source": "rows.jsonl:3",
    }


def test_a_prepared_row_that_was_edited_is_read_by_its_columns():
    """Its id no longer is its content's."""
    row = Example(messages=[Message(role="user", content="a"), Message(role="assistant", content="b")]).to_row()
    row["messages"][1]["content"] = "changed"
    row["messages"][1]["thinking"] = "because"
    example = read_one(row, instruction="Q: {question}")
    assert turns(example) == [("user", "Q: a"), ("assistant", "changed")]
    assert example.messages[1].thinking == "because"


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_chat_rows_keep_their_turns(column):
    """A conversation keeps all its turns; the reference is what the assistant says last."""
    system = {"role": "system", "content": "Be kind."}
    last = {"role": "assistant", "content": "Bye.", "reasoning_content": "They leave."}
    example = read_one({column: [system, USER, ASSISTANT, USER, last]})
    assert turns(example) == [
        ("system", "Be kind."),
        ("user", "Hello?"),
        ("assistant", "Good day."),
        ("user", "Hello?"),
        ("assistant", "Bye."),
    ]
    assert example.messages[-1].thinking == "They leave."
    assert example.answer == "Bye."
    assert Example.from_row(example.to_row()) == example


def test_options_reach_the_first_question_and_rows_without_a_system():
    """The instruction goes to the first user turn; a row's own system message is kept before the option's."""
    options = {"system": "Mine.", "instruction": "Q: {question}"}
    assert turns(read_one({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, **options)) == [
        ("system", "Mine."),
        ("user", "Q: Hello?"),
        ("assistant", "Good day."),
        ("user", "Hello?"),
        ("assistant", "Good day."),
    ]
    own = {"messages": [{"role": "system", "content": "Its own."}, USER, ASSISTANT]}
    assert turns(read_one(own, **options))[0] == ("system", "Its own.")


def test_plain_text_has_no_turns():
    """All of it is the example; what is put to questions is put to none."""
    example = read_one({"text": "Once upon a time.\n"}, instruction="Q: {question}", system="Mine.")
    assert (example.text, example.messages, example.answer) == ("Once upon a time.\n", (), None)


def test_sides_of_a_pair_may_be_messages():
    """What the assistant says in a prompt is read and not trained, unless the message says so itself."""
    row = {"prompt": [USER, ASSISTANT, USER, {**ASSISTANT, "train": True}, USER], "completion": [ASSISTANT]}
    example = read_one(row)
    assert [message.role for message in example.messages] == ["user", "assistant"] * 3
    assert [message.train for message in example.messages] == [None, False, None, True, None, None]
    for mixed in ({**row, "completion": "Good day."}, {"prompt": "Hello?", "completion": [ASSISTANT]}):
        assert turns(read_one(mixed))[-2:] == [("user", "Hello?"), ("assistant", "Good day.")]


@pytest.mark.parametrize("empty", [None, []])
def test_history_precedes_the_question(empty):
    """Its turns are trained like any other; the instruction goes to the first of its questions."""
    row = {"instruction": "And him?", "input": "Tom", "output": "hi", "history": [["Say hi.", "hi"]]}
    assert turns(read_one(row, instruction="Q: {question}")) == [
        ("user", "Q: Say hi."),
        ("assistant", "hi"),
        ("user", "And him?\n\nTom"),
        ("assistant", "hi"),
    ]
    assert len(read_one({**row, "history": empty}).messages) == 2


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_column_may_hold_the_system_message(column):
    """It goes before the option's; where the conversation begins with the same, it is there once."""
    own = {"role": "system", "content": "Be kind."}
    for row in (
        {"prompt": "Hello?", "completion": "Good day."},
        {"messages": [USER, ASSISTANT]},
        {"messages": [own, USER, ASSISTANT]},
    ):
        example = read_one({**row, column: "Be kind."}, system="Mine.")
        assert turns(example) == [("system", "Be kind."), ("user", "Hello?"), ("assistant", "Good day.")]
    assert turns(read_one({"prompt": "a", "completion": "b", column: ""}, system="Mine."))[0] == ("system", "Mine.")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Who?", "context": "Tom came.", "response": "Tom"},
        {"question": "Who?", "context": "Tom came.", "answer": "Tom"},
        {"instruction": "Who?", "input": "", "context": "Tom came.", "output": "Tom"},
    ],
)
def test_the_input_follows_the_question(row):
    """A question without its context would teach the model to make answers up."""
    assert turns(read_one(row)) == [("user", "Who?\n\nTom came."), ("assistant", "Tom")]


def test_the_first_pair_that_holds_something_is_read():
    """Files that were put together have the columns of all."""
    row = {"instruction": None, "output": None, "prompt": "a", "completion": "b"}
    assert turns(read_one(row)) == [("user", "a"), ("assistant", "b")]


def test_weights_say_which_turns_are_trained():
    """OpenAI's, 0 or 1; a file of numbers may have them as floats."""
    weights = [{**ASSISTANT, "weight": weight} for weight in (0, 1, 1.0, None)]
    messages = [message for weighted in weights for message in (USER, weighted)]
    assert [message.train for message in read_one({"messages": messages}).messages[1::2]] == [False, True, True, None]


def test_parts_of_text_are_one_text():
    """OpenAI writes content as a list where there could be images."""
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo?"}]
    row = {"messages": [{"role": "user", "content": parts}, ASSISTANT]}
    assert turns(read_one(row))[0] == ("user", "Hello?")


def test_thinking_in_tags_is_kept_and_is_not_part_of_the_reference():
    """The text stays as it is; what is graded is the answer."""
    example = read_one({"prompt": "2 + 2?", "completion": "<think>two and two</think>\n4"})
    assert (example.messages[-1].content, example.answer) == ("<think>two and two</think>\n4", "4")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, [("user", "yes"), ("assistant", "good")]),
        ({"prompt": "q", "input": "i", "completion": "a"}, [("user", "yes\n\nabout"), ("assistant", "good")]),
        ({"prompt": "q", "completion": "a", "system": "s"}, [("system", "be"), ("user", "yes"), ("assistant", "good")]),
        (
            {"prompt": "q", "completion": "a", "history": "h"},
            [("user", "x"), ("assistant", "y"), ("user", "yes"), ("assistant", "good")],
        ),
        ({"messages": "m"}, [("user", "Hello?"), ("assistant", "Good day.")]),
        ({"prompt": "m", "completion": "a"}, None),
        ({"text": "q"}, []),
    ],
)
def test_named_columns_go_before_recognized_ones(named, expected):
    """Nothing else in the row is read, prepared or not."""
    row = dict.fromkeys(("instruction", "output", "answer", "system", "tools", "messages"), "no")
    row |= {"q": "yes", "i": "about", "a": "good", "s": "be", "h": [["x", "y"]], "m": [USER, ASSISTANT]}
    if expected is None:
        row["m"] = [USER]
        expected = [("user", "Hello?"), ("assistant", "good")]
    example = read_one(row, columns=GeneralColumns(**named))
    assert turns(example) == expected
    assert example.text == ("yes" if "text" in named else None)
    assert example.answer != "no"
    if "text" not in named:
        assert read_one(row, columns=GeneralColumns(**named, answer="answer")).answer == "no"


def test_named_columns_must_be_there(wording):
    """The option is quoted with what the row has instead."""
    with pytest.raises(RowError) as caught:
        read_one({"q": "a", "a": "b"}, columns=GeneralColumns(prompt="q", completion="gone"))
    wording(caught.value)


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"prompt": "a"},
        {"prompt": "a", "messages": "m"},
        {"text": "a", "messages": "m"},
        {"text": "a", "system": "s", "tools": "t"},
        {"messages": "m", "history": "h"},
    ],
    ids=shown,
)
def test_names_of_columns_that_go_together_in_no_way_are_refused(wording, named):
    """Nothing that a person named is left unread."""
    with pytest.raises(ValueError, match="name") as caught:
        GeneralColumns(**named)
    wording(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"body": "plain"},
        {"text": " "},
        {"text": ["a"]},
        {"instruction": "a"},
        {"messages": None},
        {"messages": "hi"},
        {"messages": []},
        {"messages": [USER, "hi"]},
        {"messages": [{"speaker": "human", "value": "x"}]},
        {"messages": [{"from": "human", "content": "x"}]},
        {"messages": [{"from": "human", "value": "x"}]},
        {"messages": [USER, {**ASSISTANT, "train": "no"}]},
        {"messages": [USER, {**ASSISTANT, "train_thinking": 0}]},
        {"messages": [USER, ASSISTANT], "answer": ["42"]},
        {"instruction": "a", "instances": []},
        {"instruction": "a", "instances": [{"input": "x"}]},
        {"question": "q", "answer": " "},
        {"messages": [USER, {"role": "bot", "content": "x"}]},
        {"messages": [USER, {"role": ["user"], "content": "x"}]},
        {"messages": [USER, {"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]},
        {"messages": [{"role": "user", "content": []}, ASSISTANT]},
        {"messages": [USER, {**ASSISTANT, "weight": 0.5}]},
        {"messages": [USER, {**ASSISTANT, "weight": True}]},
        {"messages": [USER, {**ASSISTANT, "weight": 0, "train": True}]},
        {"messages": [USER]},
        {"messages": [ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        {"messages": [USER, {"role": "system", "content": "x"}, ASSISTANT]},
        {"messages": [USER, {**ASSISTANT, "thinking": 1}]},
        {"instruction": "a", "output": 3},
        {"instruction": "a", "input": {"x": 1}, "output": "b"},
        {"prompt": "", "completion": "b"},
        {"prompt": [USER], "completion": [USER]},
        {"prompt": [USER], "completion": []},
        {"prompt": {"x": 1}, "completion": "b"},
        {"instruction": [USER], "input": "x", "output": "b"},
        {"prompt": "a", "completion": "b", "history": "c"},
        {"prompt": "a", "completion": "b", "history": [["c"]]},
        {"prompt": "a", "completion": "b", "system": 1},
        {"messages": [{"role": "system", "content": "a"}, USER, ASSISTANT], "system": "b"},
    ],
    ids=shown,
)
def test_unreadable_row_is_refused_with_its_reason(wording, row):
    """What is wrong is named with its place."""
    with pytest.raises(RowError) as caught:
        read_one(row)
    wording(caught.value)


def test_formats_are_found_by_name():
    """Both formats come in by the package's entry point and read a row."""
    from modelwright import FormatSpec

    found = discover(strict=True)
    assert {"general", "math"} <= set(found.names("format"))
    (example,) = found.get(FormatSpec, "math").create().read({"question": "q", "answer": "#### 1"})
    assert example.answer == "1"
    (example,) = found.get(FormatSpec, "general").create().read({"prompt": "q", "completion": "1"})
    assert example.answer == "1"
