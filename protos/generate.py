"""Generate `src/modelwright/v1` from the protos: `python protos/generate.py [--check]`.

The toolchain is the oldest that is supported, so that what it writes imports on protobuf 6 and 7 and on every grpcio
from 1.74: newer output locks out older clients. It lives in a virtual environment of its own (`--venv`), which is made
on first use and made again when the pinned versions change.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TOOLCHAIN = ("grpcio-tools==1.74.0", "protobuf==6.31.1", "setuptools<80")

ROOT = Path(__file__).resolve().parent
REPOSITORY = ROOT.parent
PACKAGE = Path("modelwright/v1")
GENERATED = REPOSITORY / "src" / PACKAGE

INIT = '''"""The messages and stubs of `modelwright.v1`, generated from protos/ by protos/generate.py; do not edit."""
'''


def toolchain(folder: Path) -> Path:
    """The Python of a virtual environment that holds the pinned toolchain; made if it is not there."""
    python = folder / "bin" / "python"
    marker = folder / "toolchain.txt"
    wanted = "\n".join(TOOLCHAIN)
    if not (python.exists() and marker.exists() and marker.read_text(encoding="utf-8") == wanted):
        venv.EnvBuilder(clear=True, with_pip=True).create(folder)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLCHAIN], check=True
        )
        marker.write_text(wanted, encoding="utf-8")
    return python


def generate(python: Path, output: Path) -> dict[str, str]:
    """Run protoc into `output`; gives the generated files' texts by name."""
    protos = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).glob("*.proto"))
    outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([python, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", *outputs, *protos], check=True)
    files = {path.name: path.read_text(encoding="utf-8") for path in (output / PACKAGE).iterdir()}
    # A file without a service makes an empty module of stubs.
    files = {name: text for name, text in files.items() if not name.endswith("_grpc.py") or "class " in text}
    return {**files, "__init__.py": INIT}


def committed() -> dict[str, str]:
    """The texts of the generated files in the repository, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in GENERATED.glob("*.py*") if path.is_file()}


def main() -> int:
    """Write the generated files, or with `--check` fail where they differ from the protos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the committed files are not current"
    )
    parser.add_argument(
        "--venv", type=Path, default=REPOSITORY / "build" / "protos-venv", help="where the toolchain lives"
    )
    arguments = parser.parse_args()
    python = toolchain(arguments.venv.absolute())
    with tempfile.TemporaryDirectory() as temporary:
        files = generate(python, Path(temporary))
    there = committed()
    drifted = sorted(name for name in {*files, *there} if files.get(name) != there.get(name))
    if arguments.check:
        for name in drifted:
            sys.stderr.write(f"{GENERATED / name} is not what the protos give: run python protos/generate.py\n")
        return 1 if drifted else 0
    if drifted:
        shutil.rmtree(GENERATED, ignore_errors=True)
        GENERATED.mkdir(parents=True)
        for name, text in files.items():
            (GENERATED / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
