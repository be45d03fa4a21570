import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.records import wilson
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.registry.record import is_inside, read_record, to_record
from modelwright.core.testing.registry import new_model, write_model


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """A registered model with a figure."""
    place = tmp_path_factory.mktemp("record")
    registry = open_registry(f"sqlite:///{place}/registry.db", discover())
    registry.add(new_model(), write_model(place / "trained"))
    registry.add_metrics("math", 1, "gsm8k", {"accuracy": wilson(0.965, 200)})
    return registry.get("math")


def read(record):
    return read_record(json.dumps(record).encode(), "here")


def test_a_record_reads_as_what_was_written(version):
    """Every field, down to the last bit of a figure."""
    assert read(to_record(version)) == version


def test_later_fields_are_passed_over_and_later_formats_refused(version):
    """A new field changes nothing for an older reader; a new meaning does."""
    record = to_record(version)
    assert read({**record, "mood": "good"}) == version
    with pytest.raises(RegistryError, match=r"written by a newer Modelwright \(format 2, this version knows 1\)"):
        read({**record, "record": 2})


def put(*place):
    """Changes a record at a place."""
    *keys, last, value = place

    def change(record):
        table = record
        for key in keys:
            table = table[key]
        table[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("name", "Math"), "'name' must match"),
        (put("name", "m" * 129), "'name' must match"),
        (put("name", 3), 'expected text as "name"'),
        (put("version", 0), 'expected a version as "version"'),
        (put("created", "yesterday"), "Invalid isoformat string"),
        (put("created", "2026-11-24T00:00:00"), "expected a time with its zone"),
        (put("parent", 7), 'expected text or null as "parent"'),
        (put("config", []), 'expected a table as "config"'),
        (put("data", "x", 3), 'expected only texts in "data"'),
        (put("tags", "a=b", "c"), "cannot be a tag's key"),
        (put("tags", "a", "\0"), "expected text without NUL"),
        (put("files", []), 'expected a list of files as "files"'),
        (put("files", 0, "path", "../config.json"), "a path inside the model, not '../config.json'"),
        (put("files", 0, "path", "/etc/passwd"), "a path inside the model, not '/etc/passwd'"),
        (put("files", 0, "path", "a/./b"), "a path inside the model, not 'a/./b'"),
        (put("files", 0, "path", "a\0"), "a path inside the model"),
        (put("files", 0, "path", "model.safetensors"), "each file once, not 'model.safetensors' again"),
        (put("files", 0, "path", "templates"), "folders that are no files, not 'templates/chat.jinja'"),
        (put("files", 0, "sha256", "AB" * 32), "a sha256"),
        (put("files", 0, "size", -1), "a size of 'config.json'"),
        (put("files", 0, "size", 1.5), "a size of 'config.json'"),
        (put("files", 0, "sha256", "ab" * 32), 'the digest of the files as "digest"'),
        (put("metrics", "gsm8k", 1), "a table as metrics.gsm8k"),
        (put("metrics", "gsm8k", "accuracy", "value", "1"), "finite numbers in metrics.gsm8k.accuracy"),
        (put("metrics", "gsm8k", "accuracy", "low", float("nan")), "NaN is no number of JSON"),
        (put("metrics", "gsm8k", "accuracy", "n", 1 << 63), "a count as metrics.gsm8k.accuracy.n"),
        (put("metrics", "gsm8k", "accuracy", {"value": 1}), "a figure as metrics.gsm8k.accuracy"),
    ],
)
def test_what_is_not_to_be_trusted_is_one_line(version, change, reason):
    """With the file, the place and what is expected there."""
    record = copy.deepcopy(to_record(version))
    change(record)
    with pytest.raises(RegistryError) as caught:
        read(record)
    assert str(caught.value).startswith("here is no record of a model: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 100_000, b'{"record": 1}', b"1" * 5000]
)
def test_any_other_bytes_are_one_line(content):
    """A picture, half a download, a page of a web server."""
    with pytest.raises(RegistryError, match="here is no record of a model: "):
        read_record(content, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_record_with_anything_anywhere_is_read_or_refused(version, data):
    """Nothing else happens, whatever is put in whichever place."""
    record = copy.deepcopy(to_record(version))
    table, key = record, data.draw(st.sampled_from(sorted(record)))
    while isinstance(table[key], dict) and table[key] and data.draw(st.booleans()):
        table, key = table[key], data.draw(st.sampled_from(sorted(table[key])))
    table[key] = data.draw(json_values)
    try:
        found = read(record)
    except RegistryError as error:
        refusal = str(error)
    else:
        assert all(is_inside(file.path) for file in found.files)
        return
    assert "\n" not in refusal


@given(st.text(alphabet="a./\\\0é", max_size=8))
def test_no_path_that_is_inside_leads_out(tmp_path_factory, path):
    """Joined with a folder, it stays below that folder."""
    import os

    if is_inside(path):
        assert os.path.normpath(f"/folder/{path}") == f"/folder/{path}"
