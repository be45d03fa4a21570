import pytest

# A failing assert of the contract suite shows its values, as in a test file.
pytest.register_assert_rewrite("modelwright.core.testing.registry")
