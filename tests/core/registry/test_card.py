import re

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from modelwright.core.api.records import wilson
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.registry.card import block, code, model_card
from modelwright.core.testing.registry import new_model, write_model


@pytest.fixture
def version(tmp_path):
    registry = open_registry(f"sqlite:///{tmp_path}/registry.db", discover())
    model = evolve(new_model(), environment={"python": "3.11.7", "package.torch": "2.13", "package.colorama": "1"})
    registry.add(model, write_model(tmp_path / "trained"))
    registry.add_metrics("math", 1, "gsm8k", {"accuracy": wilson(0.965, 200)})
    return registry.get("math")


def header(card):
    """What a reader of YAML finds between the first two lines of dashes, by the rules of 1.1 and of 1.2."""
    text = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1]
    found = []
    for rules in ((1, 1), (1, 2)):
        yaml = YAML(typ="safe", pure=True)
        yaml.version = rules
        found.append(yaml.load(text))
    assert found[0] == found[1]
    return found[1]


def test_the_header_is_what_the_hub_reads(version):
    """Library, task, tags, data and results, in the hub's shapes."""
    assert header(model_card(version)) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["modelwright", 'note:it\'s "quoted"', "team:nlp"],
        "datasets": ["train.jsonl"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "math",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"type": "gsm8k", "name": "gsm8k"},
                        "metrics": [{"type": "accuracy", "name": "accuracy", "value": 0.965}],
                    }
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    ("parent", "named"), [("org/model@c0ffee", "org/model"), ("older@1", None), ("a/b/c", None), (None, None)]
)
def test_only_a_base_of_the_hub_is_named_there(version, parent, named):
    """Addresses of this registry lead nobody anywhere; the body has them."""
    card = model_card(evolve(version, model=evolve(version.model, parent=parent)))
    assert header(card).get("base_model") == named
    assert (f"| `continues` | `{parent}` |" in card) == (parent is not None)


def test_the_body_tells_what_how_and_how_well(version):
    """Lineage, data with digests, configuration as TOML, figures with intervals, what it was made with."""
    card = model_card(version)
    for line in (
        "# `math@1`",
        "| `continues` | `older@1` |",
        "| `gsm8k` | `accuracy` | 0.965 | 0.9295 to 0.9829 | 200 |",
        f"| `/data/train.jsonl` | `{'ab' * 32}` |",
        "| `loss` | `0.125` |",
        "learning_rate = 0.005",
        "| `torch` | `2.13` |",
        "modelwright serve math",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
    ):
        assert line in card.splitlines()
    assert "colorama" not in card


def test_a_model_of_which_nothing_is_known_has_a_card(version):
    """Sections without content are left out."""
    model = evolve(version.model, config={}, data={}, environment={}, training={}, tags={}, code_version="")
    card = model_card(evolve(version, model=model, metrics={}))
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == ["Files", "Use"]


hostile = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        ["no", "1e3", "`", "``", "a|b", "\\", "---\n", "# x", "<b>", "```\n", "\x1b[2J", "\u202e", ": x", " "]
    ),
)


@given(hostile)
def test_any_text_is_one_line_of_code(text):
    """What is inside cannot end it, nor the table's cell, nor the line."""
    shown = code(text)
    fence = re.match(r"`+", shown)[0]
    assert shown.endswith(fence)
    assert shown.isprintable()
    inner = shown[len(fence) : -len(fence)]
    assert fence not in re.findall(r"`+", inner)
    assert not re.search(r"(?<!\\)\|", inner)


@given(hostile)
def test_any_text_stays_in_its_block(text):
    """No line of it is as long a fence as the block's."""
    shown = block("toml", text).splitlines()
    fence = shown[-1]
    assert not any(line.strip().startswith(fence) for line in shown[1:-1])


@given(hostile, hostile, hostile)
def test_no_text_gets_out_of_its_place(card_of, key, value, suite):
    """The header reads as what was put in, and the body's headings are the card's own."""
    card = card_of(key, value, suite)
    found = header(card)
    assert found["tags"] == ["modelwright", f"key:{value}"]
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == suite
    headings = [line for line in outside_code(card) if line.startswith("#")]
    assert headings == ["# `math@1`", *(f"## {each}" for each in SECTIONS)]


SECTIONS = ["Results", "Training data", "Training", "Configuration", "Environment", "Files", "Use"]


@pytest.fixture(scope="module")
def card_of(tmp_path_factory):
    """A card with the test's texts in every place."""
    place = tmp_path_factory.mktemp("card")
    registry = open_registry(f"sqlite:///{place}/registry.db", discover())
    registry.add(new_model(), write_model(place / "trained"))
    version = registry.get("math")

    def make(key, value, suite):
        model = evolve(
            version.model,
            config={key: {"x": [value, None, {key: value}]}},
            data={key: value},
            training={key: value},
            base=value,
            tags={"key": value},
        )
        return model_card(evolve(version, model=model, metrics={suite: {"accuracy": wilson(0.5, 10)}}))

    return make


def outside_code(card):
    """The lines of a card's body that are in no fenced block."""
    fence = None
    for line in card.split("---\n", 2)[2].split("\n"):
        opening = re.match(r"`{3,}", line)
        if fence is None and opening:
            fence = opening[0]
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            yield line
