import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.errors import ModelNotFoundError, UsageError
from modelwright.core.api.registry import ALIAS_NAME, MODEL_NAME
from modelwright.core.plugins import discover
from modelwright.core.registry import Address, open_registry, parse_address, resolve
from modelwright.core.testing.registry import new_model, write_model

names = st.from_regex(MODEL_NAME, fullmatch=True)
aliases = st.from_regex(ALIAS_NAME, fullmatch=True)
versions = st.integers(1, 10**18 - 1)
addresses = st.one_of(
    st.builds(Address, name=names), st.builds(Address, name=names, version=versions), st.builds(Address, alias=aliases)
)


@given(addresses)
def test_an_address_is_read_as_it_is_written(address):
    """The text of an address means that address."""
    assert parse_address(str(address)) == address


@given(st.one_of(st.text(max_size=20), st.text(alphabet="ab@0123.-_ \nA", max_size=8)))
def test_any_text_is_an_address_that_writes_itself_or_is_refused_in_one_line(text):
    """No text is read as something that it does not say."""
    try:
        address = parse_address(text)
    except UsageError as error:
        refusal = str(error)
    else:
        assert str(address) == text
        assert (address.alias is None) != (address.name is None)
        return
    assert "NAME@VERSION" in refusal
    assert "\n" not in refusal


NINES = "9" * 5000


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "@3", "Math", "Math@1", "math@", "math@0", "math@03", "math@٣", "math@1@2", "math@production"),
        f"math@{NINES}",
    ],
    ids=lambda text: text.replace(NINES, "nines") or "nothing",
)
def test_the_error_says_why_and_the_expected_forms(text, wording):
    """A person sees what was wrong and how an address looks."""
    with pytest.raises(UsageError, match="NAME@VERSION") as caught:
        parse_address(text)
    wording(caught.value, nines=NINES)


@pytest.fixture
def registry(tmp_path):
    return open_registry(f"sqlite:///{tmp_path}/registry.db", discover())


@pytest.fixture
def filled(registry, tmp_path):
    """math@1 to 3 and 5, general@1; @production → math@2."""
    folder = write_model(tmp_path / "trained")
    for fingerprint in "abcde":
        registry.add(new_model("math", fingerprint), folder)
    registry.delete("math", 4)
    registry.add(new_model("general"), folder)
    registry.set_alias("production", "math", 2)
    return registry


@pytest.mark.parametrize(
    ("address", "found"),
    [("math", "math@5"), ("math@3", "math@3"), ("@production", "math@2"), ("general", "general@1")],
)
def test_an_address_resolves(filled, address, found):
    """A name is its newest version, a number that version, an alias where it points."""
    assert resolve(filled, address).address == found
    assert resolve(filled, parse_address(address)).address == found


@pytest.mark.parametrize("address", ["maths", "production", "@prodction", "@math", "math@9", "zzz@1"])
def test_what_is_not_found_comes_with_what_there_is(filled, address, wording):
    """One line from which the right address can be read."""
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(filled, address)
    wording(caught.value)


def test_a_deleted_version_differs_from_one_that_never_was(filled):
    """With the day of its deletion."""
    with pytest.raises(ModelNotFoundError, match=r"version 4 .* deleted on \d{4}-\d\d-\d\d"):
        resolve(filled, "math@4")


def test_an_empty_registry_says_so(registry):
    """The likeliest reason is the wrong registry, not a misspelt name."""
    with pytest.raises(ModelNotFoundError, match="the registry is empty"):
        resolve(registry, "math")
