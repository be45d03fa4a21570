"""Tokenizer folders in Hugging Face layout: read, written, fingerprinted, and read alike by transformers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
from tokenizers import AddedToken, Tokenizer

from modelwright.core.api import Example, Message, MissingDependencyError, ModelwrightError, UsageError
from modelwright.core.chat.renderer import Renderer, TemplateRefusedError, checked_renderer, read_template

KINDS = ("byte_level", "unigram", "llama2", "words")
TALK = (
    Message(role="user", content="  hello\nworld  "),
    Message(role="assistant", content="It is 4.", thinking="two"),
    Message(role="user", content="the quick"),
    Message(role="assistant", content="fox"),
)


def as_dicts(messages):
    return [
        {key: getattr(m, key) for key in ("role", "content", "thinking") if getattr(m, key) is not None}
        for m in messages
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["chatml", "gemma", "mistral", "qwen3", "r1", "channels"])
def test_transformers_reads_a_saved_folder_the_same(make_renderer, tmp_path, template, kind):
    """The rendering, the tokens of a training example and of a prompt, and the special tokens."""
    from transformers import AutoTokenizer

    renderer = make_renderer(template, kind)
    renderer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    (rendered,) = renderer.train(Example(messages=TALK))
    assert rendered.text == theirs.apply_chat_template(as_dicts(TALK), tokenize=False)
    assert list(rendered.ids) == theirs.apply_chat_template(as_dicts(TALK), return_dict=False)
    prompt = theirs.apply_chat_template(as_dicts(TALK[:3]), add_generation_prompt=True, return_dict=False)
    assert list(renderer.prompt(TALK[:3])) == prompt
    assert theirs.eos_token_id == renderer.special_ids["eos_token"]
    assert len(theirs) == renderer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_has_the_same_fingerprint(make_renderer, tmp_path, kind):
    """Saved, read, and saved again over another tokenizer's files."""
    renderer = make_renderer("chatml", kind)
    make_renderer(None, "words").save(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "[A]"}')
    renderer.save(tmp_path)
    again = Renderer.from_folder(tmp_path)
    assert again.fingerprint == renderer.fingerprint
    assert again.stop_token_ids == renderer.stop_token_ids
    assert again.train(Example(messages=TALK)) == renderer.train(Example(messages=TALK))


def test_the_fingerprint_tells_what_makes_other_tokens(make_folder, tmp_path):
    """Template, special tokens and vocabulary count; the files' layout and truncation do not."""
    folder = make_folder(tmp_path / "a", "byte_level", read_template("chatml"))
    prints = [Renderer.from_folder(folder).fingerprint]
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(tree, sort_keys=True))
    shortened = Renderer.from_folder(folder)
    assert shortened.fingerprint == prints[0]
    assert len(shortened.prompt(TALK[:1])) > 4
    prints.append(Renderer.from_folder(folder, chat_template=read_template("chatml") + " ").fingerprint)
    prints.append(
        Renderer.from_folder(
            make_folder(tmp_path / "b", "byte_level", read_template("chatml"), eos_token="[A]")
        ).fingerprint
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["GSM8K"])
    tokenizer.save(str(folder / "tokenizer.json"))
    prints.append(Renderer.from_folder(folder).fingerprint)
    assert len(set(prints)) == 4


def test_the_date_is_pinned_and_part_of_the_fingerprint(make_renderer, monkeypatch):
    """A template that prints today's date prints the same one every day, and its fingerprint names it."""
    from datetime import UTC, datetime

    from modelwright.core.chat import templates

    dated, plain = make_renderer("llama3"), make_renderer("chatml")
    (rendered,) = dated.train(Example(messages=TALK[::2]))
    assert "Today Date: 01 Jan 2026" in rendered.text
    monkeypatch.setattr(templates, "PINNED_DATE", datetime(2027, 1, 1, tzinfo=UTC))
    assert Renderer(dated._files).fingerprint != dated.fingerprint
    assert Renderer(plain._files).fingerprint == plain.fingerprint


def test_a_template_is_found_wherever_it_is_kept(make_folder, tmp_path):
    """The caller's goes before chat_template.jinja, and that before the config's: a text, or a list with a default."""
    folder = make_folder(
        tmp_path,
        "byte_level",
        None,
        chat_template=[{"name": "default", "template": "B"}, {"name": "rag", "template": "C"}],
    )

    def says():
        return Renderer.from_folder(folder).train(Example(messages=TALK[:1]))[0].text

    assert says() == "B"
    (folder / "chat_template.jinja").write_text("A")
    assert says() == "A"
    assert Renderer.from_folder(folder, chat_template="D").train(Example(messages=TALK[:1]))[0].text == "D"


def test_special_tokens_that_only_the_config_names_are_added(make_folder, tmp_path):
    """As transformers does: from special_tokens_map.json, from objects, and from added_tokens_decoder."""
    from transformers import AutoTokenizer

    folder = make_folder(tmp_path / "a", "byte_level", "{{ pad_token }}{{ eos_token }}{{ messages[0].content }}")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "<pad>", "lstrip": False, "normalized": False}, "eos_token": "<eos>"})
    )
    renderer = Renderer.from_folder(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert list(renderer.prompt(TALK[:1])) == theirs.apply_chat_template(as_dicts(TALK[:1]), return_dict=False)
    assert renderer.special_ids["pad_token"] == theirs.pad_token_id
    assert renderer.vocab_size == len(theirs)
    renderer.save(tmp_path / "b")
    assert Renderer.from_folder(tmp_path / "b").fingerprint == renderer.fingerprint

    declared = {"500": {"content": "<later>", "special": True}, "420": {"content": "<sooner>", "special": True}}
    later = Renderer.from_folder(make_folder(tmp_path / "c", "byte_level", "x", added_tokens_decoder=declared))
    assert later.vocab_size == renderer.vocab_size
    assert len(later.prompt([Message(role="user", content="x")])) == 1


def test_broken_folders_are_named(make_folder, tmp_path):
    """Each is a usage error that says which file and why."""

    def broken(expected, **files):
        expected = re.escape(expected.replace("FOLDER", str(tmp_path / "folder"))) if "FOLDER" in expected else expected
        folder = make_folder(tmp_path / "folder", "byte_level", read_template("chatml"))
        for name, text in files.items():
            file = {
                "tokenizer": "tokenizer.json",
                "config": "tokenizer_config.json",
                "template": "chat_template.jinja",
            }[name]
            (folder / file).unlink(missing_ok=True) if text is None else (folder / file).write_bytes(text)
        with pytest.raises(UsageError, match=expected):
            Renderer.from_folder(folder)
        shutil.rmtree(folder)

    broken(r"has no tokenizer\.json", tokenizer=None)
    broken(r"tokenizer\.json is not a tokenizer", tokenizer=b"{")
    broken(r"tokenizer\.json is not a tokenizer", tokenizer=b'{"model": 1}')
    broken(r"tokenizer_config\.json is not JSON", config=b"{")
    broken(r"tokenizer_config\.json must contain a JSON object", config=b"[]")
    broken(r"tokenizer_config\.json cannot be read", config=b"\xff")
    broken("no 'default'", config=b'{"chat_template": [{"name": "rag", "template": ""}]}')
    broken("must be a string, or a list", config=b'{"chat_template": [1]}')
    template = "the chat template cannot be read, line 2: Expected an expression, got 'end of statement block'"
    broken(f"FOLDER/chat_template.jinja: {template}; fix it there", template=b"x\n{% if %}")
    tokens = (
        "FOLDER/tokenizer_config.json: cannot read its tokens: expected added_tokens_decoder to map ids to tokens, "
        'such as {"0": {"content": "<s>"}}, and each …_token to be a string or a token; copy the file again'
    )
    for added in (b"[1]", b'{"x": {"content": "y"}}', b'{"1": 3}', b'{"1": {"content": "y", "lstrip": "z"}}', b'"x"'):
        broken(tokens, config=b'{"added_tokens_decoder": ' + added + b"}")


def test_a_model_refuses_another_renderer_than_it_was_trained_with(make_renderer, tmp_path):
    """The fingerprint recorded in the model's folder is compared."""
    renderer = make_renderer("chatml")
    renderer.save(tmp_path)
    assert checked_renderer(tmp_path).fingerprint == renderer.fingerprint
    (tmp_path / "modelwright.json").write_text(json.dumps({"renderer": renderer.fingerprint}))
    assert checked_renderer(tmp_path).fingerprint == renderer.fingerprint
    (tmp_path / "chat_template.jinja").write_text(read_template("chatml") + "!")
    with pytest.raises(ModelwrightError, match="not the one that the model was trained with"):
        checked_renderer(tmp_path)


def test_templates_come_by_name_or_from_a_file(tmp_path):
    """A file's text is exact, line ends included; what is neither is a usage error that names the built-in ones."""
    (tmp_path / "mine.jinja").write_bytes(b"a\r\nb\n")
    assert read_template(str(tmp_path / "mine.jinja")) == "a\r\nb\n"
    for name in ("chatmi", str(tmp_path)):
        with pytest.raises(UsageError, match="neither built in \\(chatml\\) nor a file"):
            read_template(name)


def test_a_prompt_is_the_beginning_of_the_training_example(make_renderer):
    """For chatml, with any white space before the answer: what is served is what was trained."""
    renderer = make_renderer("chatml")
    for answer in ("4", "  4", "\n\n4", "\n", ""):
        turns = (Message(role="user", content=" hello\n"), Message(role="assistant", content=answer))
        (rendered,) = renderer.train(Example(messages=turns))
        prompt = renderer.prompt(turns[:1])
        assert rendered.ids[: len(prompt)] == prompt
        assert not any(rendered.trained[: len(prompt)])


def test_what_a_template_refuses_names_its_words(make_renderer):
    """A prompt that cannot be made is one error class, which a server can tell from its own failures."""
    cases = [
        ("gemma", [Message(role="system", content="x")], "refuses this conversation: System role not supported"),
        ("chatml", [], "at least one message"),
        ("chatml", [Message(role="user", content="\ud800")], "lone surrogate"),
        ("{{ 1 + 'a' }}", [Message(role="user", content="x")], "fails on this conversation: TypeError"),
        ("{{ messages[0].no.such }}", [Message(role="user", content="x")], "has no attribute"),
        ("{{ ''.__class__.mro() }}", [Message(role="user", content="x")], "unsafe"),
        ("{# nothing #}", [Message(role="user", content="x")], "empty text"),
    ]
    for template, messages, reason in cases:
        with pytest.raises(TemplateRefusedError, match=reason):
            make_renderer(template).prompt(messages)
    with pytest.raises(TemplateRefusedError, match="tools is not JSON"):
        make_renderer("qwen3").prompt(TALK[:1], tools="[")


def test_chatml_shows_no_tools_rather_than_dropping_them(make_renderer):
    """A tool that the model never sees would be silently ignored."""
    with pytest.raises(TemplateRefusedError, match="chatml shows no tools"):
        make_renderer("chatml").prompt(TALK[:1], tools='[{"name": "add"}]')


def test_control_tokens_are_special_or_written_by_the_template(make_folder, tmp_path, native):
    """White space is text even where the template has it, as Gemma's newline tokens are."""
    folder = make_folder(tmp_path, "byte_level", "{{ '<think>\n\n' }}{{ messages[0].content }}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    renderer = Renderer.from_folder(folder)
    assert tokenizer.token_to_id("\n\n") in renderer.encode("a\n\n")
    assert tokenizer.token_to_id("<think>") not in renderer.encode("<think>")
    assert tokenizer.token_to_id("<tool_call>") in renderer.encode("<tool_call>")


PROGRAM = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from pathlib import Path
from modelwright.core.chat.renderer import Renderer, TemplateRefusedError, read_template
read_template("chatml")
assert not {{"tokenizers", "jinja2", "torch", "transformers"}} & sys.modules.keys()
try:
    Renderer.from_folder(Path(sys.argv[1])).prompt([])
except Exception as error:
    print(type(error).__name__, error)
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""


@pytest.mark.parametrize(
    ("absent", "expected"),
    [
        (["tokenizers"], f"{MissingDependencyError.__name__} tokenizers is not installed"),
        (["jinja2"], f"{MissingDependencyError.__name__} jinja2 is not installed"),
        (["torch", "transformers"], TemplateRefusedError.__name__),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(make_renderer, tmp_path, absent, expected):
    """Neither is imported with the module; torch and transformers are not needed at all."""
    make_renderer("chatml").save(tmp_path)
    program = [sys.executable, "-c", PROGRAM.format(absent=absent), str(tmp_path)]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(expected)
    assert ("pip install 'modelwright[train]'" in result.stdout) == ("MissingDependency" in expected)
