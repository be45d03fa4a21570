"""What a model folder in Hugging Face layout says of itself."""

from __future__ import annotations

from pathlib import Path

from modelwright.core.api.files import read_json

# What families of models call their context in config.json.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


def context_length(folder: Path) -> int | None:
    """The most tokens of prompt and answer together; None where `config.json` names no limit."""
    config = read_json(folder / "config.json")
    tables = [config, config.get("text_config")] if isinstance(config, dict) else []
    for table in tables:
        for key in CONTEXT_KEYS:
            value = table.get(key) if isinstance(table, dict) else None
            if isinstance(value, int) and value > 0:
                return value
    return None
