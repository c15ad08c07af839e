"""Settings of onboarding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from penchant.config import Settings
from penchant.graph.neighbours import PAPER_TEMPERATURE


class OnboardingSettings(Settings):
    """How a user who was not in training is embedded, without optimisation."""

    kind: Literal["auto", "forward", "neighbours", "prototypes"] = "auto"
    """`auto`: the one that ranks most left-out choices of unseen users right. `forward`: the graph encoder over the
    user's own edges. `neighbours`: the paper's. `prototypes`: weighed by the reward model's margins; any text will do.
    Under a linear head, which sees no user, `auto` is `forward` where the encoder can, else `neighbours`."""
    prototypes: int = Field(32, ge=1)
    """Prototype users: k-means centres of the seen users' embeddings."""
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.01, 0.02, 0.05, 0.1, 0.2, 0.5), min_length=1)
    """Softmax temperatures of `prototypes` to choose from."""
    neighbour_temperature: float = Field(PAPER_TEMPERATURE, gt=0)
    """Softmax temperature of `neighbours` (CoPL, section 4.1)."""
    question_prompts: int = Field(64, ge=0)
    """Training prompts whose texts go into the bundle, so that a service can ask new users to choose between them; 0 for none."""
    question_responses: int = Field(8, ge=2)
    """Responses of each of these prompts, at most."""
