"""Settings of personal adapters: the task-adapted base, what an adapter is, and how it is fitted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from penchant.adapters.tasks.config import PromptSettings
from penchant.config import Settings


class TaskBaseSettings(Settings):
    """The task-adapted base that every user's adapter goes over."""

    name: str = "minilm"
    """A folder made by `save_pretrained` (of the task stage), a model id of the hub, or `minilm`."""
    revision: str | None = None
    """Revision of a hub model."""
    answers: Literal["label", "text"] = "label"
    """`label`: an encoder or decoder with a label head; `text`: a causal language model that writes the target."""
    labels: tuple[str, ...] | None = None
    """Names of the labels, in order; `null`: those of the base's own head."""
    max_tokens: int = Field(256, ge=8, le=32_768)
    """Tokens of an example; what is over goes from the prompt's start, so that the target and what is next to it stay."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the base's pass; adapters are float32."""


class AdapterSettings(Settings):
    """What one user's adapter is: a PEFT config, the same for all users of a store."""

    kind: Literal["lora", "ia3", "prompt_tuning"] = "lora"
    """LoRA, IA3 or prompt tuning, each as PEFT has it."""
    r: int = Field(8, ge=1)
    """LoRA: the rank."""
    alpha: float = Field(16.0, gt=0)
    """LoRA: its output is multiplied by alpha / r."""
    target_modules: tuple[str, ...] | None = None
    """LoRA, IA3: names of the linear maps to adapt; `null`: PEFT's own choice for the architecture."""
    feedforward_modules: tuple[str, ...] | None = None
    """IA3: those of them whose input is scaled, not the output; `null`: PEFT's own choice."""
    virtual_tokens: int = Field(8, ge=1)
    """Prompt tuning: tokens of the prompt."""
    layers: int | None = Field(None, ge=1)
    """How many of the base's top layers are adapted; what enters them is computed once and kept. `null`: all, and no cache."""

    @model_validator(mode="after")
    def _whole(self) -> AdapterSettings:
        if self.kind == "prompt_tuning" and self.layers is not None:
            raise ValueError("prompt tuning has no layers; set layers to null")
        return self


class FittingSettings(Settings):
    """How adapters are fitted. What a user gets depends on these, the user's id and examples, and on no other user."""

    epochs: int = Field(3, ge=1)
    """Times that a user's examples are gone through."""
    batch_size: int = Field(8, ge=1)
    """Examples of one user in a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's highest rate; it rises over `warm_up` and falls in a line to 0, over the user's own steps."""
    warm_up: float = Field(0.0, ge=0, lt=1)
    """Share of the user's steps in which the rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decay."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of a user's gradient, over all layers; `null`: no limit."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """LoRA: dropout on what the adapters read; drawn by user, step, layer and position, so that other users change nothing."""
    patience: int | None = Field(None, ge=1)
    """Fitting stops after so many epochs without a better loss on the user's held-out examples; `null`: nothing is held out."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """With `patience`: the share of a user's examples that is held out, the latest ones; where that is less than one, none is."""
    seed: int = 0
    """Of the adapters' first values and of the order of examples."""
    users_at_once: int = Field(64, ge=1)
    """Users whose adapters are fitted side by side; when one is done, the next takes its place."""
    rows_at_once: int = Field(128, ge=1)
    """Examples that go through the base together; more of them, by length, one after another."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    cache_gib: float = Field(2.0, ge=0)
    """Budget for what enters the adapted layers; what is beyond it is computed each time. Without `layers` nothing is kept."""


class PersonalSettings(Settings):
    """Everything that a run of personal adapters needs."""

    base: TaskBaseSettings = TaskBaseSettings()
    """The base."""
    adapter: AdapterSettings = AdapterSettings()
    """Each user's adapter."""
    fitting: FittingSettings = FittingSettings()
    """How it is fitted."""
    replace_imported: bool = False
    """Whether users who have an imported adapter are fitted, too; otherwise what they brought stays."""


class TaskStageSettings(Settings):
    """The task adapter: one for everybody, fitted on the other users and merged into the base."""

    adapter: AdapterSettings = AdapterSettings()
    """What it is."""
    fitting: FittingSettings = FittingSettings()
    """How it is fitted."""
    examples: Literal["queries", "all"] = "queries"
    """What of the other users it is fitted on: their queries, as in the paper, or the items of their histories, too."""


class AnswerSettings(Settings):
    """How queries are answered and judged."""

    rows_at_once: int = Field(64, ge=1)
    """Queries in a batch."""
    max_new_tokens: int = Field(48, ge=1)
    """Tokens that are written to a query at most; greedily. With `base.max_tokens` they must fit the base's positions."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """With `--on history`: the share of each history, its latest items, that is asked about instead of the queries."""
    buckets: int = Field(4, ge=2)
    """The activity study's groups of users, by the length of their histories."""
    resamples: int = Field(1000, ge=10)
    """Draws of the bootstrap over users."""
    seed: int = Field(0, ge=0)
    """Fixes the draws, and who is whose wrong user."""


class LampSettings(PersonalSettings):
    """Everything that a run over LaMP's files needs."""

    task: TaskStageSettings = TaskStageSettings()
    """The task stage."""
    prompts: PromptSettings = PromptSettings()
    """What of the past a prompt shows."""
    answers: AnswerSettings = AnswerSettings()
    """Answering and judging."""
