"""How the processes of an external launcher share one training: the first is the runner, the others follow it.

The first process listens, and writes its address and a secret token to a file in the run's folder, which the others
read to connect. A connection carries JSON objects, one per line:

    other → first   {"token": "…", "rank": 1}       the other process is here
    first → other   {"word": "welcome"}
    first → other   {"word": "train"}               start your process of the training
    other → first   {"died": "signal SIGKILL"}      that process died
    first → other   {"word": "leave", "code": 0}    the run ended; exit with this code

A closed connection means that the other end is gone, killed or not: no process waits for a dead one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.runs.folder import STOP_SIGNALS, RunFolder
from modelwright.core.runs.status import Status
from modelwright.core.runs.supervisor import POLL_SECONDS, ended_how, start_worker, stop_on_signals
from modelwright.core.stages.train.external_launcher import LauncherProcess
from modelwright.core.stages.train.launch import launch_of_one

STAGE = "train"
# Seconds that a launcher may take to start all of its processes.
CONNECT_SECONDS = 600.0
# Seconds after which a notice says which processes are missing.
_NOTICE_SECONDS = 20.0
# Seconds in which the others must connect if there is nothing to train, to learn how the run ended.
_FAREWELL_SECONDS = 20.0
# Seconds that a process of the training may take to exit after the run's end.
_LEAVE_SECONDS = 10.0
# Seconds for a new connection to identify itself, and for the first process to answer it.
_HANDSHAKE_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
_LINE_LIMIT = 4096
# Seconds until one end notices that the other end's machine is gone.
_KEEPALIVE_SECONDS = 60


class _Connection:
    """A connection between two of the processes."""

    def __init__(self, end: socket.socket) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
        self.socket = end
        self._received = b""

    def send(self, **message: Any) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None) -> dict[str, Any] | None:
        """The next message; None if there was none within the time.

        Raises:
            EOFError: the other end is gone, or is not a process of this program.
        """
        self.socket.settimeout(seconds)
        try:
            while b"\n" not in self._received:
                more = self.socket.recv(_LINE_LIMIT)
                if not more or len(self._received) > _LINE_LIMIT:
                    raise EOFError
                self._received += more
        except TimeoutError:
            return None
        except OSError as error:
            raise EOFError from error
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, dict):
            return message
        raise EOFError

    def close(self) -> None:
        self.socket.close()


def _address_file(folder: RunFolder, here: LauncherProcess) -> Path:
    """The file in which the processes of this launch find the first one; another launch has another file."""
    return folder.rendezvous / f"{hashlib.sha256(here.port.encode()).hexdigest()[:16]}.json"


@contextlib.contextmanager
def leading(folder: RunFolder, here: LauncherProcess) -> Iterator[First]:
    """Be the first process: all of them end with the outcome of the `with` block.

    Raises:
        ModelwrightError: the run's folder cannot be made.
    """
    folder.make()
    first = First(folder, here)
    try:
        yield first
    except Exception as error:
        first.end(error.exit_code if isinstance(error, ModelwrightError) else 1)
        raise
    else:
        first.end(0)
    finally:
        first.close()


class First:
    """The first process, with its connections to the others."""

    def __init__(self, folder: RunFolder, here: LauncherProcess) -> None:
        self._folder, self._here = folder, here
        self._token = secrets.token_hex(32)
        self._others: dict[int, _Connection] = {}
        self._lost: dict[int, str] = {}
        self._training, self._over = threading.Event(), threading.Event()
        self._server, address = _listen(here)
        self._file = _address_file(folder, here)
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        with files.writing(self._file) as file:
            os.fchmod(file.fileno(), 0o600)  # anyone who knows the token can take part
            where = {"address": address, "port": self._server.getsockname()[1], "token": self._token}
            file.write(json.dumps(where).encode())
        self._thread = threading.Thread(target=self._serve, name="rendezvous", daemon=True)
        self._thread.start()

    def gather(self, notice: Callable[[str], None]) -> None:
        """Wait for all the others, and let them train.

        Args:
            notice: called with the missing processes, if this takes long.

        Raises:
            StopRequested: a stop was requested.
            ModelwrightError: a process did not connect, or is gone again.
        """
        begun, noticed = time.monotonic(), False
        while missing := [rank for rank in range(1, self._here.size) if rank not in self._others]:
            self._folder.check_stop()
            self._check_lost()
            waited = time.monotonic() - begun
            who = f"{len(missing)} of {self._here.size} processes (WORLD_SIZE), the first of them process {missing[0]}"
            if waited > CONNECT_SECONDS:
                raise ModelwrightError(
                    f"{who}, did not connect within {CONNECT_SECONDS / 60:.0f} minutes: the launcher must start this "
                    f"command WORLD_SIZE times, and every process must see {self._folder.path} and reach MASTER_ADDR "
                    f"({self._here.address})"
                )
            if waited > _NOTICE_SECONDS and not noticed:
                noticed = True
                notice(f"waiting for {who}; unset RANK and WORLD_SIZE if no launcher started this command")
            time.sleep(POLL_SECONDS)
        self._check_lost()
        self._file.unlink(missing_ok=True)
        self._training.set()
        self._tell(word="train")

    def _check_lost(self) -> None:
        for rank in list(self._lost):
            raise ModelwrightError(f"process {rank} of {self._here.size} was gone before the training started")

    def end(self, code: int) -> None:
        """Tell the others how the run ended, and wait until they leave."""
        self._over.set()
        if not self._training.is_set():
            self._wait(lambda: len(self._others) >= self._here.size - 1, _FAREWELL_SECONDS)
        # The launcher ends the rest as soon as one has exited with a failure, and this one must still say why.
        _ignore_signals()
        self._tell(word="leave", code=code)
        self._wait(lambda: self._lost.keys() >= self._others.keys(), 2 * _LEAVE_SECONDS)

    def close(self) -> None:
        """Stop listening, and disconnect the processes that are left."""
        self._over.set()
        self._file.unlink(missing_ok=True)
        self._server.close()
        for other in list(self._others.values()):
            # Closing alone would leave it open while another thread reads from it.
            with contextlib.suppress(OSError):
                other.socket.shutdown(socket.SHUT_RDWR)
            other.close()

    @staticmethod
    def _wait(until: Callable[[], bool], seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while not until() and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS / 2)

    def _tell(self, **message: Any) -> None:
        for other in list(self._others.values()):
            with contextlib.suppress(OSError):  # the thread notices processes that are gone
                other.send(**message)

    def _serve(self) -> None:
        """Accept the others, and notice when one is gone (in a thread of its own)."""
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):
            selector.register(self._server, selectors.EVENT_READ)
            while self._server.fileno() >= 0:
                for key, _ in selector.select(POLL_SECONDS):
                    if key.data is not None:
                        selector.unregister(key.fileobj)
                        self._lost[key.data] = self._how(self._others[key.data])
                    elif (rank := self._accept()) is not None:
                        selector.register(self._others[rank].socket, selectors.EVENT_READ, rank)
                if self._training.is_set() and not self._over.is_set():
                    self._fail_for_the_lost()

    def _accept(self) -> int | None:
        """Accept a connection; returns its rank, or None if it is not a process of this launch."""
        end, _ = self._server.accept()
        other = _Connection(end)
        with contextlib.suppress(OSError, EOFError):
            hello = other.receive(_HANDSHAKE_SECONDS) or {}
            rank = hello.get("rank")
            known = hmac.compare_digest(str(hello.get("token")).encode(), self._token.encode())
            if known and isinstance(rank, int) and 0 < rank < self._here.size and rank not in self._others:
                other.send(word="welcome")
                self._others[rank] = other
                return rank
        other.close()
        return None

    @staticmethod
    def _how(other: _Connection) -> str:
        with contextlib.suppress(EOFError):
            if message := other.receive(0):
                return f"died ({message.get('died')}) without a result"
        return "is gone: it was killed, or its machine failed"

    def _fail_for_the_lost(self) -> None:
        """Fail the run for a lost process, which ends this machine's process of the training too."""
        status = Status(self._folder, STAGE)
        for rank, how in self._lost.items():
            if not status.has_failed():
                with status.room_for_failure() as failure:
                    log = self._folder.log(STAGE)
                    failure.tell(f"{STAGE}: process {rank} of {self._here.size} {how}; see {log}")


def _listen(here: LauncherProcess) -> tuple[socket.socket, str | None]:
    """A socket that the others can reach, and its address; None for MASTER_ADDR, as the others resolve it."""
    if here.on_machine == here.size:
        return socket.create_server(("127.0.0.1", 0), backlog=here.size), "127.0.0.1"
    # This machine's name may resolve differently on other machines, so the socket listens on all of its addresses.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, backlog=here.size, dualstack_ipv6=both), None


def follow(folder: RunFolder, here: LauncherProcess) -> int:
    """Be one of the other processes: train when the first one says so; returns the exit code.

    Of the run's files, this writes only the log and requests to stop.

    Raises:
        ModelwrightError: the first process was not found, is gone, or failed.
    """
    with contextlib.closing(_find(folder, here)) as first:
        try:
            message = first.receive(None)
            if message == {"word": "train"}:
                message = _train(folder, here, first)
            code = int(message["code"]) if message else 1
        except EOFError:
            raise ModelwrightError(f"{here}: the first process is gone, so this one ends too") from None
        _ignore_signals()
    if code == 1:
        raise ModelwrightError(f"{here}: the first process failed; see its error")
    return code


def _find(folder: RunFolder, here: LauncherProcess) -> _Connection:
    """Connect to the first process once it is there; the file of an earlier launch leads nowhere."""
    file, give_up = _address_file(folder, here), time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < give_up:
        other = None
        # There is no file, or half of one, or nothing listens there, or another program does.
        with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError):
            where = json.loads(file.read_bytes())
            place = (where["address"] or here.address, where["port"])
            other = _Connection(socket.create_connection(place, timeout=_ANSWER_SECONDS))
            other.send(token=where["token"], rank=here.rank)
            if other.receive(_ANSWER_SECONDS) == {"word": "welcome"}:
                return other
        if other:
            other.close()
        time.sleep(2 * POLL_SECONDS)
    raise ModelwrightError(
        f"{here}: the first process was not found within {CONNECT_SECONDS / 60:.0f} minutes: the launcher must start "
        "this command WORLD_SIZE times, and every process must see "
        f"{folder.path} and reach MASTER_ADDR ({here.address})"
    )


def _train(folder: RunFolder, here: LauncherProcess, first: _Connection) -> dict[str, Any] | None:
    """Run this process's part of the training; returns the first process's last message.

    Raises:
        EOFError: the first process is gone.
    """
    launch = launch_of_one(folder, here)
    with folder.log(STAGE).open("ab") as output, stop_on_signals(folder):
        process = start_worker(launch.command, launch.environment, output)
        try:
            while process.poll() is None:
                if message := first.receive(POLL_SECONDS):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_LEAVE_SECONDS)
                    return message
            if process.returncode:
                with contextlib.suppress(OSError):
                    first.send(died=ended_how(process.returncode))
            return first.receive(None)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _ignore_signals() -> None:
    """Ignore signals from now on: this process only has to report how it ended, with the right exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
