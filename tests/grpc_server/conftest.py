"""A registry of tiny models, an engine plugin whose answers can be foretold, and servers on real channels."""

import asyncio
import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelwright import NewModel
from modelwright.core.chat.templates import CHATML
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.grpc_server.client import Client
from modelwright.grpc_server.models.switching import ModelTable
from modelwright.grpc_server.network.tls import Tls
from modelwright.grpc_server.server import Address, Server, ServerOptions

CONTEXT = 128


def import_echo_engine():
    """Import the plugin's module once for all who load this file, as an entry point would."""
    if "echo_engine" in sys.modules:
        return sys.modules["echo_engine"]
    spec = importlib.util.spec_from_file_location("echo_engine", Path(__file__).with_name("echo_engine.py"))
    module = sys.modules["echo_engine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


echo_engine = import_echo_engine()


def write_model(folder, *, mark, context=CONTEXT, **config):
    """A model folder whose tokenizer has a token for each byte and ChatML's control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context, "mark": mark, **config}))
    return folder


class Shelf:
    """A registry, and the engine to run its models with."""

    def __init__(self, folder):
        self.folder = folder
        self.url = f"sqlite:///{folder / 'registry.db'}"
        self.registry = open_registry(self.url, discover())
        (self.spec,) = echo_engine.modelwright_engines()

    def add(self, name, **options):
        """Register a model whose mark is its address, unless another is given."""
        version = len(self.registry.find(name)) + 1
        options.setdefault("mark", f"{name}@{version}")
        folder = write_model(self.folder / f"{name}-{version}", **options)
        return self.registry.add(NewModel(name=name, fingerprint=f"{name}-{version}"), folder)

    def point(self, alias, name, version):
        return self.registry.set_alias(alias, name, version)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "models")


@pytest.fixture
def journal():
    """What was asked of the echo engines: tuples that begin with load, finish, cancel, close."""
    echo_engine.journal.clear()
    return echo_engine.journal


class Running:
    """A server on a loop of its own, in another thread."""

    def __init__(self, shelf, addresses, **options):
        engines, most = options.pop("engines", None), options.pop("max_requests", 256)
        self.table = ModelTable(shelf.registry, shelf.spec, max_requests=most, engines=engines)
        options.setdefault("listen", Address(host="127.0.0.1", port=0))
        self.server = Server(self.table, ServerOptions(**options))
        self.hurry = asyncio.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        try:
            self.bound = self.run(self.server.bind())
            self.target = str(self.bound.listen)
            self.table.load(addresses)
            self.run(self.table.warm())
            self.run(self.server.start())
        except BaseException:
            self.stop()
            raise

    def run(self, work, timeout=30):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self):
        if self.loop.is_closed():
            return
        self.run(self.server.stop(self.hurry))
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def make_certificate(folder, name="server", *, dates=()):
    """A certificate for this machine that signs itself, and its key; `dates`: its first and its last."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed, which makes the certificates of these tests")

    def openssl(*arguments):
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)

    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "default_days=30\nx509_extensions=x\n[p]\ncommonName=supplied\n[x]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
    )
    (folder / "index").write_text("")
    (folder / "serial").write_text("01")
    key, request, certificate = f"{name}.key", f"{name}.csr", f"{name}.pem"
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    between = ["-startdate", dates[0], "-enddate", dates[1]] if dates else []
    openssl("ca", "-batch", "-notext", "-selfsign", "-config", "ca.cnf", "-in", request, "-keyfile", key,
            "-out", certificate, *between)  # fmt: skip
    return Tls(certificate=folder / certificate, key=folder / key)


@pytest.fixture(scope="session")
def certify():
    """Makes certificates: see `make_certificate`."""
    return make_certificate


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """The files of TLS, for servers on this machine."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def serve(shelf):
    """Starts servers that end with the test: `serve("math", "@assistant", max_requests=1)`."""
    with contextlib.ExitStack() as stack:

        def start(*addresses, **options):
            running = Running(shelf, addresses, **options)
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture
def connect():
    """Makes clients that are closed with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda running, target=None, **options: stack.enter_context(
            Client(str(target or running.target), **{"timeout": 20, **options})
        )


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    """A server for a whole module: `math@1`, and messages of at most 64 KiB."""
    shelf = Shelf(tmp_path_factory.mktemp("models"))
    shelf.add("math")
    running = Running(shelf, ["math"], max_message_bytes=64 * 1024)
    yield running
    running.stop()
