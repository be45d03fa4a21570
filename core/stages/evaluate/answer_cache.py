"""Answers that outlive a stop: an engine that writes down what it has answered and does not generate it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

from attrs import asdict

from modelwright.core.api import files
from modelwright.core.api.components import Engine
from modelwright.core.api.generation import Answer, Delta, GenerationRequest
from modelwright.core.api.records import digest_json


class Remembering:
    """An engine in front of another one.

    Each finished answer is a line of a file, handed to the system at once: a killed process loses none, and a machine
    without power may lose some, which are generated again. A line that was cut short or damaged is dropped.
    """

    def __init__(self, engine: Engine, path: Path, fingerprint: str) -> None:
        """Read the answers of `path`, if they were given for the same `fingerprint`; otherwise begin anew."""
        self.engine = engine
        self.path = path
        self.known = _read(path, fingerprint)
        self._header = {"fingerprint": fingerprint}
        self._file: IO[str] | None = None

    def load(self, folder: Path) -> None:
        """Load a model; the answers must be that model's."""
        self.engine.load(folder)

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Give what is known in one piece, or run the request and remember its answer."""
        key = request_key(request)
        known = self.known.get(key)
        if known is not None:
            yield Delta(text=known["text"], token_ids=tuple(known["token_ids"]), finish=known["finish"])
            return
        answer = Answer()
        async for delta in self.engine.submit(request):
            answer.add(delta)
            if delta.finish and delta.finish != "cancelled":
                self._write({"key": key, "text": answer.text, "token_ids": answer.token_ids, "finish": answer.finish})
            yield delta

    def cancel(self, request_id: str) -> None:
        """End a request early."""
        self.engine.cancel(request_id)

    def close(self) -> None:
        """Close the file; the engine goes on to other suites."""
        if self._file is not None:
            self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._opened()
        self._file.write(files.json_line(value))
        self._file.flush()

    def _opened(self) -> IO[str]:
        if self.known:
            with self.path.open("r+b") as earlier:
                earlier.truncate(_whole(self.path))
            return self.path.open("a", encoding="utf-8")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("w", encoding="utf-8")
        file.write(files.json_line(self._header))
        return file


def request_key(request: GenerationRequest) -> str:
    """What an answer depends on, but for the model."""
    return digest_json([request.prompt, asdict(request.sampling), sorted(request.stop_token_ids)])


def _whole(path: Path) -> int:
    """How many bytes of a file are whole lines."""
    return path.read_bytes().rfind(b"\n") + 1


def _read(path: Path, fingerprint: str) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    lines = list(files.appended_tables(path.read_bytes()))
    if not lines or lines[0].get("fingerprint") != fingerprint:
        return {}
    return {line["key"]: line for line in lines[1:] if line.keys() >= {"key", "text", "token_ids", "finish"}}
