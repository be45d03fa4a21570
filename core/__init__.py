"""Modelwright's core: the contract for plugins, and the stages from raw rows to a served model."""
