"""Parity: another tool reads and answers as this library does, or the export is refused with both sides' tokens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from modelwright.core.api import MachineMemory
from modelwright.core.api.errors import UsageError
from modelwright.core.cli import main
from modelwright.core.models.parity import TOOLS, ParityError, Tool, conversations, find_tool, verify
from modelwright.core.models.peers import PeerError, Reply, Transformers
from modelwright.core.plugins import discover

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def folder(adapters):
    """A tiny Llama with a ChatML template."""
    return adapters.base()


class Spoiled:
    """Plain transformers, but for what a test changes."""

    def __init__(self, folder, tokens=lambda ids: ids, answer=lambda reply: reply):
        self._peer, self._tokens, self._answer = Transformers(folder), tokens, answer

    def tokens(self, prompt):
        return tuple(self._tokens(self._peer.tokens(prompt)))

    def answer(self, ids, most):
        return self._answer(self._peer.answer(ids, most))


def spoiled(tolerance=1e-3, **changes):
    return Tool(
        name="other",
        open=lambda export, _program, _context: contextlib.nullcontext(Spoiled(export, **changes)),
        tolerances={None: tolerance},
    )


def refused(folder, tool):
    with pytest.raises(ParityError) as found:
        verify(folder, folder, tool, plugins=discover())
    return str(found.value)


def test_transformers_reads_and_answers_the_same(folder):
    """All conversations that fit into the tiny model's context; a typed control token is read otherwise on purpose."""
    found = verify(folder, folder, TOOLS["transformers"], plugins=discover())
    assert found.conversations + len(found.left_out) == 20 == len(conversations("<|im_end|>"))
    assert found.conversations >= 10
    assert "tools" in found.left_out  # ChatML shows none
    assert found.tokens > 10
    assert found.largest < 1e-4
    assert found.own == ("a typed control token",)


def test_other_tokens_of_a_prompt_are_shown_side_by_side(folder, wording):
    """The first conversation that differs, and where the two sides part."""
    wording(refused(folder, spoiled(tokens=lambda ids: (*ids[:3], 7, *ids[4:]))))


def test_a_longer_prompt_is_other_tokens(folder):
    """A begin-of-sequence token twice, or a newline too many."""
    assert "part at token 1\n" in refused(folder, spoiled(tokens=lambda ids: (1, *ids)))


def test_a_date_that_the_template_writes_may_differ_and_nothing_else(adapters):
    """It is fixed here and today's there; a token too many at the beginning is none of it."""
    folder = adapters.base()
    template = folder / "chat_template.jinja"
    dated = "{{ '<|im_start|>system\\nIt is ' + strftime_now('%d') + '<|im_end|>\\n' }}"
    template.write_text(dated + template.read_text())
    found = verify(folder, folder, TOOLS["transformers"], plugins=discover())
    assert len(found.own) in (1, found.conversations)  # once in a month today's is the fixed one
    assert "part at token 1\n" in refused(folder, spoiled(tokens=lambda ids: (1, *ids)))


def test_a_comparison_of_nothing_is_refused(folder, wording):
    """A tool without probabilities, and a context that holds no conversation."""
    silent = spoiled(answer=lambda reply: evolve(reply, steps=tuple({} for _ in reply.steps)))
    wording(refused(folder, silent))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    wording(refused(folder, TOOLS["transformers"]))


def test_other_probabilities_are_refused(folder, wording):
    """The same answer by luck is not the same model."""

    def shifted(reply):
        return evolve(reply, steps=tuple({token: value - 0.5 for token, value in step.items()} for step in reply.steps))

    wording(refused(folder, spoiled(answer=shifted)))
    assert verify(folder, folder, spoiled(tolerance=0.6, answer=shifted), plugins=discover()).largest > 0.4


def test_another_answer_is_refused_unless_the_tokens_are_equally_likely(folder):
    """Quantized weights choose another of two likely tokens; that much is accepted."""

    def second(reply):
        best, other = sorted(reply.steps[0], key=reply.steps[0].__getitem__, reverse=True)[:2]
        step = {**reply.steps[0], best: reply.steps[0][other], other: reply.steps[0][best]}
        return Reply(ids=(other, *reply.ids[1:]), ended=reply.ended, steps=(step, *reply.steps[1:]))

    assert "part at token 1\n" in refused(folder, spoiled(answer=second))
    found = verify(folder, folder, spoiled(tolerance=50.0, answer=second), plugins=discover())
    assert found.parted == found.conversations


def test_a_place_without_probabilities_is_judged_by_those_from_here(folder):
    """llama.cpp gives none where a token only begins a character; answers may part there unless one is certain here."""

    def other(reply):
        return Reply(ids=(9, *reply.ids[1:]), ended=reply.ended, steps=({}, *reply.steps[1:]))

    found = verify(folder, folder, spoiled(tolerance=0.0, answer=other), plugins=discover())
    assert (found.parted, found.tokens) == (found.conversations, 0)
    _answer_with(folder, 20)
    assert "part at token 1\n" in refused(folder, spoiled(tolerance=0.5, answer=other))


def test_an_answer_that_does_not_stop_is_refused(adapters, wording):
    """The most frequent complaint: the other tool writes the end of the turn, and goes on."""
    folder = adapters.base()
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    _answer_with(folder, end)

    def endless(reply):
        assert reply.ended
        return Reply(ids=(*reply.ids, end, 9), ended=False, steps=(*reply.steps, {9: -0.1}))

    wording(refused(folder, spoiled(tolerance=50.0, answer=endless)))


def _answer_with(folder, token):
    """Change a model's last weights so that it is certain of one token at every place."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        # All places share the sign of one hidden number, which is the only one that the last layer sees.
        model.model.norm.weight.zero_()[0] = 1
        model.lm_head.weight.zero_()[token] = 1000
    model.save_pretrained(folder)


def test_a_tool_that_refuses_a_conversation_is_named(folder, wording):
    """Its template engine may lack what the template uses."""

    def refuse(ids):
        raise PeerError("other refuses it: no filter named 'tojson'")

    wording(refused(folder, spoiled(tokens=refuse)))


@pytest.fixture
def program(tmp_path):
    """Makes a program of a few lines of shell."""

    def make(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def test_a_server_that_does_not_start_says_why(folder, program, wording):
    """The line of its log that has the error."""
    path = program("llama-server", "echo loading; echo 'error: unknown architecture' >&2; echo bye; exit 3")
    with pytest.raises(ParityError) as found:
        verify(folder, folder, TOOLS["llama.cpp"], plugins=discover(), program=str(path))
    wording(str(found.value))


def test_a_program_is_found_where_the_user_says(tmp_path, program, monkeypatch, wording, adapters):
    """A file, a folder with it, or PATH."""
    version = adapters.add(adapters.base())
    (tmp_path / "built" / "build" / "bin").mkdir(parents=True)
    path = program("built/build/bin/llama-server", "exit 0")
    assert find_tool("llama.cpp", path, version)[1] == str(path)
    assert find_tool("llama.cpp", tmp_path / "built", version)[1] == str(path)
    monkeypatch.setenv("PATH", str(path.parent))
    assert find_tool("llama.cpp", None, version)[1] == str(path)
    monkeypatch.setenv("PATH", "")
    for given in (None, tmp_path / "missing", tmp_path / "adapters"):
        with pytest.raises(UsageError) as found:
            find_tool("llama.cpp", given, version)
        wording(str(found.value).replace(str(tmp_path), "FOLDER"))


# The command


@pytest.fixture
def export(adapters, tmp_path, capsys):
    """Runs `models export` on a tiny model: (exit code, standard output, standard error)."""
    adapters.add(adapters.base())

    def run(*arguments, name="base"):
        with pytest.raises(SystemExit) as ended:
            main(["models", "export", name, *map(str, arguments)])
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", ["out", "out.tar.gz"])
def test_an_export_is_verified_in_transformers_by_default(export, tmp_path, name):
    """The figures are in the output, and in the JSON."""
    code, out, err = export(tmp_path / name)
    assert (code, err) == (0, "")
    assert out.startswith("same tokens and answers in transformers: ")
    code, out, _ = export(tmp_path / f"json-{name}", "--json", "--verify")
    (found,) = json.loads(out)["verified"]
    assert (code, found["tool"], found["tolerance"]) == (0, "transformers", 1e-3)


def test_vllm_verifies_by_default_where_it_is_named(export, adapters, tmp_path, program, monkeypatch, wording):
    """By the environment or the option; to find it on PATH is not enough, since its server takes a minute to start."""
    monkeypatch.setitem(TOOLS, "transformers", spoiled())
    server = program("vllm", "echo 'error: no such device' >&2; exit 3")
    monkeypatch.setenv("PATH", str(server.parent))
    assert export(tmp_path / "out")[::2] == (0, "")
    monkeypatch.setenv("MODELWRIGHT_VLLM", str(server))
    code, out, err = export(tmp_path / "named")
    assert (code, out) == (1, "")
    wording(err)
    assert export(tmp_path / "gone", "--vllm", tmp_path / "gone")[0] == 2
    adapters.add(adapters.adapter(adapters.folder / "base"), source="base")
    assert export(tmp_path / "adapter", name="adapter")[0] == 0


def test_a_model_that_does_not_fit_twice_into_memory_is_exported_with_a_note(export, tmp_path, monkeypatch, wording):
    """Unless the user wants it verified all the same."""
    little = MachineMemory(machine=1000, usable=1000, free=1000)
    monkeypatch.setattr("modelwright.core.api.free_memory.machine_memory", lambda: little)
    code, out, err = export(tmp_path / "out")
    assert (code, "same tokens" in out) == (0, False)
    wording(err.removesuffix("\n"))
    code, out, _ = export(tmp_path / "verified", "--verify", "transformers")
    assert (code, "same tokens" in out) == (0, True)


def test_sources_of_llama_cpp_without_a_server_leave_the_one_on_path(tmp_path, program, monkeypatch):
    """`--llama-cpp` names a converter as well."""
    from modelwright.core.cli.models.transfer import _built_server

    (tmp_path / "sources").mkdir()
    assert _built_server(tmp_path / "sources") is None
    server = program("sources/llama-server", "exit 0")
    assert _built_server(tmp_path / "sources") == server


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_an_export_that_answers_otherwise_leaves_nothing_behind(export, tmp_path, monkeypatch, name):
    """Neither the destination nor a temporary file."""
    monkeypatch.setitem(TOOLS, "transformers", spoiled(tokens=lambda ids: (1, *ids)))
    before = sorted(tmp_path.iterdir())
    code, out, err = export(tmp_path / name)
    assert (code, out) == (1, "")
    assert "reads other tokens" in err
    assert "--no-verify" in err
    assert "base@1 was not exported" in err
    assert sorted(tmp_path.iterdir()) == before
    assert export("--no-verify", tmp_path / name)[0] == 0


def test_options_that_do_not_fit_are_refused(export, adapters, tmp_path, monkeypatch, wording):
    """One line each; nothing is written."""
    monkeypatch.setenv("PATH", "")
    adapters.add(adapters.adapter(adapters.folder / "base"), source="base")
    for name, options in {
        "base": ("--verify", "llama.cpp"),
        "base@1": ("--verify", "transformers", "--no-verify"),
        "@none": ("--verify", "vllm"),
    }.items():
        code, _, err = export(tmp_path / "out", *options, name=name.replace("@none", "base"))
        assert code == 2
        wording(err)
    assert not (tmp_path / "out").exists()


# The real ones


@pytest.mark.long
def test_a_real_model_is_verified_in_transformers(smollm2):
    """Exactly, but for the rounding of float32."""
    found = verify(smollm2, smollm2, TOOLS["transformers"], plugins=discover())
    assert found.conversations == 19  # its template shows no tools
    assert found.tokens > 200
    assert found.largest < 1e-4
    assert found.parted == 0


@pytest.fixture(scope="session")
def vllm(tmp_path_factory):
    """The program of a real vLLM: $MODELWRIGHT_VLLM, or one that is installed once for all test processes."""
    if given := os.environ.get("MODELWRIGHT_VLLM"):
        return given
    tool = REPOSITORY.parent / "shared" / "tools" / "real-vllm.sh"
    if not tool.is_file():
        pytest.skip("the script that installs vLLM (../shared/tools/real-vllm.sh) is not beside this checkout")
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with (root / "vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(["bash", tool, root / "vllm"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"vLLM cannot be installed: {made.stderr.strip().splitlines()[-1:]}")
    return str(root / "vllm" / "bin" / "vllm")


@pytest.mark.long
def test_a_real_model_is_verified_in_vllm(smollm2, vllm):
    """A real server of vLLM, in float32 too."""
    found = verify(smollm2, smollm2, TOOLS["vllm"], plugins=discover(), program=vllm)
    assert found.conversations == 19
    assert found.tokens > 200
    assert found.largest < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("quantization", [None, "q8_0"])
def test_a_real_model_is_verified_in_llama_cpp(smollm2, tmp_path, quantization):
    """A real llama-server, on the GGUF that an export writes."""
    from modelwright.core.models.gguf_export import write_gguf

    program = os.environ.get("MODELWRIGHT_LLAMA_SERVER") or shutil.which("llama-server")
    if program is None:
        pytest.skip("no llama-server is on PATH, nor named by MODELWRIGHT_LLAMA_SERVER")
    write_gguf(smollm2, tmp_path / "model.gguf", name="smollm2", quantize=quantization, llama_cpp=None)
    found = verify(
        smollm2,
        tmp_path / "model.gguf",
        TOOLS["llama.cpp"],
        plugins=discover(),
        program=program,
        quantization=quantization,
    )
    assert found.conversations == 19
    assert found.largest <= found.tolerance
