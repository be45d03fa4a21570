"""`modelwright serve` at its edges: numbers that are none, files that never end, two tokens that are one."""

import importlib.util
import os
from pathlib import Path

import pytest

from modelwright.core.cli import main


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"modelwright_tests_sweep_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = load("grpc_serving")
command_line = helpers.load("../core/cli/conftest.py")
tls, shelf, serve = helpers.tls, command_line.shelf, command_line.serve
HERE = ("serve", "math", "--listen", "127.0.0.1:0")

NUMBERS = [
    ("--grace", "nan"),
    ("--grace", "inf"),
    ("--grace", "1e999"),
    ("--grace", "-1"),
    ("--grace", "-inf"),
    ("--grace", "soon"),
    ("--max-requests", "0"),
    ("--max-requests", "-1"),
    ("--max-requests", "nan"),
    ("--max-message-bytes", "1023"),
    ("--max-message-bytes", "inf"),
    ("--max-message-bytes", str(2**63)),
]


def in_this_process(capsys, *arguments):
    """(exit code, standard output, standard error)."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("flag", "value"),
    NUMBERS,
    ids=lambda value: ascii(value)[:60],
)
def test_an_impossible_number_is_reported_by_its_flag(capsys, flag, value, wording):
    """Before anything else happens."""
    code, output, error = in_this_process(capsys, *HERE, flag, value)
    assert (code, output) == (2, "")
    assert flag in error
    wording(error.splitlines()[-1])


def test_numbers_that_are_huge_are_taken(serve):
    """It serves, and ends as others do."""
    serving = serve(*("math", "--grace", "1e308", "--max-requests", 10**30, "--max-message-bytes", 2**30))
    assert serving.end() == (0, "", "")


@pytest.fixture
def files(tmp_path, tls):
    """The working directory of the command, with tokens, a certificate and its key, and a pipe nobody writes into."""
    for name, token in (("token", "secret\n"), ("same", "  secret  \nas another file\n"), ("other", "else\n")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(token)
    (tmp_path / "link").symlink_to("token")
    (tmp_path / "cert.pem").write_bytes(tls.certificate.read_bytes())
    (tmp_path / "key.pem").write_bytes(tls.key.read_bytes())
    os.mkfifo(tmp_path / "pipe", 0o600)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (["--token-file", "pipe"], "--token-file"),
        (["--admin-token-file", "pipe"], "--admin-token-file"),
        (["--tls-cert", "pipe", "--tls-key", "key.pem"], "--tls-cert"),
        (["--tls-cert", "cert.pem", "--tls-key", "pipe"], "--tls-key"),
    ],
)
def test_a_pipe_is_not_waited_for(capsys, monkeypatch, files, options, flag, wording):
    """Reading it would hold up the server for ever, without a word."""
    monkeypatch.chdir(files)
    code, output, error = in_this_process(capsys, *HERE, *options)
    assert (code, output) == (2, "")
    wording(error.removesuffix("\n"))


@pytest.mark.parametrize("other", ["token", "link", "same"])
@pytest.mark.parametrize("insecure", [[], ["--insecure"]])
def test_the_same_token_for_users_and_administrators_is_refused(capsys, monkeypatch, files, other, insecure, wording):
    """By what it says, not by its path: any caller could change the server, and nothing would show it."""
    monkeypatch.chdir(files)
    code, output, error = in_this_process(
        capsys, *HERE, "--token-file", "token", "--admin-token-file", other, *insecure
    )
    assert (code, output) == (2, "")
    wording(error.removesuffix("\n"))


def test_two_tokens_and_files_by_links_are_taken(serve, files):
    """As mounted secrets are."""
    (files / "certificate-link").symlink_to("cert.pem")
    serving = serve(
        *("math", "--token-file", files / "link", "--admin-token-file", files / "other"),
        *("--tls-cert", files / "certificate-link", "--tls-key", files / "key.pem"),
    )
    assert serving.end() == (0, "", "")
