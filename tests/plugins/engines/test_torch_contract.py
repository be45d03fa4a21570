"""The built-in engine keeps the contract of all engines."""

from __future__ import annotations

import pytest

from modelwright.core.testing.engine import EngineContract
from modelwright.plugins.engines import modelwright_engines


class TestTorchEngine(EngineContract):
    """Engine `torch` on a tiny random Llama."""

    @pytest.fixture
    def spec(self):
        return next(iter(modelwright_engines()))

    @pytest.fixture
    def engine(self, start, llama):
        return start(llama)

    @pytest.fixture
    def prompt(self):
        return (70, 81, 92, 103, 60)

    @pytest.fixture
    def decode(self, llama):
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(llama / "tokenizer.json")).decode
