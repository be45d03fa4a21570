"""Write the reference from the source; with `--check`, fail where the committed pages are not what the source says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from generator import api, commands, configuration, events, http, protocol
from generator.text import page

HERE = Path(__file__).parent

PAGES: dict[str, tuple[Callable[[], str], str]] = {
    "commands.md": (commands.commands, "core/cli"),
    "configuration.md": (configuration.configuration, "core/config and the options of the built-in plugins"),
    "plugins.md": (api.plugins, "core/api and core/testing"),
    "records.md": (api.records, "core/api"),
    "events.md": (events.events, "core/runs/events.py"),
    "client.md": (api.clients, "grpc_server/client/sync.py and what it gives"),
    "http.md": (http.http, "grpc_server/gateway"),
    "protocol.md": (protocol.protocol, "protos"),
}


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    note = "<!-- Made by docs/reference/generate.py from {}. Do not edit: change the source. -->"
    return {name: page(note.format(source), make()) for name, (make, source) in PAGES.items()}


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not current")
    arguments = parser.parse_args()
    made = pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("*.md")}
    drifted = sorted(name for name, text in made.items() if there.get(name) != text)
    if arguments.check:
        for name in drifted:
            sys.stderr.write(f"docs/reference/{name} is not what the source says: python docs/reference/generate.py\n")
        return 1 if drifted else 0
    for name in drifted:
        (HERE / name).write_text(made[name], encoding="utf-8")
        sys.stdout.write(f"wrote docs/reference/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
