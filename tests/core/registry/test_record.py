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
    with pytest.raises(RegistryError, match="newer Modelwright"):
        read({**record, "record": 2})


@pytest.mark.parametrize(
    "place",
    [
        ("name", "Math"),
        ("name", "m" * 129),
        ("name", 3),
        ("version", 0),
        ("created", "yesterday"),
        ("created", "2026-11-24T00:00:00"),
        ("parent", 7),
        ("config", []),
        ("data", "x", 3),
        ("tags", "a=b", "c"),
        ("tags", "a", "\0"),
        ("files", []),
        ("files", 0, "path", "../config.json"),
        ("files", 0, "path", "/etc/passwd"),
        ("files", 0, "path", "a/./b"),
        ("files", 0, "path", "a\0"),
        ("files", 0, "path", "model.safetensors"),
        ("files", 0, "path", "templates"),
        ("files", 0, "sha256", "AB" * 32),
        ("files", 0, "size", -1),
        ("files", 0, "size", 1.5),
        ("files", 0, "sha256", "ab" * 32),
        ("metrics", "gsm8k", 1),
        ("metrics", "gsm8k", "accuracy", "value", "1"),
        ("metrics", "gsm8k", "accuracy", "low", float("nan")),
        ("metrics", "gsm8k", "accuracy", "n", 1 << 63),
        ("metrics", "gsm8k", "accuracy", {"value": 1}),
    ],
    ids=lambda place: ".".join(map(ascii, place))[:60],
)
def test_what_is_not_to_be_trusted_is_one_line(version, place, wording):
    """With the file, the place and what is expected there; the last part of `place` is put at the rest."""
    *keys, last, value = place
    record = table = copy.deepcopy(to_record(version))
    for key in keys:
        table = table[key]
    table[last] = value
    with pytest.raises(RegistryError, match="here") as caught:
        read(record)
    assert "\n" not in str(caught.value)
    wording(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 100_000, b'{"record": 1}', b"1" * 5000]
)
def test_any_other_bytes_are_one_line(content):
    """A picture, half a download, a page of a web server."""
    with pytest.raises(RegistryError, match=r"^here"):
        read_record(content, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_record_with_anything_anywhere_is_read_or_refused(version, data):
    """Nothing else happens, with any value in any place."""
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
