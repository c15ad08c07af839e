"""Settings of the reward head, of the experts, and of their training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from penchant.config import Settings


class HeadSettings(Settings):
    """What turns features and a user embedding into a score."""

    kind: Literal["two_term", "linear"] = "two_term"
    """`two_term`: a shared term plus the user's own. `linear`: the paper's, which sees no user: the experts alone do."""
    hidden: int = Field(64, ge=1)
    """Width of the hidden layer that both terms read."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on the hidden layer."""


class RewardSettings(Settings):
    """The frozen reward phase."""

    head: HeadSettings = HeadSettings()
    """The head."""
    steps: int = Field(1500, ge=1)
    """Updates."""
    batch_size: int = Field(256, ge=1)
    """Comparisons in a step, over all workers."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's learning rate."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's decay."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between looks at the validation comparisons; the best look is kept."""
    seed: int = Field(0, ge=0)
    """Fixes the initial weights and the order of the comparisons."""


class ExpertSettings(Settings):
    """The experts' phase: a mixture of LoRA experts in the base, trained on from the frozen phase's head."""

    num_experts: int = Field(1, ge=0, le=1024)
    """Experts at each adapted layer, beside the shared one; 0 leaves this phase out. One, which all users get, measures best
    under a head with a term of the user's own (docs/decisions/0008); the paper has 8."""
    r: int = Field(8, ge=1)
    """Rank of each expert, and of the shared one."""
    alpha: float = Field(16.0, gt=0)
    """The experts' output is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on what the experts read."""
    base_dropout: bool = True
    """Whether the base's own dropout works in training; without it adapters fit the training prompts sooner than the taste."""
    layers: int | None = Field(2, ge=1)
    """How many of the base's top layers carry experts; what enters them is cached. `null`: all layers, and no cache."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear maps that carry experts."""
    top_k: int = Field(1, ge=1)
    """Experts that a user gets."""
    shared_expert: bool = True
    """One more expert that every user gets."""
    gate_hidden: int = Field(64, ge=1)
    """Hidden width of the gate's MLP."""
    gate_noise: float = Field(0.1, ge=0)
    """Standard deviation of the noise on the gate's logits in training, drawn once for a user and step."""
    temperature: float = Field(1.0, gt=0)
    """Softmax temperature of the gate."""
    gate_weight: Literal["straight_through", "softmax"] = "straight_through"
    """`softmax` is the paper's; `straight_through` starts at full strength and keeps the gradient."""
    gate_scope: Literal["model", "layer"] = "model"
    """One gate for the model, or (the authors' code) one for each adapted layer."""
    gate_init: Literal["clusters", "random"] = "clusters"
    """`clusters`: the gate starts as k-means of the users, so that each expert starts with users of its own."""
    load_balance_coef: float = Field(0.01, ge=0)
    """Weight of the load-balancing loss, over the distinct users of a step; 0 for none."""
    steps: int = Field(120, ge=1)
    """Updates."""
    prompts_per_step: int = Field(4, ge=1)
    """Prompts in a step, over all workers; every comparison of a prompt is in the same step."""
    texts_per_prompt: int = Field(32, ge=2)
    """A prompt with more responses than this is cut into several."""
    routes_per_prompt: int | None = Field(1, ge=1)
    """Routes under which a prompt's responses are read in a step, drawn anew each time; `null`: all of its users'."""
    expert_dropout: float = Field(0.5, ge=0, lt=1)
    """Share of a step's prompts whose responses are read by the shared expert alone, once for all users. Without a shared
    expert, or where a route is a user's own, there is none."""
    learning_rate: float = Field(5e-4, gt=0)
    """AdamW's learning rate for the experts, at its highest."""
    head_learning_rate: float = Field(2e-4, gt=0)
    """The same for the head."""
    lr_scheduler_type: Literal["warmup_stable_decay", "cosine"] = Field(
        "warmup_stable_decay", exclude_if=lambda kind: bool(kind == "warmup_stable_decay")
    )
    """`warmup_stable_decay`: both fall to 0 over the last three tenths of the steps. `cosine`: from the highest on, as half a
    cosine."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1, exclude_if=lambda ratio: bool(ratio == 0.1))
    """Share of the steps over which both rise first."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's decay."""
    gradient_accumulation: int = Field(1, ge=1)
    """Parts that a worker's share of a step is cut into, one after the other: less memory, the same result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the base's pass. `auto`: bfloat16 on a GPU that has it, else float32. Experts are kept in float32."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """`fsdp` shards the frozen base over the workers (FSDP2); experts and heads are small, and stay whole on each."""
    activation_gib: float = Field(8.0, ge=0)
    """Disk for what enters the lowest adapted layer; a text that does not fit is computed each time."""
    evaluate_every: int = Field(20, ge=1)
    """Steps between looks at validation comparisons, of `valid_prompts` prompts."""
    valid_prompts: int = Field(8, ge=0)
    """Prompts whose validation comparisons are looked at."""
    seed: int = Field(0, ge=0)
    """Fixes the experts' initial weights, the order of the prompts, noise and dropout."""

    @property
    def active_rank(self) -> int:
        """Rank of all experts that one user gets: what the plain LoRA of `uniform` has."""
        return self.r * (self.top_k + self.shared_expert)
