"""Engine `torch`: runs a model in this process with PyTorch and transformers, and batches at every iteration."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from attrs import define

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.generation import Delta, GenerationRequest
from modelwright.plugins.engines import TorchOptions
from modelwright.plugins.engines.batch import DeltaStream, Row
from modelwright.plugins.engines.decoding import TextStream, byte_tokens, generator
from modelwright.plugins.engines.loading import LoadedModel, load_model
from modelwright.plugins.engines.scheduler import Scheduler


@define
class _Running:
    model: LoadedModel
    scheduler: Scheduler
    byte_tokens: frozenset[int]
    close: Callable[[], object]


class TorchEngine:
    """Runs one model in its own thread.

    A delta's `token_ids` are all generated tokens, including the stop token and the tokens of a stop string (they count
    towards `max_tokens`); its `text` ends before them. The joined texts are the decoding of the tokens up to the stop,
    without special tokens. A request ends with "length" at `max_tokens` or when the context is full.

    Args:
        options: device, precision, batch size, threads.
    """

    def __init__(self, options: TorchOptions) -> None:
        self._options = options
        self._running: _Running | None = None
        self._closed = False

    @property
    def context(self) -> int | None:
        """Maximum number of tokens, prompt and answer together; None means no limit."""
        return self._loaded().model.context

    def load(self, folder: Path, *, base: Path | None = None) -> None:
        """Load a model folder in Hugging Face layout: config.json, tokenizer.json and safetensors.

        Args:
            folder: a model's, or an adapter's, which has its own tokenizer and config.
            base: the folder of the adapter's base; only its weights are used.

        Raises:
            ModelwrightError: the folder is incomplete or cannot be read, or a model is already loaded.
            UsageError: the device does not exist.
        """
        if self._running is not None or self._closed:
            raise ModelwrightError(f"{folder}: an engine loads one model, once; make another engine for another model")
        model = load_model(Path(folder), self._options, None if base is None else Path(base))
        scheduler = Scheduler(model, self._options.max_batch)
        self._running = _Running(
            model=model,
            scheduler=scheduler,
            byte_tokens=byte_tokens(model.tokenizer),
            # Also when the engine is dropped or the program ends: PyTorch must not run while Python shuts down.
            close=weakref.finalize(self, scheduler.close),
        )

    def submit(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Run a request together with all others. Call it in a running asyncio loop. The last delta has `finish`.

        Closing or dropping the iterator cancels the request.

        Raises:
            UsageError: the request cannot run: its prompt fills the context or has a token that the model does not
                know, a stop string is empty, or a request of that id is running.
            ModelwrightError: no model is loaded, or the engine is closed. While iterating: the model failed.
        """
        running = self._loaded()
        row = Row(
            request=request,
            text=TextStream(running.model.tokenizer, running.byte_tokens, request.sampling.stop),
            generator=generator(request.sampling.seed),
            limit=_limit(request, running.model),
            loop=asyncio.get_running_loop(),
        )
        running.scheduler.add(row)
        return DeltaStream(row.mailbox, lambda: running.scheduler.cancel(row))

    def cancel(self, request_id: str) -> None:
        """End a request early: its stream ends with finish "cancelled". An unknown id is ignored."""
        if self._running is not None:
            self._running.scheduler.cancel_id(request_id)

    def close(self) -> None:
        """Cancel running requests, wait for the thread to end, and release the model."""
        running, self._running, self._closed = self._running, None, True
        if running is not None:
            running.close()

    def _loaded(self) -> _Running:
        if self._running is None:
            raise ModelwrightError(
                "the engine is closed" if self._closed else "the engine has no model yet: call load()"
            )
        return self._running


def _limit(request: GenerationRequest, model: LoadedModel) -> int:
    """The maximum number of tokens to generate for a request; raises `UsageError` if it cannot run."""
    if "" in request.sampling.stop:
        raise UsageError(f"request {request.id!r}: a stop string is empty; it needs at least one character")
    unknown = next((token for token in request.prompt if not 0 <= token < model.vocabulary), None)
    if unknown is not None:
        raise UsageError(
            f"request {request.id!r}: token {unknown} of its prompt is unknown; the model has tokens 0 to "
            f"{model.vocabulary - 1}"
        )
    if model.context is None:
        return request.sampling.max_tokens
    if len(request.prompt) >= model.context:
        raise UsageError(
            f"request {request.id!r}: its prompt has {len(request.prompt)} tokens and the model's context "
            f"{model.context}; at most {model.context - 1} leave room for an answer"
        )
    return min(request.sampling.max_tokens, model.context - len(request.prompt))
