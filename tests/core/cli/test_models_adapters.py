"""`modelwright models` about adapters: merge, show, card, delete, export and import."""

from __future__ import annotations

import json
import re

import pytest


@pytest.fixture
def adapters(adapters, capsys):
    """A base and an adapter, the words of the libraries that made them aside."""
    adapters.pair()
    capsys.readouterr()
    return adapters


def test_merge_says_what_was_made_and_how_close_it_is(adapters, models, wording):
    """In two lines; the second time there is nothing to do."""
    code, out, err = models("merge", "adapter")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    whole = adapters.registry.get("adapter-merged")
    wording(first, digest=whole.digest)
    wording(re.sub(r"[0-9.e-]+[0-9]", "N", second))
    code, out, _ = models("merge", "adapter@1")
    assert code == 0
    wording(out, digest=whole.digest)


def test_merge_as_json_is_json_alone(adapters, models):
    """What the libraries print goes elsewhere."""
    code, out, err = models("merge", "adapter", "--name", "whole", "--json")
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert (made["name"], made["version"], made["added"]) == ("whole", 1, True)
    assert made["compared"]["difference"] <= made["compared"]["allowed"]
    assert json.loads(models("merge", "adapter", "--name", "whole", "--json")[1])["compared"] is None


def test_merge_of_what_is_not_an_adapter_is_one_line(adapters, here, wording):
    """A whole model, and nothing at all."""
    code, error = here("models", "merge", "base")
    assert code == 2
    wording(error)
    _, error = here("models", "merge", "adaptor")
    assert "did you mean 'adapter'?" in error


def test_show_and_card_say_that_it_is_an_adapter_and_of_what(adapters, models):
    """People read it, and so does the hub."""
    base = adapters.registry.get("base")
    assert "adapter of   base@1" in models("show", "adapter")[1].replace("  adapter of", "adapter of")
    assert json.loads(models("show", "adapter", "--json")[1])["adapter"] is True
    assert json.loads(models("show", "base", "--json")[1])["adapter"] is False
    card = models("card", "adapter")[1]
    assert 'library_name: "peft"' in card
    assert "| `adapter of` | `base@1` |" in card
    assert f"BASE the folder of its base, whose digest is `{base.digest}`" in card
    assert 'PeftModel.from_pretrained(base, "FOLDER")' in card
    assert "peft" not in models("card", "base")[1].partition("## Use")[2]


def test_the_card_of_an_adapter_of_the_hub_names_the_base_as_the_hub_does(adapters, models):
    """Its page shows the adapter then."""
    folder = adapters.folder / "adapter"
    adapters.add(folder, "of-hub", source="org/name", base="0" * 64, parent="org/name@" + "0" * 40)
    card = models("card", "of-hub")[1]
    assert 'base_model: "org/name"\nbase_model_relation: "adapter"\n' in card


def test_a_base_is_not_deleted_under_its_adapters(adapters, here, models, wording):
    """Together they go, or the adapter alone."""
    code, error = here("models", "delete", "base", "--yes")
    assert code == 1
    wording(error)
    assert models("delete", "base", "adapter", "--yes")[0] == 0
    assert adapters.registry.find() == []


def test_an_exported_adapter_finds_its_base_in_another_registry(adapters, models, tmp_path):
    """The record names it; base and adapter are imported in any order."""
    base = adapters.registry.get("base")
    for name in ("adapter", "base"):
        assert models("export", "--no-verify", name, tmp_path / name)[0] == 0
    record = json.loads((tmp_path / "adapter" / "modelwright-model.json").read_text())
    assert (record["parent"], record["base"]) == ("base@1", base.digest)
    other = ("--registry", f"sqlite:///{tmp_path}/other/registry.db")
    assert models("import", tmp_path / "adapter", *other)[0] == 0
    code, _, error = models("merge", "adapter", *other)
    assert code == 1
    assert "base@1 (digest" in error
    assert models("import", tmp_path / "base", "--name", "renamed", *other)[0] == 0
    assert models("merge", "adapter", *other)[0] == 0


def test_a_folder_with_an_adapter_and_no_record_is_refused(adapters, here, wording):
    """Its base is not known."""
    code, error = here("models", "import", adapters.folder / "adapter", "--name", "found")
    assert code == 2
    wording(error, folder=adapters.folder)
