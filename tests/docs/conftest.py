"""Pages of Markdown, run as a reader would: their blocks in order, in a fresh folder, with the real command line.

A block of bash or python is run. One of TOML or YAML is a whole configuration, which the reader must accept. An HTML
comment before a block, which readers do not see, says how to treat it:

    <!-- test: skip WHY -->           it is not run, and why not
    <!-- test: file NAME -->          it is that file's content from here on
    <!-- test: fragment -->           a part of a run file (`fragment eval`: of an evaluation file)
    <!-- test: exit 2 -->             it ends with that code
    <!-- test: background -->         a server, which answers from here on and is stopped at the page's end
    <!-- test: needs PROGRAM -->      it is left out where that program is not installed
    <!-- test: output -->             each line of it is in the output of the last block; … matches anything

and these are on their own, without a block:

    <!-- test: stop -->               the servers end
    <!-- test: models -->             the quickstart's models, briefly trained, are in the registry
    <!-- test: run                    what a reader has done already, or does elsewhere
    …bash… -->
    <!-- test: table -->              each command in the code of the following table is run
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli
import warm
from attrs import define, field, frozen
from ruamel.yaml import YAML

from modelwright.core.config import is_eval_file, read_eval, read_run

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 180.0

# The pages' servers listen on other ports: these may be taken.
PORTS = ("50051", "50052", "8080")

RUNS = {"bash", "python"}
CONFIGURATIONS = {"toml", "yaml"}
SHOWN = {"console", "html", "javascript", "json", "jsonl", "text"}

_COMMENT = re.compile(r"<!-- test: (\S+)(.*?)-->", re.DOTALL)
_FENCE = re.compile(r"```(\w*)\s*$")

# What a fragment is merged over: no more than a run must have, so that the fragment says the rest.
RUN = """
name = "page"
[data]
format = "math"
sources = [{ path = "builtin:arithmetic/train" }]
[train]
max_steps = 5
"""
# A fragment that names a base has another model.
MODEL = """
[model.scratch]
hidden_size = 32
"""
EVAL = """
models = "all"
[[evaluate]]
name = "page"
path = "builtin:arithmetic/test"
format = "math"
metrics = ["math_accuracy"]
"""

# The command line, with another default port than 50051.
COMMAND = """
import sys
from modelwright.core.cli import cli, main
server, listen = {{"server": "127.0.0.1:{port}"}}, {{"listen": "127.0.0.1:{port}"}}
cli.context_settings["default_map"] = {{"chat": server, "generate": server, "serve": listen}}
main(sys.argv[1:])
"""


@frozen
class Said:
    """One `<!-- test: … -->`."""

    word: str
    rest: str


@frozen
class Block:
    """A block at a line of a page, with the comments before it (`said`); a comment on its own has no language."""

    line: int
    language: str
    text: str
    said: tuple[Said, ...] = ()

    def get(self, word: str) -> str | None:
        return next((one.rest for one in self.said if one.word == word), None)


ALONE = {"stop", "models", "run", "table"}


def read_blocks(text: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    lines = text.splitlines()
    said: list[Said] = []
    number = 0
    while number < len(lines):
        line = number + 1
        if lines[number].startswith("<!-- test:"):
            end = next(n for n in range(number, len(lines)) if lines[n].rstrip().endswith("-->"))
            match = _COMMENT.fullmatch("\n".join(lines[number : end + 1]).rstrip())
            assert match, f"line {line}: {lines[number]!r} is not a comment for the tests"
            number = end + 1
            one = Said(match[1], match[2].strip())
            if one.word not in ALONE:
                said.append(one)
            elif one.word == "table":
                yield from table_commands(lines, number)
            else:
                yield Block(line, "", one.rest, (one,))
        elif fence := _FENCE.match(lines[number]):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].rstrip() == "```")
            yield Block(line, fence[1], "\n".join(lines[number + 1 : end]) + "\n", tuple(said))
            said = []
            number = end + 1
        else:
            assert not said or not lines[number].strip(), f"line {line}: no block follows {said}"
            number += 1
    assert not said, f"no block follows {said}"


def table_commands(lines: list[str], number: int) -> Iterator[Block]:
    """The commands in a table: each is a block of its own."""
    while not lines[number].startswith("|"):
        number += 1
    for row in range(number + 2, len(lines)):
        if not lines[row].startswith("|"):
            return
        cell = lines[row].replace("\\|", "\0").split("|")[2]
        commands = [code.replace("\0", "|") for code in re.findall(r"`(modelwright [^`]+)`", cell)]
        assert commands, f"line {row + 1}: the second column has no command"
        yield from (Block(row + 1, "bash", command) for command in commands)


@define
class Server:
    process: subprocess.Popen
    log: Path


@define
class Reader:
    """Follows a page to its end, as a person would."""

    folder: Path
    models: Callable[[], Path]
    ports: dict[str, int]
    environment: dict[str, str]
    printed: str = ""
    servers: list[Server] = field(factory=list)
    missing: list[str] = field(factory=list)

    def follow(self, page: Path) -> None:
        try:
            for block in read_blocks(page.read_text(encoding="utf-8")):
                where = f"{page.relative_to(REPOSITORY)}:{block.line}"
                self.do(block, where)
            self.stop()
        finally:
            for server in self.servers:
                server.process.kill()

    def read_configurations(self, page: Path) -> None:
        """Read the page's configurations, and run nothing."""
        for block in read_blocks(page.read_text(encoding="utf-8")):
            where = f"{page.relative_to(REPOSITORY)}:{block.line}"
            name = block.get("file")
            if name is not None:
                self.write(name, block)
                if block.language == "toml":
                    assert tomli.loads(block.text), where
            elif block.language in CONFIGURATIONS and block.get("skip") is None:
                self.check(block, where)

    def do(self, block: Block, where: str) -> None:
        program = block.get("needs")
        if block.get("skip") is not None:
            assert len(block.get("skip")) > 10, f"{where}: say why it is not run"
        elif program and shutil.which(program) is None:
            self.missing.append(f"{where} needs {program}")
        elif not block.language:
            self.alone(block, where)
        elif (name := block.get("file")) is not None:
            self.write(name, block)
        elif block.get("output") is not None:
            self.compare(block, where)
        elif block.get("background") is not None:
            self.start(block.text, where)
        elif block.language in CONFIGURATIONS:
            self.check(block, where)
        elif block.language in RUNS:
            command = ["bash", "-euo", "pipefail"] if block.language == "bash" else ["python", "-"]
            self.run(command, block.text, where, expected=int(block.get("exit") or 0))
        else:
            assert block.language in SHOWN, f"{where}: a block of {block.language!r} is unknown to the tests"

    def alone(self, block: Block, where: str) -> None:
        word = block.said[0].word
        if word == "models":
            shutil.copytree(self.models(), self.folder / ".modelwright", symlinks=True)
        elif word == "stop":
            self.stop()
        else:
            self.run(["bash", "-euo", "pipefail"], block.text, where)

    def write(self, name: str, block: Block) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.moved(block.text), encoding="utf-8")

    def check(self, block: Block, where: str) -> None:
        """A configuration is read as the command line reads it."""
        text, kind = block.text, block.get("fragment")
        if kind is None:
            path = self.folder / f"whole.{block.language}"
            path.write_text(text, encoding="utf-8")
            _ = read_eval(path) if is_eval_file(path) else read_run(path)
            return
        parsed = tomli.loads(text) if block.language == "toml" else YAML(typ="safe").load(text)
        assert parsed, f"{where}: it is empty"
        base = EVAL if kind == "eval" else RUN + ("" if "model" in parsed else MODEL)
        (self.folder / "base.toml").write_text(base, encoding="utf-8")
        path = self.folder / f"fragment.{block.language}"
        line = "extends: base.toml\n" if block.language == "yaml" else 'extends = "base.toml"\n'
        path.write_text(line + text, encoding="utf-8")
        _ = read_eval(path) if kind == "eval" else read_run(path)

    def run(self, command: list[str], text: str, where: str, *, expected: int = 0) -> None:
        done = subprocess.run(
            command,
            input=self.moved(text),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.printed = done.stdout + done.stderr
        logs = "".join(f"\n--- {server.log.name}\n{server.log.read_text()}" for server in self.servers)
        assert done.returncode == expected, f"{where}: exit code {done.returncode}\n{text}\n{self.printed}{logs}"

    def start(self, text: str, where: str) -> None:
        log = self.folder.parent / f"server-{len(self.servers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f"exec {self.moved(text).strip()}"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.servers.append(Server(process, log))
        give_up = time.monotonic() + PATIENCE
        while "serving on" not in log.read_text():
            assert process.poll() is None, f"{where}: the server ended\n{log.read_text()}"
            assert time.monotonic() < give_up, f"{where}: the server is not ready\n{log.read_text()}"
            time.sleep(0.1)
        self.printed = log.read_text()

    def stop(self) -> None:
        """As a service manager does."""
        for server in self.servers:
            server.process.terminate()
        for server in self.servers:
            assert server.process.wait(timeout=60) == 0, server.log.read_text()
        self.servers.clear()

    def compare(self, block: Block, where: str) -> None:
        printed = " ".join(self.unmoved(self.printed).split())
        for line in filter(str.strip, block.text.splitlines()):
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
            assert re.search(pattern, printed), f"{where}: {line!r} is not in\n{self.unmoved(self.printed)}"

    def moved(self, text: str) -> str:
        for port, other in self.ports.items():
            text = re.sub(rf"(?<=:){port}\b", str(other), text)
        return text

    def unmoved(self, text: str) -> str:
        for port, other in self.ports.items():
            text = re.sub(rf"(?<=:){other}\b", port, text)
        return text


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def reader_environment(bin_folder: Path, site: Path) -> dict[str, str]:
    """What a reader's terminal has: this installation first on the path; packages go into the page's own folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MODELWRIGHT_", "PYTEST_"))}
    path = [str(bin_folder), str(Path(sys.executable).parent), environment.get("PATH", "")]
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "false"}
    more = {"NO_COLOR": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(site), "PIP_QUIET": "1"}
    return {**environment, "PATH": os.pathsep.join(path), **pip, **more}


@pytest.fixture(scope="session")
def trained_models(tmp_path_factory) -> Path:
    """A home with the quickstart's models, trained for a few steps: they only have to answer.

    Test processes share one: the first makes it, the others wait for its lock. It appears whole, by a rename.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    home = shared / "trained-models"
    with (shared / "trained-models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            made = tmp_path_factory.mktemp("models") / "home"
            train_models(made)
            made.rename(home)
    return home


def train_models(home: Path) -> None:
    settings = {
        "data.sources": '[{ path = "builtin:arithmetic/train", limit = 200 }]',
        "train.max_steps": "4",
        "evaluate.0.limit": "8",
        "evaluate.0.generation.max_tokens": "4",
    }
    run = ["run", str(REPOSITORY / "examples" / "quickstart.toml"), "--variant", "math", "--variant", "reasoning"]
    run += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    environment = {**os.environ, "MODELWRIGHT_HOME": str(home)}
    for command in (run, ["models", "alias", "assistant", "arithmetic-math"]):
        done = warm.run([sys.executable, "-m", "modelwright.core", *command], env=environment, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(home / "cache", ignore_errors=True)


@pytest.fixture
def reader(tmp_path, request) -> Iterator[Reader]:
    """A reader in a fresh folder with the examples, as in a clone."""
    folder, site, commands = tmp_path / "reader", tmp_path / "site-packages", tmp_path / "bin"
    for each in (folder, site, commands):
        each.mkdir()
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    (commands / "command.py").write_text(COMMAND.format(port=ports["50051"]))
    command = commands / "modelwright"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(warm.stand_in(commands / "command.py"))} "$@"\n')
    command.chmod(0o755)
    # Only the pages that ask for trained models wait for them.
    made = Reader(folder, lambda: request.getfixturevalue("trained_models"), ports, reader_environment(commands, site))
    shutil.copytree(REPOSITORY / "examples", folder / "examples", ignore=shutil.ignore_patterns("node_modules"))
    for script in (folder / "examples").rglob("*.py"):
        script.write_text(made.moved(script.read_text()))
    yield made
    for server in made.servers:
        server.process.terminate()
