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
    assert json.loads(models("merge", "adapter", "--name", "whole", "--dtype", "float16", "--json")[1])["version"] == 2
    assert "merge.dtype   float16" in models("show", "whole@2")[1]


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


# What peft wrote


@pytest.fixture
def plain(adapters, capsys):
    """Saves an adapter of the base with peft alone."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def save(base=None, name="plain", kind=peft.LoraConfig, **settings):
        place = base or adapters.folder / "base"
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        torch.manual_seed(4)
        adapted = peft.get_peft_model(model, kind(task_type="CAUSAL_LM", **settings))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(adapters.folder / name)
        capsys.readouterr()
        return adapters.folder / name

    return save


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(20).view(2, 10)).logits


def check_computes_as_in_peft(adapters, models, folder, name):
    """Merged from the registry, it gives the logits of base and adapter in plain peft."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(adapters.folder / "base", dtype=torch.float32)
    expected = logits(peft.PeftModel.from_pretrained(base, folder))
    assert models("merge", name, "--name", "whole")[0] == 0
    merged = adapters.registry.folder(adapters.registry.get("whole"))
    made = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    assert torch.allclose(made, expected, atol=1e-4)


def test_an_adapter_that_peft_wrote_is_imported_with_its_base(adapters, models, plain, wording):
    """Its base's tokenizer and config are added to it; nothing in its folder changes."""
    folder = plain(r=4, target_modules="all-linear", use_rslora=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = models("import", folder, "--name", "found", "--base", "base", "--alias", "candidate")
    assert (code, err) == (0, "")
    found, base = adapters.registry.get("found"), adapters.registry.get("base")
    wording(out, digest=found.digest)
    assert (found.model.parent, found.model.base, found.is_adapter) == ("base@1", base.digest, True)
    assert {file.path for file in found.files} > {"config.json", "tokenizer.json", "adapter_config.json"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert models("import", folder, "--name", "found", "--base", "base@1")[1].startswith("already registered: found@1")
    check_computes_as_in_peft(adapters, models, folder, "found")


def test_an_adapter_is_imported_with_the_base_that_peft_noted(adapters, models, plain):
    """A folder, as in a run; DoRA and modules that are saved whole belong to it."""
    folder = plain(r=4, use_dora=True, modules_to_save=["embed_tokens"])
    assert models("import", folder, "--name", "found")[::2] == (0, "")
    found = adapters.registry.get("found")
    assert (found.model.parent, found.model.config) == (None, {"model": {"base": str(adapters.folder / "base")}})
    check_computes_as_in_peft(adapters, models, folder, "found")


def test_a_tokenizer_beside_an_adapter_is_its_own(adapters, models, plain):
    """Trainers save it there; its template is the one that it was trained with."""
    from modelwright.core.chat.renderer import Renderer

    folder = plain()
    renderer = Renderer.from_folder(adapters.folder / "base", chat_template="{{ messages[0].content }}")
    renderer.save(folder)
    assert models("import", folder, "--name", "found", "--base", adapters.folder / "base")[0] == 0
    there = adapters.registry.folder(adapters.registry.get("found"))
    assert Renderer.from_folder(there).fingerprint == renderer.fingerprint


@pytest.mark.parametrize(
    "arguments",
    [
        "plain --base base",
        "base --name found --base base",
        "exported --base base",
        "plain --name found --base adapter",
    ],
    ids=["no name", "whole", "record", "base is an adapter"],
)
def test_base_is_for_an_adapter_that_peft_wrote(adapters, here, models, plain, wording, monkeypatch, arguments):
    """And an adapter needs a name."""
    monkeypatch.chdir(adapters.folder)
    plain()
    models("export", "--no-verify", "adapter", "exported")
    code, error = here("models", "import", *arguments.split())
    assert code == 2
    wording(error)
