"""The quickstart: train three models by one command, serve them for a moment, switch between them.

make quickstart
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from modelwright import Client

MODELWRIGHT = str(Path(sys.executable).parent / "modelwright")
RUN = Path(__file__).parent / "quickstart.toml"
MODELS = ("arithmetic-math", "arithmetic-reasoning", "arithmetic-general")
QUESTION = "Tom has 7 apples and gets 5 more. How many apples does Tom have now?"


@contextlib.contextmanager
def serving(*addresses: str) -> Iterator[str]:
    """A server on a free port; gives `HOST:PORT`."""
    command = [MODELWRIGHT, "serve", *addresses, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith("serving on "):
                    yield line.removeprefix("serving on ").partition(";")[0].strip()
                    break
            else:
                sys.exit("the server ended before it was ready")
        finally:
            server.terminate()


def main() -> None:
    """Run, serve, switch; then print what the run has to say."""
    begin = time.monotonic()
    run = subprocess.run([MODELWRIGHT, "run", str(RUN)], stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        sys.exit(run.returncode)
    took = time.monotonic() - begin

    print(f"\nOne question to each, by gRPC:\n  {QUESTION}")
    with serving(*MODELS) as target, Client(target) as client:
        for model in MODELS:
            print(f"  {model:<22} {client.chat(QUESTION, model=model).text}")
        print("\nThe alias assistant, switched while the server runs:")
        for model in (MODELS[0], MODELS[1]):
            client.set_alias("assistant", model)
            answer = client.chat(QUESTION, model="@assistant")
            print(f"  @assistant is {answer.served.address:<24} {answer.text}")

    print(f"\nThree models in {took:.0f} s:\n{run.stdout}")
    print(f"(modelwright is {MODELWRIGHT}; `. .venv/bin/activate` puts it on the path.)")


if __name__ == "__main__":
    main()
