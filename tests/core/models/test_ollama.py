"""Ollama's Modelfile: the prompts of the chat template, or none at all."""

from __future__ import annotations

import json

import pytest
from gguf_models import byte_tokenizer, folder_of
from tokenizers import AddedToken

from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import Message
from modelwright.core.chat.renderer import Renderer
from modelwright.core.chat.templates import CHATML
from modelwright.core.models.ollama import fixed_texts, write_modelfile

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SMOLLM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}")
BRACES = "{% for m in messages %}{{ '{{' }}{{ m.role }}}}{{ m.content }}<|im_end|>{% endfor %}{{ '{{assistant}}' }}"


def renderer_of(folder, template, bos="<|endoftext|>"):
    tokenizer = byte_tokenizer()
    more = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<think>")
    tokenizer.add_tokens([AddedToken(each, special=True, normalized=False) for each in more])
    folder_of(folder, tokenizer=tokenizer, template=template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": bos}))
    return Renderer.from_folder(folder)


@pytest.mark.parametrize(
    ("template", "system"),
    [(CHATML, True), (LLAMA_3, True), (SMOLLM, True), (GEMMA, False), (THINKING, True), (BRACES, True)],
    ids=["chatml", "llama3", "smollm", "gemma", "thinking", "braces"],
)
def test_the_prompts_are_those_of_the_chat_template(tmp_path, template, system):
    """Of conversations of every length, with a system message where the template takes one."""
    renderer = renderer_of(tmp_path / "model", template)
    fixed = fixed_texts(renderer, "math@1")
    assert (fixed.system is not None) is system
    turns = [Message(role=role, content=f"{role} says {n}") for n in range(4) for role in ("user", "assistant")]
    for count in (1, 3, 5, 7):
        for first in ([], [Message(role="system", content="S")]) if system else ([],):
            case = first + turns[:count]
            assert fixed.render(case) == renderer.spell(renderer.prompt(case))


def test_the_texts_of_chatml_read_well(tmp_path):
    """People edit a Modelfile; a default system message is an instruction of its own."""
    fixed = fixed_texts(renderer_of(tmp_path / "model", LLAMA_3), "math@1")
    assert (fixed.begin, fixed.user) == ("<|endoftext|>", "<|start_header_id|>user<|end_header_id|>\n\n")
    assert fixed_texts(renderer_of(tmp_path / "other", SMOLLM), "math@1").default == "Be kind."


def test_template_stops_and_parameters(tmp_path):
    """The whole file: neutral values for what the model does not set, and the model's own context where it is short."""
    renderer_of(tmp_path / "model", CHATML)
    settings = {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1, "eos_token_id": [256, 258]}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    notes = []
    write_modelfile(tmp_path / "model", tmp_path / "Modelfile", "model.gguf", "math@1", notes.append)
    assert (tmp_path / "Modelfile").read_text() == (
        "# math@1, for: ollama create NAME -f Modelfile\n"
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}'
        '{{ else if eq .Role "assistant" }}<|im_end|>\n<|im_start|>assistant\n{{ .Content }}'
        "{{ if not $last }}<|im_end|>\n{{ end }}{{ end }}"
        '{{ if and $last (ne .Role "assistant") }}<|im_end|>\n<|im_start|>assistant\n{{ end }}{{ end }}"""\n'
        'PARAMETER stop "<|endoftext|>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER temperature 0.6\n"
        "PARAMETER top_p 0.95\n"
        "PARAMETER top_k 0\n"
        "PARAMETER repeat_penalty 1.1\n"
        "PARAMETER num_ctx 64\n"
    )
    assert len(notes) == 1


@pytest.mark.parametrize(
    "template",
    [
        None,
        CHATML.replace("message.role + '\\n'", "message.role ~ loop.index ~ '\\n'"),
        CHATML.replace("message.content | trim", "message.content | upper"),
    ],
    ids=["none", "numbers", "changes-answers"],
)
def test_a_template_that_writes_more_than_fixed_texts_is_refused(tmp_path, wording, template):
    """It would answer otherwise in Ollama."""
    with pytest.raises(UsageError) as caught:
        fixed_texts(renderer_of(tmp_path / "model", template), "math@1")
    wording(caught.value)
