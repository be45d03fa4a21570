"""Processes that start with torch and transformers imported, which takes five seconds of CPU time otherwise.

`WarmPopen` is a `subprocess.Popen` for this Python's programs: a server, which has the imports and nothing else, forks
a process for each. It has a pid, a session, descriptors, an environment and a working directory of its own, and ends as
any other. A second server has DeepSpeed as well, for processes with DS_ACCELERATOR=cpu; its launcher and torchrun
fork what they start. Cold starts are tested where they are the point: tests/test_house.py, and everything that the
quickstart or srun starts; of the jobs in tests/core/cluster, only those that test how a job begins.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import re
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What workers and commands import, but for the modules that are run as programs.
PRELOADED = (
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
    "pyarrow.dataset",
    "modelwright.core.runner",
    "modelwright.core.stages.evaluate.evaluation",
    "modelwright.plugins.engines.torch_engine",
    "modelwright.plugins.formats.math",
    "modelwright.plugins.metrics.grading",
    "modelwright.plugins.registries.sql",
    "modelwright.plugins.trainers.local",
)
# Beside these, what trains under DeepSpeed or is started by torchrun.
PRELOADED_DEEPSPEED = (
    "deepspeed",
    "modelwright.plugins.trainers.deepspeed.trainer",
)
# Programs that start this project's, each process with others' variables.
LAUNCHERS = ("deepspeed.launcher.runner", "deepspeed.launcher.launch", "torch.distributed.run")
# Libraries read these when they are imported: a process that has others is started cold.
READ_AT_IMPORT = re.compile("(DS|HF|HUGGINGFACE|LD|MKL|OMP|TOKENIZERS|TORCH(?!_NCCL)|TRANSFORMERS|XDG)_.*")
# The runner sets it for its workers (core/runs/supervisor.py).
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# The variables of this process when `warm_workers` was called, before tests change them.
_at_start: dict[str, str] = {}
_NUMBER = struct.Struct("!i")


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in sorted(environment) if READ_AT_IMPORT.fullmatch(name)}


@functools.cache
def _server() -> str:
    """Start the server, which ends with this process; gives its address."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    alive, _open_as_long_as_this_process = os.pipe()
    ready, written = os.pipe()
    with (folder / "log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, __file__, str(folder / "socket"), str(alive), str(written)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(alive, written),
            env=_at_start,
            cwd="/",
            start_new_session=True,
        )
    os.close(alive)
    os.close(written)
    assert os.read(ready, 1), (folder / "log").read_text()
    os.close(ready)
    return str(folder / "socket")


def _server_for(environment: Mapping[str, str]) -> str:
    """The address of the server whose processes have what this environment's programs import."""
    return _server() + (".deepspeed" if environment.get("DS_ACCELERATOR") == "cpu" else "")


class WarmPopen(subprocess.Popen):
    """A process of `[sys.executable, "-P"?, "-m", MODULE, …]` or `[sys.executable, "-P"?, SCRIPT, …]`."""

    def __init__(
        self,
        args: Sequence[Any],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
        **options: Any,
    ) -> None:
        command = [os.fspath(each) for each in args]
        assert command[0] == sys.executable, command
        environment = dict(os.environ if env is None else env)
        request = {"command": command[1:], "cwd": os.fspath(cwd or Path.cwd()), "session": start_new_session}
        request |= {"numbers": [0, 1, 2, *pass_fds], "environment": environment}
        self._request = json.dumps(request).encode()
        self._address = _server_for(environment)
        self._passed = list(pass_fds)
        self._connection = socket.socket(socket.AF_UNIX)
        super().__init__(command, **options)

    def _execute_child(self, *given: Any) -> None:
        stdin, ours_in, ours_out, stdout, ours_error, stderr = given[10:16]
        streams = [theirs if theirs != -1 else own for own, theirs in enumerate((stdin, stdout, stderr))]
        self._connection.connect(self._address)
        header = _NUMBER.pack(len(self._request))
        socket.send_fds(self._connection, [header], [*streams, *self._passed])
        self._connection.sendall(self._request)
        self.pid = _NUMBER.unpack(_received(self._connection, _NUMBER.size))[0]
        self._child_created = True
        for theirs, ours in ((stdin, ours_in), (stdout, ours_out), (stderr, ours_error)):
            if theirs != -1 and ours != -1:
                os.close(theirs)
        devnull = getattr(self, "_devnull", None)
        if devnull is not None:
            os.close(devnull)

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        return self.pid, _NUMBER.unpack(_received(self._connection, _NUMBER.size))[0]

    def _internal_poll(self, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, "the server of warm processes is gone"
        data += more
    return data


class ForkPopen(subprocess.Popen):
    """What a launcher starts: a child of its own, which has what it has imported; other programs as always."""

    def __init__(self, args: Sequence[Any], **options: Any) -> None:
        self._ours = _module_of(args) is not None and (
            not options.keys() - {"env", "stdout", "stderr", "start_new_session"}
        )
        self._session = options.get("start_new_session", False)
        super().__init__(args, **options)

    def _execute_child(self, *given: Any) -> None:
        if not self._ours:
            super()._execute_child(*given)
            return
        command, environment = list(given[0]), given[6]
        streams = [theirs if theirs != -1 else own for own, theirs in enumerate((-1, given[13], given[15]))]
        self.pid = os.fork()
        if self.pid == 0:
            above = [fcntl.fcntl(stream, fcntl.F_DUPFD, 256) for stream in streams]
            os.closerange(0, 256)  # as a new program has it
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            variables = dict(os.environ if environment is None else environment)
            request = {
                "command": command[1:],
                "cwd": str(Path.cwd()),
                "session": self._session,
                "environment": variables,
            }
            _become(request | {"numbers": [0, 1, 2]}, above)
        self._child_created = True


def _module_of(command: Sequence[Any]) -> str | None:
    """The module that a command runs, if it is a launcher's or one of this project's."""
    program = [os.fspath(each) for each in command if each not in ("-P", "-u")]
    if program[:2] != [sys.executable, "-m"]:
        return None
    return program[2] if program[2] in LAUNCHERS or program[2].split(".")[0] == "modelwright" else None


def popen(command: Sequence[Any], **options: Any) -> subprocess.Popen[Any]:
    """Start a warm process if it is a launcher or this project's program without a `preexec_fn`, else another."""
    cold = "preexec_fn" in options or _module_of(command) is None
    return (subprocess.Popen if cold else WarmPopen)(command, **options)


def run(command: Sequence[Any], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a process of `popen`, with what it prints as text."""
    given = options.pop("input", None)
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(given, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def warm_workers() -> None:
    """Make the workers that this process starts warm ones; called once, when the tests begin."""
    _at_start.update({**os.environ, **_ENVIRONMENT})
    from modelwright.core.runs import supervisor

    supervisor.subprocess = types.SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)


def _listen(address: str, ready: int) -> list[socket.socket]:
    """The sockets of the two servers."""
    listeners = []
    for place in (address, f"{address}.deepspeed"):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(place)
        listeners[-1].listen()
    os.write(ready, b"1")
    os.close(ready)
    return listeners


def _serve(listeners: list[socket.socket], alive: int) -> tuple[dict[str, Any], list[int]]:
    """Fork a process for each request until `alive` closes; returns in each of those, with its request and streams.

    The first request for the second server forks that.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes between are waited for by nobody
    while alive not in (waiting := select.select([*listeners, alive], [], [])[0]):
        if waiting[0] is not listeners[0]:
            second = os.fork() == 0
            listeners.pop(not second).close()
            if second:
                _preload_deepspeed()
            continue
        connection, _ = listeners[0].accept()
        with connection:
            if os.fork() == 0:
                for each in (*listeners, alive):
                    os.close(each if isinstance(each, int) else each.detach())
                return _between(connection)
    shutil.rmtree(Path(listeners[0].getsockname()).parent, ignore_errors=True)
    sys.exit()


def _preload_deepspeed() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in PRELOADED_DEEPSPEED:
        importlib.import_module(name)
    gc.freeze()
    warm_workers()


def _between(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Start the process, say its pid, and how it ended: only its parent can know."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, streams, _, _ = socket.recv_fds(connection, _NUMBER.size, 16)
    request = json.loads(_received(connection, _NUMBER.unpack(header)[0]))
    pid = os.fork()
    if pid == 0:
        connection.close()
        above = [fcntl.fcntl(stream, fcntl.F_DUPFD, 256) for stream in streams]  # out of the way of their numbers
    for stream in streams:
        os.close(stream)
    if pid == 0:
        return request, above
    with contextlib.suppress(OSError):  # the process that started it may have been killed
        connection.sendall(_NUMBER.pack(pid))
        connection.sendall(_NUMBER.pack(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Be the process that was requested."""
    if request["session"]:
        os.setsid()
    for number, stream in zip(request["numbers"], streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    if _read_at_import({**request["environment"], **_ENVIRONMENT}) != _read_at_import(_at_start):
        os.execve(sys.executable, [sys.executable, *request["command"]], request["environment"])
    unbuffered = request["command"][0] == "-u"
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", buffering=1 if unbuffered else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    options = request["command"][unbuffered:]
    safe = options[0] == "-P" or "PYTHONSAFEPATH" in os.environ
    del options[: options[0] == "-P"]
    module = options[0] == "-m"
    del options[:module]
    first = [] if safe else [request["cwd"] if module else str(Path(options[0]).resolve().parent)]
    before = os.environ.get("PYTHONPATH", "")
    sys.path[:] = [*first, *filter(None, before.split(os.pathsep)), *sys.path]
    importlib.invalidate_caches()
    sys.argv[:] = options
    if options[0] in LAUNCHERS:
        _fork_what_is_started()
    code = 0
    try:
        if module:
            runpy.run_module(options[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(options[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    # As the interpreter ends, but for taking torch to pieces, module by module, which takes seconds.
    threading._shutdown()
    atexit._run_exitfuncs()
    os._exit(code if _flushed() else 120)


def _fork_what_is_started() -> None:
    """Put `ForkPopen` wherever a module knows `subprocess.Popen`."""
    popen = subprocess.Popen
    for namespace in [vars(module) for module in list(sys.modules.values())]:
        if namespace.get("Popen") is popen:
            namespace["Popen"] = ForkPopen


def _flushed() -> bool:
    """Write what the standard streams hold, unless they are closed; False if that fails."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        return False
    return True


def _stand_in(command: Sequence[str]) -> None:
    """Start a warm process, hand signals on to it, and end as it did."""
    process = WarmPopen(command)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: process.send_signal(number))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def stand_in(script: Path) -> list[str]:
    """The program, for others to start, that runs a Python script in a warm process."""
    return [sys.executable, "-S", "-E", __file__, _server(), str(script)]


if __name__ == "__main__":
    # Under its own name as well, for what the processes start.
    import warm

    address, *rest = sys.argv[1:]
    warm._server = lambda: address
    if not rest[0].isdecimal():
        warm._stand_in([sys.executable, *rest])
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    warm.warm_workers()
    alive, ready = map(int, rest)
    warm._become(*warm._serve(warm._listen(address, ready), alive))
