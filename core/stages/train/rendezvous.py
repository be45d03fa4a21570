"""One training among the processes that another launcher started: the first is the runner, the others do as it says.

The first one listens, and leaves a file in the run's folder that says where; the others find that and connect. Over a
connection go JSON objects, one a line:

    other → first   {"token": "…", "rank": 1}       it is there
    first → other   {"word": "welcome"}
    first → other   {"word": "train"}               now it starts its process of the training
    other → first   {"died": "signal SIGKILL"}      that process died
    first → other   {"word": "leave", "code": 0}    how the run ended, with the exit code of all

A connection that closes says that its other end is gone, however it went: no process waits for a dead one.
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
from modelwright.core.stages.train.external_launcher import Launched
from modelwright.core.stages.train.launch import launched_process

STAGE = "train"
# How long a launcher may take between its first process and its last.
MEET_SECONDS = 600.0
# After so long somebody may want to know what is waited for.
_NOTICE_SECONDS = 20.0
# Where there is nothing to train, so long the others have to come and hear of it.
_FAREWELL_SECONDS = 20.0
# So long a process of the training may outlive the run's end.
_LEAVE_SECONDS = 10.0
# Who connects says at once who it is; the first one answers between two such.
_HANDSHAKE_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
_LINE_LIMIT = 4096
# So soon one end notices that the machine of the other one is gone.
_KEEPALIVE_SECONDS = 60


class _Wire:
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
        """The next message; None where none came within the time.

        Raises:
            EOFError: the other end is gone, or is no process of this program.
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


def _meeting(folder: RunFolder, here: Launched) -> Path:
    """The file by which the processes of this launch find one another; another launch has another one."""
    return folder.launched / f"{hashlib.sha256(here.port.encode()).hexdigest()[:16]}.json"


@contextlib.contextmanager
def leading(folder: RunFolder, here: Launched) -> Iterator[First]:
    """Be the first process: what comes of the block is what all of them end with.

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
    """The first process's ends of the connections."""

    def __init__(self, folder: RunFolder, here: Launched) -> None:
        self._folder, self._here = folder, here
        self._token = secrets.token_hex(32)
        self._wires: dict[int, _Wire] = {}
        self._lost: dict[int, str] = {}
        self._training, self._over = threading.Event(), threading.Event()
        self._server, address = _listen(here)
        self._meeting = _meeting(folder, here)
        self._meeting.parent.mkdir(mode=0o700, exist_ok=True)
        with files.writing(self._meeting) as file:
            os.fchmod(file.fileno(), 0o600)  # who knows the token may take part
            where = {"address": address, "port": self._server.getsockname()[1], "token": self._token}
            file.write(json.dumps(where).encode())
        self._thread = threading.Thread(target=self._serve, name="launched", daemon=True)
        self._thread.start()

    def gather(self, notice: Callable[[str], None]) -> None:
        """Wait for all the others, and let them train.

        Args:
            notice: is told whom this waits for, where that takes long.

        Raises:
            StopRequested: someone asked to stop.
            ModelwrightError: one did not come, or is gone again.
        """
        begun, told = time.monotonic(), False
        while missing := [rank for rank in range(1, self._here.size) if rank not in self._wires]:
            self._folder.check_stop()
            self._check_lost()
            waited = time.monotonic() - begun
            who = f"{len(missing)} of the {self._here.size} processes that WORLD_SIZE says (process {missing[0]} first)"
            if waited > MEET_SECONDS:
                raise ModelwrightError(
                    f"{who} did not come within {MEET_SECONDS / 60:.0f} minutes: the launcher must start this command "
                    f"WORLD_SIZE times, and all must see {self._folder.path} and reach MASTER_ADDR "
                    f"({self._here.address})"
                )
            if waited > _NOTICE_SECONDS and not told:
                told = True
                notice(f"waits for {who}; unset RANK and WORLD_SIZE where no launcher started this command")
            time.sleep(POLL_SECONDS)
        self._check_lost()
        self._meeting.unlink(missing_ok=True)
        self._training.set()
        self._tell(word="train")

    def _check_lost(self) -> None:
        for rank in list(self._lost):
            raise ModelwrightError(f"process {rank} of {self._here.size} was gone before the training began")

    def end(self, code: int) -> None:
        """Tell the others how it ended, and see them leave."""
        self._over.set()
        if not self._training.is_set():
            self._wait(lambda: len(self._wires) >= self._here.size - 1, _FAREWELL_SECONDS)
        # The launcher ends the rest as soon as one has left with a failure; this one is still to say why.
        _ignore_signals()
        self._tell(word="leave", code=code)
        self._wait(lambda: self._lost.keys() >= self._wires.keys(), 2 * _LEAVE_SECONDS)

    def close(self) -> None:
        """Stop listening, which ends who is still there."""
        self._over.set()
        self._meeting.unlink(missing_ok=True)
        self._server.close()
        for wire in list(self._wires.values()):
            # Closing alone would leave it open for as long as another thread reads from it.
            with contextlib.suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)
            wire.close()

    @staticmethod
    def _wait(until: Callable[[], bool], seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while not until() and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS / 2)

    def _tell(self, **message: Any) -> None:
        for wire in list(self._wires.values()):
            with contextlib.suppress(OSError):  # whoever is gone is noticed by the thread
                wire.send(**message)

    def _serve(self) -> None:
        """Let the others in, and notice who goes (a thread of its own)."""
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):
            selector.register(self._server, selectors.EVENT_READ)
            while self._server.fileno() >= 0:
                for key, _ in selector.select(POLL_SECONDS):
                    if key.data is not None:
                        selector.unregister(key.fileobj)
                        self._lost[key.data] = self._how(self._wires[key.data])
                    elif (rank := self._let_in()) is not None:
                        selector.register(self._wires[rank].socket, selectors.EVENT_READ, rank)
                if self._training.is_set() and not self._over.is_set():
                    self._fail_for_the_lost()

    def _let_in(self) -> int | None:
        """The rank of who connects; None where it is nobody of this launch."""
        end, _ = self._server.accept()
        wire = _Wire(end)
        with contextlib.suppress(OSError, EOFError):
            said = wire.receive(_HANDSHAKE_SECONDS) or {}
            rank = said.get("rank")
            known = hmac.compare_digest(str(said.get("token")).encode(), self._token.encode())
            if known and isinstance(rank, int) and 0 < rank < self._here.size and rank not in self._wires:
                wire.send(word="welcome")
                self._wires[rank] = wire
                return rank
        wire.close()
        return None

    @staticmethod
    def _how(wire: _Wire) -> str:
        with contextlib.suppress(EOFError):
            if said := wire.receive(0):
                return f"died ({said.get('died')}) without a result"
        return "is gone: it was killed, or its machine failed"

    def _fail_for_the_lost(self) -> None:
        """End this machine's process of the training, which would wait for the lost one."""
        status = Status(self._folder, STAGE)
        for rank, how in self._lost.items():
            if not status.has_failed():
                with status.room_for_failure() as failure:
                    log = self._folder.log(STAGE)
                    failure.tell(f"{STAGE}: process {rank} of {self._here.size} {how}; what was printed: {log}")


def _listen(here: Launched) -> tuple[socket.socket, str | None]:
    """A socket that the others reach, and its address; None is what they know the first one's machine by."""
    if here.on_machine == here.size:
        return socket.create_server(("127.0.0.1", 0), backlog=here.size), "127.0.0.1"
    # The name of this machine may mean something else on it than on the others, so all of its addresses are served.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, backlog=here.size, dualstack_ipv6=both), None


def follow(folder: RunFolder, here: Launched) -> int:
    """Be one of the others: do as the first one says; gives the exit code.

    Nothing of the run is written but its log and requests to stop.

    Raises:
        ModelwrightError: the first one did not come, is gone, or failed.
    """
    with contextlib.closing(_find(folder, here)) as first:
        try:
            said = first.receive(None)
            if said == {"word": "train"}:
                said = _train(folder, here, first)
            code = int(said["code"]) if said else 1
        except EOFError:
            raise ModelwrightError(f"{here}: the first process is gone, and this one ends with it") from None
        _ignore_signals()
    if code == 1:
        raise ModelwrightError(f"{here}: the first process failed and says why")
    return code


def _find(folder: RunFolder, here: Launched) -> _Wire:
    """A connection to the first process, once it is there; what an earlier launch left leads nowhere."""
    meeting, give_up = _meeting(folder, here), time.monotonic() + MEET_SECONDS
    while time.monotonic() < give_up:
        wire = None
        # No file, half a line of one of an older kind, nobody there, or somebody else.
        with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError):
            where = json.loads(meeting.read_bytes())
            place = (where["address"] or here.address, where["port"])
            wire = _Wire(socket.create_connection(place, timeout=_ANSWER_SECONDS))
            wire.send(token=where["token"], rank=here.rank)
            if wire.receive(_ANSWER_SECONDS) == {"word": "welcome"}:
                return wire
        if wire:
            wire.close()
        time.sleep(2 * POLL_SECONDS)
    raise ModelwrightError(
        f"{here}: the first process did not come within {MEET_SECONDS / 60:.0f} minutes: the launcher must start this "
        f"command WORLD_SIZE times, and all must see {folder.path} and reach MASTER_ADDR ({here.address})"
    )


def _train(folder: RunFolder, here: Launched, first: _Wire) -> dict[str, Any] | None:
    """Do this process's share; gives the first one's last word.

    Raises:
        EOFError: the first one is gone.
    """
    launch = launched_process(folder, here)
    with folder.log(STAGE).open("ab") as output, stop_on_signals(folder):
        process = start_worker(launch.command, launch.environment, output)
        try:
            while process.poll() is None:
                if said := first.receive(POLL_SECONDS):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_LEAVE_SECONDS)
                    return said
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
    """What is left of this process is to say how it ended, with the right exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
