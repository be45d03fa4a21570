"""The proof of the labels as a person sees it: shares, counts, and rows with what is learnt of them coloured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

# So many characters of each part of an example are shown while a run works; `data show` has them all.
PART = 160


def label_shares(data: Any) -> list[tuple[str, int]]:
    """Which tokens are learnt, by role and kind of span, and how many are not."""
    learnt = [(f"{role} {kind}", n) for role, named in data["trained_by_role"].items() for kind, n in named.items()]
    return [*learnt, ("not learnt", data["tokens"] - sum(n for _, n in learnt))]


def label_text(data: Any) -> str:
    """The shares, and how many examples have what makes labels wrong, in one line."""
    shares = [f"{name} {n / data['tokens']:.1%}" for name, n in label_shares(data) if data["tokens"]]
    anomalies = {"begin-doubled": 0, "end-missing": 0, **data["anomalies"]}
    strange = [("nothing learnt", data["untrained"]), ("too long", data["too_long"]), *anomalies.items()]
    return f"labels: {', '.join(shares)}; " + ", ".join(f"{n:,} {name}" for name, n in strange)


def example_text(one: Any, *, coloured: bool, most: int | None = None) -> Text:
    """A row with what is learnt of it green, or between ⟦ and ⟧ where there are no colours.

    Args:
        one: a `Look`, as a dictionary.
        coloured: see above.
        most: of a longer part, the middle is left out.
    """
    text = Text(f"{one['source'] or one['id']}   {one['tokens']:,} tokens, {one['trained']:,} learnt\n", style="bold")
    shown = Text(style="not bold")
    for part in one["parts"]:
        words = part["text"]
        if most is not None and len(words) > most:
            words = f"{words[: most // 2]} … {words[-most // 2 :]}"
        if coloured:
            shown.append(words, style="green" if part["trained"] else "dim")
        else:
            shown.append(f"⟦{words}⟧" if part["trained"] else words)
    return text.append_text(shown)


def print_examples(console: Console, examples: Iterable[Any]) -> None:
    """Some rows, indented, each part of them short."""
    for one in examples:
        text = example_text(one, coloured=console.is_terminal, most=PART)
        text.rstrip()
        for line in text.split("\n", allow_blank=True):
            console.print(Text("    ").append_text(line), soft_wrap=True)
