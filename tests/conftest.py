"""What all tests share: the command line in a process of its own, and plugin packages made for one test."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import warm

# tests/support is on the path (pyproject.toml): what several folders of tests share.
pytest_plugins = ["golden"]

# Tests are not timed: on cores that others share one example in thousands takes long.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile("untimed")

# A failing assert of a contract suite shows its values, as in a test file.
pytest.register_assert_rewrite("modelwright.core.testing")

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Two test processes share two cores: more threads than one each would spin against one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Importing torch and transformers is most of what a tiny run takes.
warm.warm_workers()


def pytest_configure(config: pytest.Config) -> None:
    """Try a few examples of each property where the long tests are left out."""
    if "not long" in config.getoption("markexpr"):
        hypothesis.settings.load_profile("quick")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their place: a gzip file holds the time, and parallel processes must find the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, for this process and those that it starts."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MODELWRIGHT_HOME", str(folder))
    for name in ("MODELWRIGHT_REGISTRY", "MODELWRIGHT_DISABLE_PLUGINS", "MODELWRIGHT_STRICT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def modelwright(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line as a person would, in another process, whose imports are warm (tests/support/warm.py)."""

    def run(*arguments: object, timeout: float = 240, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modelwright.core", *map(str, arguments)]
        options.setdefault("cwd", tmp_path)
        return warm.run(command, timeout=timeout, **options)

    return run


@pytest.fixture
def mounted() -> Iterator[Callable[..., Path]]:
    """Mounts a small file system in memory on a folder; only root may."""
    there: list[Path] = []

    def mount(folder: Path, *options: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
        if shutil.which("mount") is None:
            pytest.skip("no program mount is here to mount a small file system with")
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small file system")
        there.append(folder)
        return folder

    yield mount
    for folder in there:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# <linux/capability.h>: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads and writes what it likes.
CAPABILITY_VERSION_3, MAY_ALL = 0x20080522, 1 << 1 | 1 << 2


@pytest.fixture
def permissions_count() -> Iterator[None]:
    """Permissions of files hold for this thread though it be root's; programs that it starts are not held by them."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read and write everything here")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    had = sets[0]
    sets[0] = had & ~MAY_ALL
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0] = had
        libc.capset(header, sets)


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a package with an entry point on the path, as pip would leave it in site-packages."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))

    def install(distribution: str, source: str, *, version: str = "1.0", entry: str | None = None) -> Path:
        module = distribution.replace("-", "_")
        sys.modules.pop(module, None)  # another test's package of the same name
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[modelwright]\n{entry or module} = {module}\n")
        return site

    return install


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows_file() -> Callable[[Path, list[dict]], Path]:
    """Writes a JSONL file."""
    return write_rows


@pytest.fixture
def shared_data() -> Path:
    """The real data sets beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the data sets (../shared/data) are not beside this checkout")
    return SHARED_DATA


@pytest.fixture
def shared_rows(shared_data: Path) -> Callable[[str], list[dict]]:
    """Reads the rows of one of those files."""

    def read(name: str) -> list[dict]:
        return [json.loads(line) for line in (shared_data / name).read_text(encoding="utf-8").splitlines()]

    return read


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretrained chat model in Hugging Face layout, SmolLM2-135M-Instruct; test processes share one folder."""
    tool = REPOSITORY.parent / "shared" / "tools" / "real-base.py"
    if not tool.is_file():
        pytest.skip("the script that makes a real model (../shared/tools/real-base.py) is not beside this checkout")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run([sys.executable, tool, root / "smollm2"], capture_output=True, text=True, check=False)
    if made.returncode:
        if "pip" in made.stderr and "download" in made.stderr:
            pytest.skip("the package index, which has the real model's weights, cannot be reached")
        pytest.fail(made.stderr)
    return root / "smollm2"


class Adapters:
    """Tiny bases and adapters of them, in folders and in a registry of the test's own.

    Attributes:
        folder: where the folders go.
        registry: the home's, which the command line opens when nobody names another.
    """

    def __init__(self, folder: Path, url: str) -> None:
        from transformers.utils import logging

        from modelwright.core.plugins import discover
        from modelwright.core.registry import open_registry

        logging.disable_progress_bar()  # tests look at what commands print
        self.folder = folder
        self.registry = open_registry(url, discover())

    def base(self, name: str = "base", *, seed: int = 1, added: int = 0, **changes: object) -> Path:
        """A random Llama with a tokenizer of words, which has this many more tokens than the model has embeddings."""
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        from modelwright.core.api.records import Example, Message
        from modelwright.core.chat.renderer import read_template
        from modelwright.core.config.schema import ScratchConfig
        from modelwright.core.stages.prepare.tokenizers import scratch_renderer
        from modelwright.core.stages.train.worker import scratch_config

        turns = [Message(role="user", content="What is 1 and 2?"), Message(role="assistant", content="It is 3.")]
        renderer = scratch_renderer("words", [Example(messages=turns)], vocab_size=80, template=read_template("chatml"))
        renderer.save(self.folder / name)
        config = scratch_config(
            ScratchConfig(hidden_size=16, layers=2, heads=2),
            vocabulary=renderer.vocab_size,
            stops=renderer.stop_token_ids,
            max_length=128,
        )
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**config | changes))
        model.save_pretrained(self.folder / name)
        for number in range(added):
            self._add_token(self.folder / name / "tokenizer.json", f"<|new-{number}|>")
        return self.folder / name

    @staticmethod
    def _add_token(file: Path, text: str) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.add_tokens([text])
        tokenizer.save(str(file))

    def adapter(self, base: Path, name: str = "adapter", *, seed: int = 2, **settings: object) -> Path:
        """An adapter of a base that does something, as a training leaves it, with the base's tokenizer."""
        import torch
        from transformers import AutoModelForCausalLM

        from modelwright.core.api import AdapterSettings
        from modelwright.core.api.adapters import embedding_rows, grow_embeddings
        from modelwright.core.chat.renderer import Renderer
        from modelwright.core.models.hf_folder import token_count
        from modelwright.plugins.trainers.model.adapter import adapter_state, attach, export_adapter

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = embedding_rows(model)
        grow_embeddings(model, token_count(base))
        chosen = AdapterSettings(**{"rank": 4, **settings})
        attach(model, chosen, seed=seed, new_tokens=range(before, embedding_rows(model)))
        generator = torch.Generator().manual_seed(seed)
        for tensor in adapter_state(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
        folder = self.folder / name
        folder.mkdir(parents=True)
        export_adapter(model, folder)
        renderer = Renderer.from_folder(base)
        renderer.save(folder)
        (folder / "modelwright.json").write_text(json.dumps({"renderer": renderer.fingerprint}))
        return folder

    def add(self, folder: Path, name: str | None = None, *, source: str | None = None, **model: object):
        """Register a folder; `source` is what `[model] base` said."""
        from modelwright import NewModel

        name = name or folder.name
        config = {"model": {"base": source}} if source else {}
        return self.registry.add(NewModel(name=name, fingerprint=name, config=config, **model), folder)

    def pair(self, **settings: object):
        """A registered base and an adapter of it."""
        base = self.add(self.base())
        folder = self.adapter(self.folder / "base", **settings)
        adapter = self.add(folder, source="base", base=base.digest, parent=base.address)
        return base, adapter


@pytest.fixture
def adapters(tmp_path: Path, home: Path) -> Adapters:
    """Tiny bases and adapters of them."""
    return Adapters(tmp_path / "adapters", f"sqlite:///{home}/registry.db")
