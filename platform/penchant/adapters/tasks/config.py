"""Settings of what a prompt shows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from penchant.config import Settings


class PromptSettings(Settings):
    """What of a user's past stands in a prompt. The default is the bare question: OPPU without retrieval or profile."""

    retrieved: int = Field(0, ge=0)
    """Past items shown with each prompt (k); 0 for none."""
    retriever: Literal["bm25", "dense"] = "bm25"
    """How they are found: by shared words, or by a sentence encoder."""
    profile: Literal["none", "template", "written"] = "none"
    """A textual profile of the user: none, filled into a template from counts, or written by the base model."""
    history_fields: tuple[str, ...] | None = Field(None, min_length=1)
    """Fields of a past item that are shown, in order, such as `("text", "score")`; by default all that the task uses."""
    history_words: int = Field(368, ge=1)
    """Words of each field of a past item that are shown."""
    subject_words: int = Field(768, ge=1)
    """Words of each field of what is asked about."""

    @property
    def name(self) -> str:
        """What tells this variant from the others, short enough for a folder or a table."""
        parts = [f"{self.retriever}-{self.retrieved}"] if self.retrieved else []
        parts += [self.profile] if self.profile != "none" else []
        parts += ["+".join(self.history_fields)] if parts and self.history_fields else []
        return "-".join(parts) or "plain"
