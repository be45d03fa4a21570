"""Several processes of one training, for tests of trainers whose processes a launcher starts."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from typing import Any

from attrs import evolve

from modelwright.core.api import Job, ModelwrightError, Trained
from modelwright.core.api.components import TrainerSpec
from modelwright.core.stages.train.launch import free_port
from modelwright.core.testing.trainer import Recorder

# What the processes would import each for itself; a module that is not there is passed over.
_SLOW_TO_IMPORT = ("transformers.models.llama.modeling_llama", "deepspeed.runtime.zero.muon.muon_optimizer")


def train_in_ranks(
    spec: TrainerSpec,
    options: Any,
    job: Job,
    recorder: Recorder,
    *,
    size: int,
    stop_after: int | None = None,
    kill_after: int | None = None,
) -> Trained:
    """Do a job in processes that find RANK, WORLD_SIZE and their like in their environment, as a launcher sets them.

    They are forked from a server that has imported the trainer already, with one thread each, on the CPU.

    Args:
        spec: of the trainer.
        options: an instance of its options class.
        job: `emit` and `stopping` are replaced: the processes cannot share them.
        recorder: hears the first process's events when all have ended.
        size: how many processes.
        stop_after: as `Recorder.stop_after`.
        kill_after: the step after whose event all processes are ended by SIGKILL.

    Returns:
        What the first process returned.

    Raises:
        InterruptedError: they were killed.
        Exception: what the first process to fail raised; the others are killed.
    """
    environment = {"WORLD_SIZE": str(size), "LOCAL_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    bare = evolve(job, emit=_unheard, stopping=_never)
    context = _context(spec.factory.partition(":")[0])
    with ExitStack() as stack:
        ends: list[Connection] = []
        for rank in range(size):
            here, there = context.Pipe(duplex=False)
            variables = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            kill = kill_after if rank == 0 else None
            process = context.Process(target=_rank, args=(there, variables, spec, options, bare, stop_after, kill))
            process.start()
            there.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            ends.append(here)
        return _outcome(ends, recorder)


@functools.cache
def _context(module: str) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, *_SLOW_TO_IMPORT])
    return context


def _rank(
    end: Connection,
    variables: Mapping[str, str],
    spec: TrainerSpec,
    options: Any,
    job: Job,
    stop_after: int | None,
    kill_after: int | None,
) -> None:
    os.environ |= variables
    import torch

    torch.set_num_threads(1)
    recorder = Recorder(stop_after=stop_after)
    first = variables["RANK"] == "0"

    def emit(kind: str, data: Mapping[str, Any]) -> None:
        if first:
            recorder.emit(kind, data)
        if kind == "step" and data["step"] == kill_after:
            end.send((None, recorder.events, InterruptedError(f"killed after step {kill_after}")))
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        trained = spec.create(options).train(evolve(job, emit=emit, stopping=recorder.stopping))
        end.send((trained, recorder.events, None))
    except ModelwrightError as error:
        end.send((None, recorder.events, error))
    except BaseException as error:  # noqa: BLE001 - the test must see every error
        traceback.print_exc()
        end.send((None, recorder.events, RuntimeError(f"process {variables['RANK']}: {error!r}")))
    end.close()
    os._exit(0)


def _outcome(ends: list[Connection], recorder: Recorder) -> Trained:
    results: dict[Connection, Trained] = {}
    while len(results) < len(ends):
        for end in wait([end for end in ends if end not in results]):
            assert isinstance(end, Connection)
            trained, events, error = end.recv()
            recorder.events += events
            if error is not None:
                raise error
            results[end] = trained
    return results[ends[0]]


def _unheard(_kind: str, _data: Mapping[str, Any]) -> None:
    """Takes the place of a function that cannot be handed to another process."""


def _never() -> bool:
    return False
