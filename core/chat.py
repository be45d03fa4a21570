"""The renderer: messages → token ids and a label mask, one object for training, evaluation and serving.

How a mask is made, for any template: private-use characters (sentinels) are put around each trained field,

    messages   system(S)  user(U)  assistant(⟦A⟧)
    rendering  <|im_start|>user\\nU<|im_end|>\\n<|im_start|>assistant\\n⟦A⟧<|im_end|>\\n
    trained                                                           ^^^^^^^^^^^

they are found in the rendering and removed, and what is left must be the rendering without them. A trained turn runs from
where the generation prompt ends to its end-of-turn token, which is trained; the newline after that is not.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from modelwright.core.api.errors import RowError, UsageError
from modelwright.core.api.records import Example, Message, digest_json
from modelwright.core.templates import (
    ChatTemplate,
    TemplateRefusedError,
    parse_array,
    read_template,
    template_message,
)
from modelwright.core.tokenizer import Control, ControlledTokenizer, Encoded, Range, TokenizerFiles

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RENDERER_VERSION", "Rendered", "Renderer", "Span", "TemplateRefusedError", "read_template"]

# Part of every fingerprint: raised when the same messages begin to give other tokens or another mask.
RENDERER_VERSION = 1

Turns = Literal["all", "last", "split"]
