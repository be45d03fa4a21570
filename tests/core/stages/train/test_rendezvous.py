"""`modelwright train` started once per process by another launcher: one training, one runner, one exit code."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
import warm
from tiny_run import tiny_run

from modelwright.core.api import ModelwrightError
from modelwright.core.runs.events import EventTail, read_events
from modelwright.core.runs.folder import RunFolder
from modelwright.core.stages.train import rendezvous
from modelwright.core.stages.train.external_launcher import LauncherProcess
from modelwright.core.stages.train.launch import free_port

pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

RUN = tiny_run("""
[train]
trainer = "deepspeed"
max_steps = 6
""")

# It meets the others as a real one does, then does what the test sets: `WHAT` in the place of each process.
PLUGIN = """
import os
import signal
import time
from pathlib import Path
from modelwright import ModelwrightError, Trained, TrainerSpec, hookimpl

@hookimpl
def modelwright_trainers():
    yield TrainerSpec(name="pair", summary="", factory="pair_plugin:Pair", launcher="deepspeed")

class Pair:
    def __init__(self, options): pass

    def train(self, job):
        import torch
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
        Path(job.folder, "process-" + os.environ["RANK"]).write_text(str(os.getpid()))
        if os.environ["RANK"] == "1":
            {what}
        while not job.stopping():
            time.sleep(0.05)
        return Trained(finished=False, step=1, steps=2)
"""

TRAIN = ("train", "run.toml", "--set", 'train.trainer="pair"')


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A home in which the tokens are prepared, and the run file beside it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "run.toml").write_text(RUN)
    subprocess.run(
        [sys.executable, "-m", "modelwright.core", "prepare", "run.toml"],
        cwd=folder,
        env={**os.environ, "MODELWRIGHT_HOME": str(folder / "home")},
        capture_output=True,
        check=True,
        timeout=240,
    )
    return folder


@pytest.fixture(autouse=True)
def run_file(prepared, tmp_path, home, monkeypatch):
    """The run, prepared, in this test's home; ranks on the processors."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    shutil.copytree(prepared / "home", home)
    return shutil.copy(prepared / "run.toml", tmp_path)


@pytest.fixture
def folder(home):
    return RunFolder(home / "runs" / "tiny")


@pytest.fixture
def torchrun(tmp_path):
    """Starts the command line twice, as a person would."""
    begun = []

    def start(*arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += ["-m", "modelwright.core", *arguments]
        process = warm.popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def launch(tmp_path):
    """Starts single processes of a launch of two, to which a test can do what a launcher would not."""
    begun, port = [], str(free_port())

    def start(rank, *arguments, events_of=(("LOCAL_WORLD_SIZE", "2"),)):
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        process = warm.popen(
            [sys.executable, "-m", "modelwright.core", *(arguments or TRAIN)],
            cwd=tmp_path,
            env={**os.environ, **variables, "MASTER_PORT": port, **dict(events_of)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def pair(install_plugin):
    """Installs the trainer whose second process does something of its own."""

    def install(what="pass"):
        install_plugin("pair-plugin", PLUGIN.format(what=what))

    return install


def wait_for(condition, seconds=120.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.05)


def both_train(folder, *processes):
    def begun():
        assert all(process.poll() is None for process in processes), ended(*processes)
        return all((folder.stage("train") / f"process-{rank}").exists() for rank in (0, 1))

    wait_for(begun)


def ended(*processes):
    """The exit codes, and what was said on both outputs."""
    said = [process.communicate(timeout=120) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], [err for _, err in said]


def nobody_works_in(folder):
    with folder.ranks_lock.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return not list(folder.rendezvous.iterdir())


def events_of(folder, kind):
    return [event.data for event in read_events(folder.events, stage="train") if event.kind == kind]


@pytest.mark.long
def test_torchrun_trains_what_deepspeeds_launcher_does(torchrun, modelwright, prepared, run_file, home, folder):
    """The same examples and losses; and it is done once, so that a second launch finds nothing to do."""
    codes, outputs, errors = ended(torchrun("train", "run.toml"))
    assert codes == [0], errors
    assert outputs[0].count("Registry:") == 1
    assert [data["processes"] for data in events_of(folder, "started")] == [2]
    assert nobody_works_in(folder)

    other = RunFolder(home / "runs" / "other")
    shutil.copytree(prepared / "home" / "runs" / "tiny", other.path)
    done = modelwright("train", run_file, "--set", 'name="other"', "--set", "train.processes=2")
    assert done.returncode == 0, done.stderr
    steps, expected = events_of(folder, "step"), events_of(other, "step")
    assert [data["order"] for data in steps] == [data["order"] for data in expected]
    assert [data["loss"] for data in steps] == pytest.approx([data["loss"] for data in expected], abs=1e-4)
    assert len(steps) == 6

    before = {path.name for path in folder.events.iterdir()}
    codes, outputs, errors = ended(torchrun("train", "run.toml"))
    assert codes == [0], errors
    assert outputs[0].count("Nothing to do") == 1
    assert before == {path.name for path in folder.events.iterdir()}


@pytest.mark.long
def test_sigterm_to_torchrun_stops_with_a_checkpoint_from_which_the_next_launch_goes_on(torchrun, folder):
    """Within the thirty seconds that it leaves its processes."""
    command = ("train", "run.toml", "--set", "train.max_steps=150", "--set", "train.preflight=false")
    process, tail = torchrun(*command), EventTail(folder.events)
    wait_for(lambda: any(event.kind == "step" for event in tail.poll()))
    process.terminate()
    _, _, (error,) = ended(process)
    (last,) = events_of(folder, "checkpoint")
    assert f"error: tiny: stopped on request after step {last['step']} of 150" in error
    assert nobody_works_in(folder)

    codes, _, errors = ended(torchrun(*command))
    assert codes == [0], errors
    assert [data["step"] for data in events_of(folder, "resumed")] == [last["step"]]
    assert [data["step"] for data in events_of(folder, "step")] == list(range(1, 151))


@pytest.mark.long
def test_a_request_to_any_of_them_stops_all(pair, launch, folder):
    """All leave with 75, and only the first says so."""
    pair()
    processes = [launch(rank) for rank in (0, 1)]
    both_train(folder, *processes)
    processes[1].send_signal(signal.SIGUSR1)
    codes, _, (first, other) = ended(*processes)
    assert codes == [75, 75]
    assert "error: tiny: stopped on request after step 1 of 2" in first
    assert other.strip() == "SIGUSR1: stopping at the next safe point"
    assert nobody_works_in(folder)


@pytest.mark.long
def test_the_error_of_any_process_is_reported_once(pair, torchrun, folder):
    """By the first one, though its launcher ends it when another one has failed."""
    pair('raise ModelwrightError("its disk is full: free some")')
    codes, _, (error,) = ended(torchrun(*TRAIN))
    assert codes == [1]
    said = [line for line in error.splitlines() if line.startswith("error: ")]
    assert sorted(said) == [
        "error: its disk is full: free some (process 1 of 2)",
        "error: process 1 of 2: the first process failed; see its error",
    ]
    assert nobody_works_in(folder)


@pytest.mark.long
def test_a_process_of_the_training_that_is_killed_ends_all(pair, launch, folder):
    """It can tell nothing itself; who started it does."""
    pair("os.kill(os.getpid(), signal.SIGKILL)")
    codes, _, (first, other) = ended(launch(0), launch(1))
    assert codes == [1, 1]
    assert first.splitlines()[-1] == (
        f"error: train: process 1 of 2 died (signal SIGKILL) without a result; see {folder.log('train')}"
    )
    assert other == "error: process 1 of 2: the first process failed; see its error\n"
    assert nobody_works_in(folder)


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_a_command_that_is_killed_ends_the_other(pair, launch, folder, killed):
    """Though no launcher is there to notice, and their processes may wait for anything."""
    pair("while True: time.sleep(1)")
    processes = [launch(rank) for rank in (0, 1)]
    both_train(folder, *processes)
    processes[killed].kill()
    codes, _, errors = ended(*processes)
    assert codes[1 - killed] == 1
    assert (
        errors[1 - killed]
        .splitlines()[-1]
        .startswith(
            "error: process 1 of 2: the first process is gone, so this one ends too"
            if killed == 0
            else "error: train: process 1 of 2 is gone: it was killed, or its machine failed; see "
        )
    )
    wait_for(lambda: nobody_works_in(folder), seconds=10)


@pytest.mark.long
def test_what_an_earlier_launch_left_leads_nobody_astray(pair, launch, folder):
    """A first process that was killed before the others came leaves its file: its port is dead, or somebody else's."""
    pair()
    killed = launch(0)
    wait_for(lambda: folder.rendezvous.is_dir() and list(folder.rendezvous.glob("*.json")))
    (left,) = folder.rendezvous.iterdir()
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    killed.kill()
    killed.wait()
    other = launch(1)
    time.sleep(2)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        left.write_text(json.dumps({**json.loads(left.read_text()), "port": somebody.getsockname()[1]}))
        somebody.settimeout(60)
        connection, _ = somebody.accept()
        connection.close()
    first = launch(0)
    both_train(folder, first, other)
    folder.request_stop()
    codes, _, errors = ended(first, other)
    assert codes == [75, 75], errors


@pytest.mark.long
def test_processes_of_several_machines_meet_at_the_address_of_the_first(pair, launch, folder):
    """Nothing says that all of them are on this machine, and each knows the first one's by a name of its own."""
    pair()
    first = launch(0, events_of=(("LOCAL_WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")))
    other = launch(1, events_of=(("LOCAL_WORLD_SIZE", "1"),))
    both_train(folder, first, other)
    folder.request_stop()
    codes, _, errors = ended(first, other)
    assert codes == [75, 75], errors


@pytest.mark.long
def test_what_stops_the_first_before_the_training_ends_the_others_with_its_code(launch, folder):
    """Here the tokens are not prepared."""
    folder.unmark("prepare")
    codes, _, (first, other) = ended(*(launch(rank, "train", "run.toml") for rank in (0, 1)))
    assert codes == [2, 2]
    assert first == "error: tiny: train needs the stage prepare (not done yet): run that first\n"
    assert other == ""


# What is asked for, and what the one line of the first process says.
REFUSED = {
    ("run", "run.toml"): "start only `modelwright train RUN.toml` with the launcher",
    ("train", "two.toml"): "choose one with --variant",
    ("train", "run.toml", "--set", "train.trainer='local'"): 'set [train] trainer = "deepspeed"',
    ("train", "run.toml", "--verify-resume"): "call it without the launcher",
    ("train", "run.toml", "--set", "train.max_step=2"): "did you mean max_steps?",
}


@pytest.mark.long
def test_what_cannot_be_shared_is_refused_once(launch, tmp_path):
    """By the first process; the others, whose end would make the launcher end it, give it the time to say so."""
    (tmp_path / "two.toml").write_text('extends = "run.toml"\n[variants.a]\nseed = 1\n[variants.b]\nseed = 2\n')
    others = [launch(1, *arguments) for arguments in REFUSED]
    for arguments, expected in REFUSED.items():
        (code,), _, (error,) = ended(launch(0, *arguments))
        assert code == 2, error
        assert expected in error
        assert error.count("\n") == 1
    assert [other.poll() for other in others] == [None] * len(others)
    nothing = [""] * len(others)
    assert ended(*others) == ([2] * len(others), nothing, nothing)


def test_a_plan_is_printed_once(launch):
    """On standard output there is one document."""
    codes, (first, other), _ = ended(*(launch(rank, "train", "run.toml", "--dry-run", "--json") for rank in (0, 1)))
    assert codes == [0, 0]
    assert [step["stage"] for step in json.loads(first)["tiny"]] == ["train"]
    assert other == ""


@pytest.mark.parametrize(
    ("variables", "code"), [({"RANK": "0", "WORLD_SIZE": "1"}, 0), ({"RANK": "2", "WORLD_SIZE": "2"}, 2)]
)
def test_one_process_is_not_a_launch_and_a_number_too_high_is_refused(modelwright, run_file, variables, code):
    """As launchers set them where they start only one."""
    done = modelwright("train", run_file, "--dry-run", env={**os.environ, **variables})
    assert done.returncode == code
    assert ("RANK below WORLD_SIZE" in done.stderr) == bool(code)


def test_who_does_not_come_is_named(monkeypatch, tmp_path):
    """Either way the line says what to look at."""
    monkeypatch.setattr(rendezvous, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(rendezvous, "_NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "_FAREWELL_SECONDS", 0.1)
    before = {number: signal.getsignal(number) for number in rendezvous.STOP_SIGNALS}
    where = {"on_machine": 3, "address": "127.0.0.1", "port": "29500"}
    folder, notices = RunFolder(tmp_path / "run"), []
    try:
        with (
            pytest.raises(ModelwrightError, match=r"^2 of 3 processes .* process 1, did not connect within"),
            rendezvous.leading(folder, LauncherProcess(rank=0, size=3, **where)) as first,
        ):
            first.gather(notices.append)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert len(notices) == 1
    assert notices[0].startswith("waiting for 2 of 3 processes")
    with pytest.raises(ModelwrightError, match=r"^process 2 of 3: the first process was not found .* \(127.0.0.1\)$"):
        rendezvous.follow(folder, LauncherProcess(rank=2, size=3, **where))
