"""Other tools that run a model, each asked for the tokens of a prompt and for a greedy answer to given tokens.

transformers runs in this process; the servers of vLLM and llama.cpp are started on a free port of this machine, with
the export, and ended afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.records import Message
from modelwright.core.api.wording import one_line
from modelwright.core.chat.templates import parse_array, template_message
from modelwright.core.extras import require

# Probabilities for each token of an answer; vLLM gives no more by default.
TOP = 20
# A server on a busy CPU is ready after 30 to 300 seconds, and answers a prompt after one or more.
_START_SECONDS, _ANSWER_SECONDS = 900, 600
_STOP_SECONDS = 30
_BINARIES = ("", "build/bin", "bin")


@frozen(kw_only=True)
class Prompt:
    """Something that both sides are asked.

    Attributes:
        name: for messages.
        messages: a conversation; empty for a plain text.
        tools: descriptions of tools, as JSON.
        text: what to continue, for models without a chat template.
    """

    name: str
    messages: tuple[Message, ...] = ()
    tools: str | None = None
    text: str = ""


@frozen(kw_only=True)
class Reply:
    """A greedy answer.

    Attributes:
        ids: its tokens without the one that ended it.
        ended: whether it ended by a token, not by the maximum number.
        steps: natural log-probabilities of the likeliest tokens at each place, the end's too; empty where the tool
            gives none.
    """

    ids: tuple[int, ...]
    ended: bool
    steps: tuple[Mapping[int, float], ...]


class PeerError(ModelwrightError):
    """The other tool does not start, or refuses what it is asked."""


class Peer(Protocol):
    """Another tool with a model loaded."""

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens of a prompt, as the tool's users get them.

        Raises:
            PeerError: it refuses the prompt.
        """
        ...

    def answer(self, ids: Sequence[int], most: int) -> Reply:
        """Answer given tokens greedily, with at most `most` tokens.

        Raises:
            PeerError: it refuses.
        """
        ...


class Transformers:
    """Plain transformers: AutoTokenizer.apply_chat_template and AutoModelForCausalLM.generate."""

    def __init__(self, folder: Path) -> None:
        transformers, self._torch = require("transformers"), require("torch")
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=self._torch.float32, local_files_only=True, use_safetensors=True
            ).eval()
            if self._torch.cuda.is_available():
                self._model.to("cuda")
        except (OSError, RuntimeError, ValueError) as error:
            raise PeerError(f"transformers cannot load it: {type(error).__name__}: {one_line(error):.300}") from error
        # Greedy, with nothing else that a model's own settings may add.
        self._ends = self._model.generation_config.eos_token_id
        self._model.generation_config = transformers.GenerationConfig(eos_token_id=self._ends, pad_token_id=0)

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """See `Peer`."""
        if not prompt.messages:
            return tuple(self._tokenizer(prompt.text)["input_ids"])
        tools = None if prompt.tools is None else parse_array(prompt.tools, "tools")
        try:
            encoded = self._tokenizer.apply_chat_template(
                [template_message(message) for message in prompt.messages], tools=tools, add_generation_prompt=True
            )
        except Exception as error:
            # A template raises any error of Jinja.
            raise PeerError(f"transformers refuses it: {type(error).__name__}: {one_line(error):.200}") from error
        return tuple(encoded["input_ids"])

    def answer(self, ids: Sequence[int], most: int) -> Reply:
        """See `Peer`."""
        torch = self._torch
        given = torch.tensor([list(ids)], device=self._model.device)
        try:
            with torch.no_grad():
                made = self._model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=most,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
        except RuntimeError as error:
            raise PeerError(f"transformers cannot answer: {one_line(error):.300}") from error
        steps = []
        for logits in made.logits:
            best = logits[0].float().log_softmax(dim=-1).topk(min(TOP, logits.shape[-1]))
            steps.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        ends = frozenset(self._ends if isinstance(self._ends, list) else [self._ends])
        return _reply(made.sequences[0, len(ids) :].tolist(), ends, steps)


class Vllm:
    """A server of vLLM on an exported folder."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """See `Peer`."""
        request = _openai(prompt) if prompt.messages else {"prompt": prompt.text}
        return tuple(self._server.post("/tokenize", {"model": "model", **request})["tokens"])

    def answer(self, ids: Sequence[int], most: int) -> Reply:
        """See `Peer`."""
        request = {
            "model": "model",
            "prompt": list(ids),
            "max_tokens": most,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "logprobs": TOP,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        choice = self._server.post("/v1/completions", request)["choices"][0]
        steps = [
            {int(name.removeprefix("token_id:")): value for name, value in step.items()}
            for step in choice["logprobs"]["top_logprobs"]
        ]
        made = choice["token_ids"]
        return _reply(made, frozenset(made[-1:] if choice["finish_reason"] == "stop" else ()), steps)


class LlamaCpp:
    """llama.cpp's server on a GGUF file."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """See `Peer`."""
        text = self._server.post("/apply-template", _openai(prompt))["prompt"] if prompt.messages else prompt.text
        request = {"content": text, "add_special": True, "parse_special": bool(prompt.messages)}
        return tuple(self._server.post("/tokenize", request)["tokens"])

    def answer(self, ids: Sequence[int], most: int) -> Reply:
        """See `Peer`."""
        request = {
            "prompt": list(ids),
            "n_predict": most,
            "temperature": 0,
            "repeat_penalty": 1.0,
            "n_probs": TOP,
            "return_tokens": True,
            "cache_prompt": False,
        }
        answer = self._server.post("/completion", request)
        # A token that is only the beginning of a character has no entry, so they are matched from the end.
        steps: list[dict[int, float]] = []
        given = answer.get("completion_probabilities", [])
        for token in reversed(answer["tokens"]):
            is_given = bool(given) and given[-1]["id"] == token
            steps.insert(0, {each["id"]: each["logprob"] for each in given.pop()["top_logprobs"]} if is_given else {})
        made = answer["tokens"]
        return _reply(made, frozenset(made[-1:] if answer["stop_type"] == "eos" else ()), steps)


def _reply(made: list[int], ends: frozenset[int | None], steps: list[dict[int, float]]) -> Reply:
    ended = bool(made) and made[-1] in ends
    return Reply(ids=tuple(made[:-1] if ended else made), ended=ended, steps=tuple(steps))


def _openai(prompt: Prompt) -> dict[str, Any]:
    """A conversation as OpenAI's API has it, in which a call's arguments are JSON text."""
    messages = [template_message(message) for message in prompt.messages]
    for call in (call for message in messages for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    tools = {} if prompt.tools is None else {"tools": parse_array(prompt.tools, "tools")}
    return {"messages": messages, **tools}


class Server:
    """A server that was started here.

    Args:
        name: of the tool, for messages.
        port: where it answers, on this machine.
    """

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._url = f"http://127.0.0.1:{port}"
        # A proxy of the environment is for other machines.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        try:
            with self._opener.open(f"{self._url}/health", timeout=10):
                return True
        except OSError:
            return False

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask, and give the answer.

        Raises:
            PeerError: it refuses, does not answer, or answers something else than JSON.
        """
        request = urllib.request.Request(  # noqa: S310 - the address is this machine's
            self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=_ANSWER_SECONDS) as answer:
                value: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            said = one_line(error.read().decode("utf-8", "replace"))
            raise PeerError(f"{self._name} refuses it ({path}, status {error.code}): {said:.300}") from error
        except (OSError, ValueError) as error:
            raise PeerError(f"{self._name} does not answer ({path}): {one_line(error):.200}") from error
        return value


@contextlib.contextmanager
def _running(name: str, command: Sequence[object], port: int, **environment: str) -> Iterator[Server]:
    """Start a server, wait until it has loaded its model, and end it afterwards.

    Raises:
        PeerError: it ends, or is not ready in time.
    """
    server = Server(name, port)
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | os.environ,
                start_new_session=True,
            )
        except OSError as error:
            raise PeerError(f"{name} cannot be started: {command[0]}: {error.strerror}") from error
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not server.is_ready():
                if process.poll() is not None:
                    raise PeerError(f"{name} ended before it was ready (exit code {process.returncode}): {_last(log)}")
                if time.monotonic() > deadline:
                    raise PeerError(f"{name} was not ready after {_START_SECONDS} s: {_last(log)}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
                process.wait()


def _last(log: Any) -> str:
    """The line of a server's log that says why: the last one about an error, else the last."""
    log.seek(0)
    lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if "error" in line.lower()]
    return one_line((errors or lines)[-1])[:300]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@contextlib.contextmanager
def transformers(export: Path, program: str | None, context: int) -> Iterator[Peer]:  # noqa: ARG001 - as the others
    """Plain transformers on an exported folder."""
    yield Transformers(export)


@contextlib.contextmanager
def vllm(export: Path, program: str | None, context: int) -> Iterator[Peer]:
    """Server of vLLM on an exported folder, in float32."""
    port = _free_port()
    command = [program, "serve", export, "--host", "127.0.0.1", "--port", port, "--served-model-name", "model"]
    command += ["--dtype", "float32", "--max-model-len", context, "--max-num-seqs", 4, "--enforce-eager"]
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with _running("vLLM", command, port, **quiet) as server:
        yield Vllm(server)


@contextlib.contextmanager
def llama_cpp(export: Path, program: str | None, context: int) -> Iterator[Peer]:
    """llama.cpp's server on a GGUF file."""
    port = _free_port()
    command = [program, "--model", export, "--host", "127.0.0.1", "--port", port, "--ctx-size", context]
    with _running("llama.cpp", [*command, "--parallel", 1, "--jinja"], port) as server:
        yield LlamaCpp(server)


def find_program(name: str, given: Path | None, option: str) -> str | None:
    """Where a program is: the file that was given, in the folder that was given, or on PATH.

    Args:
        name: of the program.
        given: the user's choice.
        option: by which it was given, for messages.

    Raises:
        UsageError: it is not where the user says.
    """
    if given is None:
        return shutil.which(name)
    places = [given / part / name for part in _BINARIES] if given.is_dir() else [given]
    found = next((place for place in places if place.is_file() and os.access(place, os.X_OK)), None)
    if found is None:
        where = (
            f"this folder has no program {name}, nor has its bin or build/bin"
            if given.is_dir()
            else ("this program does not exist" if not given.exists() else "this file is not a program")
        )
        raise UsageError(f"{option} {given}: {where}; name the program {name}, or its folder")
    return str(found)
