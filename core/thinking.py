"""Thinking and answers, for the stages and the server; the code is in the contract, since formats read data by it."""

from modelwright.core.api.thinking import CLOSE, OPEN, ThinkingSplitter, split_thinking

__all__ = ["CLOSE", "OPEN", "ThinkingSplitter", "split_thinking"]
