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
PROBLEM = "Tom has 7 apples and gets 5 more. How many apples does Tom have now?"
INSTRUCTION = "There are 7 apples in the basket of Tom. A friend puts in 5 more. Count the apples in the basket."
# Each model, and a question of the kind that it was trained on.
QUESTIONS = {
    "arithmetic-math": PROBLEM,
    "arithmetic-reasoning": PROBLEM,
    "arithmetic-general": f"{INSTRUCTION} Reply with a sentence.",
}


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


def one_line(text: str) -> str:
    """A text of several lines on one."""
    return " / ".join(text.splitlines())


def main() -> None:
    """Run, serve, switch; then print the summary of the run."""
    begin = time.monotonic()
    run = subprocess.run([MODELWRIGHT, "run", str(RUN)], stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        sys.exit(run.returncode)
    took = time.monotonic() - begin

    print("\nOne question to each, by gRPC:")
    with serving(*QUESTIONS) as target, Client(target) as client:
        for model, question in QUESTIONS.items():
            print(f"  {question}\n    {model}: {one_line(client.chat(question, model=model).text)}")
        print(f"\nThe alias assistant, switched while the server runs:\n  {PROBLEM}")
        for model in ("arithmetic-math", "arithmetic-reasoning"):
            client.set_alias("assistant", model)
            answer = client.chat(PROBLEM, model="@assistant")
            print(f"    @assistant is {answer.served.address}: {one_line(answer.text)}")

    print(f"\nThree models in {took:.0f} s:\n{run.stdout}")
    print(f"(modelwright is {MODELWRIGHT}; `. .venv/bin/activate` puts it on the path.)")


if __name__ == "__main__":
    main()
