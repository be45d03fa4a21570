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


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no model can have that name"),
        ("@", "'' is no alias's name"),
        ("@3", "an alias may not be all digits"),
        ("Math", "no model can have that name"),
        ("Math@1", "'Math' is no model's name"),
        ("math@", "'' is no version"),
        ("math@0", "'0' is no version"),
        ("math@03", "'03' is no version"),
        ("math@٣", "'٣' is no version"),
        ("math@1@2", "'1@2' is no version"),
        ("math@production", "for the alias, write '@production'"),
        ("math@" + "9" * 5000, "is no version"),
    ],
)
def test_the_error_says_why_and_the_expected_forms(text, why):
    """A person sees what was wrong and how an address looks."""
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert why in str(caught.value)
    assert "expected NAME (its newest version), NAME@VERSION such as math@3, or @ALIAS" in str(caught.value)


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


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "maths",
            "there is no model 'maths', did you mean 'math'? (models: general, math; aliases: @production)",
        ),
        (
            "production",
            "there is no model 'production', did you mean '@production'? (models: general, math; aliases: @production)",
        ),
        (
            "@prodction",
            "there is no alias '@prodction', did you mean '@production'? (aliases: @production; models: general, math)",
        ),
        ("@math", "there is no alias '@math', did you mean 'math'? (aliases: @production; models: general, math)"),
        ("math@9", "there is no version 9 of 'math' (versions: 1-3, 5)"),
        ("zzz@1", "there is no model 'zzz' (models: general, math; aliases: @production)"),
    ],
)
def test_what_is_not_found_comes_with_what_there_is(filled, address, message):
    """One line from which the right address can be read."""
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(filled, address)
    assert str(caught.value) == message


def test_a_deleted_version_is_told_from_one_that_never_was(filled):
    """With the day of its deletion."""
    with pytest.raises(ModelNotFoundError, match=r"there is no version 4 of 'math': it was deleted on \d{4}-\d\d-\d\d"):
        resolve(filled, "math@4")


def test_an_empty_registry_says_so(registry):
    """The likeliest reason is the wrong registry, not a misspelt name."""
    with pytest.raises(ModelNotFoundError, match="the registry is empty"):
        resolve(registry, "math")
