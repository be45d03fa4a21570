"""What a run would lack is reported at once, each in a line that says what to do."""

from __future__ import annotations

import importlib.util
import re
import shutil

import pytest

from modelwright.core import runner
from modelwright.core.api import MemorySettings, ModelShape, checkpoint_bytes, training_memory
from modelwright.core.api.errors import SeveralErrors
from modelwright.core.config import read_run
from modelwright.core.doctor.machine import machine_facts, slurm_facts
from modelwright.core.doctor.needs import missing
from modelwright.core.stages.requirements import requirements, unmet

# One process asks each package once.
pytestmark = pytest.mark.xdist_group("doctor")


def lines(printed):
    return [each["text"] for each in printed["missing"]]


def one_line(printed, wording):
    """The only line, whose wording is checked."""
    (line,) = printed
    wording(line)
    return line


@pytest.fixture
def facts(probed_once):
    """This machine's."""
    return machine_facts()


def missing_in(path, facts, *overrides):
    """As `lines`, on a machine of these facts."""
    read = read_run(path, overrides=overrides)
    runs = [runner.open_run(config, read.plugins) for config in read.configs]
    return [each.text for each in missing(runs, facts)]


def test_a_run_that_finds_all_it_needs_misses_nothing(doctor, run_file):
    """The quickstart's kind."""
    code, printed = doctor(run_file())
    assert (code, printed["missing"]) == (0, [])


def test_an_optimizer_without_its_package_is_missing(run_file, monkeypatch, wording):
    """Before anything is prepared; adamw needs nothing."""

    def lines_of(*overrides):
        read = read_run(run_file(), overrides=overrides)
        (run,) = [runner.open_run(config, read.plugins) for config in read.configs]
        return unmet(requirements(run, ["train"], registry=False))

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    assert lines_of() == []
    one_line(lines_of("train.optimizer='lion'"), wording)


def test_everything_that_is_missing_is_reported_at_once(doctor, run_file, tmp_path):
    """For every variant by its name."""
    run = run_file(
        "data.sources = [{ path = 'rows.jsonl' }]\n[variants.a]\n[variants.b]\ndata.quality.deduplicate = 'exact'\n",
        "evaluate = [{ name = 'sums', path = 'test.jsonl', metrics = ['math_accuracy'] }]",
    )
    (tmp_path / "broken.db").write_text("no database at all")
    code, printed = doctor(run, "--registry", f"sqlite:///{tmp_path}/broken.db")
    assert code == 1
    for name in ("tiny-a", "tiny-b"):
        found = [each["text"] for each in printed["missing"] if each["run"] == name]
        assert all(any(part in line for line in found) for part in ("rows.jsonl", "test.jsonl", "broken.db"))
        assert len(found) == 3


@pytest.mark.long
def test_broken_torch_is_missing_once(doctor_elsewhere, run_file, package, wording):
    """Not once for every component that needs it."""
    package("torch", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    code, printed = doctor_elsewhere(run_file())
    assert code == 1
    line = one_line(lines(printed), wording)
    assert "torch" in line
    assert "libcudart.so.12" in line


def test_a_package_that_is_too_old_is_named_with_what_is_needed(facts, run_file, package, wording, monkeypatch):
    """By what the extra of the component asks for."""
    monkeypatch.syspath_prepend(package("peft", version="0.1"))
    line = one_line(missing_in(run_file(), facts), wording)
    assert all(fact in line for fact in ("peft", "0.1", "0.18", "modelwright[train]"))


TRAINER = """
from modelwright import TrainerSpec, hookimpl

@hookimpl
def modelwright_trainers():
    yield TrainerSpec(
        name="far", summary="far away", factory="far_away:Trainer", needs="far-away", launcher="{launcher}"
    )
"""


def test_a_component_that_cannot_be_imported_is_named_with_its_package(facts, run_file, install_plugin, wording):
    """It is tried in another process: to import it here may end this one."""
    site = install_plugin("far-plugin", TRAINER.format(launcher="python"))
    (site / "far_away.py").write_text("import no_such_package\n")
    line = one_line(missing_in(run_file("train.trainer = 'far'"), facts), wording)
    assert all(fact in line for fact in ("trainer 'far'", "no_such_package", "pip install 'far-away'"))


@pytest.mark.parametrize(
    ("base", "why"),
    [
        ("./absent", "absent: the folder does not exist"),
        ("./empty", "there is no tokenizer.json"),
        ("nobody/nothing", "it is not in the hub's cache, and HF_HUB_OFFLINE is set"),
        ("earlier@3", "earlier"),
    ],
)
def test_a_base_that_is_missing_is_reported(run_file, tmp_path, facts, base, why):
    """A folder, a model of the hub without a network, one of the registry."""
    (tmp_path / "empty").mkdir()
    assert any(why in line for line in missing_in(run_file(f"model.base = {base!r}"), facts))


@pytest.mark.long
def test_a_base_of_the_hub_that_can_be_downloaded_is_not_missing(doctor_elsewhere, run_file, tmp_path, monkeypatch):
    """Nobody asks the hub: its address here is one that nobody listens at."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert doctor_elsewhere(run_file("model.base = 'nobody/nothing'"))[0] == 0


def test_a_disk_that_is_smaller_than_the_checkpoints_is_reported_with_both_sizes(run_file, facts):
    """Before days of training."""
    width, layers = 65536, 200
    size = (f"model.scratch.hidden_size={width}", f"model.scratch.layers={layers}", "train.keep_checkpoints=3")
    disk, memory = missing_in(run_file(), facts, *size)
    weights = layers * (4 * width**2 + 3 * 4 * width**2 + 2 * width) + 300 * width + width
    # Four checkpoints, as the preflight of a training counts them.
    assert f" {4 * checkpoint_bytes(weights) / 1e9:.1f} GB" in disk
    assert "keep_checkpoints" in disk
    needed = training_memory(ModelShape(parameters=weights, trainable=weights), MemorySettings()).states
    assert f" {needed / 1e9:.1f} GB" in memory
    path = run_file()
    config = read_run(path, overrides=size)
    run = runner.open_run(config.configs[0], config.plugins)
    with pytest.raises(SeveralErrors) as caught:
        runner.check([run])
    found = [re.sub(r"[\d.]+ GB (is|are) free", "", text) for text in map(str, caught.value.errors)]
    expected = [re.sub(r"[\d.]+ GB (is|are) free", "", text) for text in (disk, memory)]
    assert found == expected, "a run finds the same; others write to the disk meanwhile"


@pytest.mark.long
def test_a_home_that_cannot_be_written_is_reported(doctor, run_file, tmp_path, monkeypatch):
    """With what to set."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(tmp_path / "file"))
    code, printed = doctor(run_file(), "--registry", f"sqlite:///{tmp_path}/models.db")
    assert code == 1
    assert any(line.startswith(f"{tmp_path / 'file'} is a file: set MODELWRIGHT_HOME ") for line in lines(printed))


@pytest.mark.long
def test_a_cluster_without_slurm_is_reported(doctor, run_file, tmp_path, monkeypatch, wording):
    """Where to go instead."""
    monkeypatch.setenv("PATH", str(tmp_path))
    code, printed = doctor(run_file("[cluster]\nnodes = 2\n"))
    assert code == 1
    assert "[cluster]" in one_line(lines(printed), wording)


@pytest.mark.long
def test_deepspeed_on_cpus_needs_a_compiler_and_ninja(doctor, run_file, tmp_path, monkeypatch):
    """It compiles an op at its start, which fails after the data are prepared otherwise."""
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    code, printed = doctor(run_file(), "--set", "train.trainer='deepspeed'")
    assert code == 1
    printed = lines(printed)
    assert any("a C++ compiler (apt install g++, or module load gcc)" in line for line in printed)
    assert any("ninja (pip install ninja)" in line for line in printed)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ('partition = "fast"', "partition 'fast'"),
        ("nodes = 3", "nodes is 3"),
        ("nodes = 2\npartition = 'short'", "partition short has 1"),
        ("gpus_per_node = 4", "has 0 with 4 GPUs each"),
        ("nodes = 2\ngpus_per_node = 3", None),
    ],
)
@pytest.mark.long
def test_more_than_a_cluster_has_is_reported(run_file, facts, cluster, monkeypatch, table, why):
    """As Slurm itself says what there is."""
    monkeypatch.setenv("SLURM_CONF", cluster)
    printed = missing_in(run_file(f"[cluster]\n{table}\n"), {**facts, "slurm": slurm_facts()})
    if why is None:
        assert printed == []
        return
    (line,) = printed
    assert why in line


@pytest.mark.long
def test_a_slurm_that_does_not_answer_is_reported(doctor, run_file, monkeypatch, tmp_path):
    """In its own words."""
    if shutil.which("sbatch") is None:
        pytest.skip("there is no Slurm here")
    (tmp_path / "slurm.conf").write_text("Nonsense=1\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (line,) = lines(doctor(run_file("[cluster]\n"))[1])
    assert line.startswith("[cluster] ")
    assert "sinfo" in line


# A machine with GPUs, as its facts tell; there is none to run on.

GPU = {"name": "H100", "memory": 80 * 10**9, "free": 79 * 10**9, "capability": "9.0", "bfloat16": True}
OLD = GPU | {"name": "V100", "capability": "7.0", "bfloat16": False}


def with_gpus(facts, gpus, *, why=None, driver=()):
    torch = facts["torch"] | {"gpus": gpus, "why_no_gpu": why}
    return {**facts, "torch": torch, "driver": {"version": "550.1", "gpus": list(driver)} if driver else None}


def test_more_processes_than_gpus_are_reported(run_file, facts, wording):
    """Of a trainer that starts them on this machine."""
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    run = run_file("train.trainer = 'deepspeed'\ntrain.processes = 4")
    line = one_line(missing_in(run, with_gpus(facts, [GPU, GPU])), wording)
    assert "[train] processes is 4" in line
    assert missing_in(run, with_gpus(facts, [GPU] * 4)) == []


def test_a_gpu_without_bfloat16_is_reported_if_it_is_requested(run_file, facts, wording):
    """What chooses for itself chooses right."""
    assert missing_in(run_file(), with_gpus(facts, [OLD])) == []
    line = one_line(missing_in(run_file(), with_gpus(facts, [OLD]), "train.precision='bfloat16'"), wording)
    assert "[train] precision" in line
    assert "V100" in line


def test_gpus_that_torch_does_not_see_are_reported(run_file, facts, wording):
    """A training on the CPU beside them would be a surprise."""
    blind = with_gpus(facts, [], why="this build of torch is for CPUs only", driver=["H100", "H100"])
    line = one_line(missing_in(run_file(), blind), wording)
    assert "2 GPUs" in line
    assert "this build of torch is for CPUs only" in line


def test_a_visible_gpu_that_is_not_there_is_reported(run_file, facts):
    """The run would refuse it; no other driver is needed for that."""
    blind = with_gpus(facts, [], why="No CUDA GPUs are available", driver=["H100"])
    blind["torch"]["visible"] = "CUDA_VISIBLE_DEVICES is '9', and device 9 does not exist"
    assert missing_in(run_file(), blind) == [blind["torch"]["visible"]]


def test_a_file_system_without_locks_is_reported(run_file, facts):
    """Two runs would write one folder."""
    without = facts["home"] | {"locks": "Function not implemented"}
    (line,) = missing_in(run_file(), {**facts, "home": without})
    assert "(Function not implemented)" in line
    assert "MODELWRIGHT_HOME" in line
    alone = facts["home"] | {"locks": "this machine only"}
    assert missing_in(run_file(), {**facts, "home": alone}) == []
