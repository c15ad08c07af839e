"""Configuration of MoLE, in the shape of PEFT's own configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftConfig

from penchant.errors import ConfigError
from penchant.reward.mole.registration import peft_type


@dataclass
class MoleConfig(PeftConfig):
    """A mixture of LoRA experts, gated by the user embedding.

    At each adapted layer `y = W x + s (B_g A_g x + sum over the top-k experts i of w_i B_i A_i x)`, with `s = alpha / r` and `w`
    from `softmax((MLP(e_u) + noise) / temperature)` (CoPL, eq. 6 and 7).
    """

    r: int = field(default=8, metadata={"help": "Rank of each expert, and of the shared one."})
    alpha: float = field(default=16.0, metadata={"help": "Scale: the experts' output is multiplied by alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on what the experts read."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the modules to adapt, or a regular expression of them, or 'all-linear'."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of modules to leave out."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt; the activations below the lowest can be cached."}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Other modules to train and save."})
    num_experts: int = field(default=8, metadata={"help": "Experts at each adapted layer."})
    top_k: int = field(default=1, metadata={"help": "Experts that a user gets."})
    shared_expert: bool = field(default=True, metadata={"help": "One more expert that every user gets."})
    user_dim: int = field(default=64, metadata={"help": "Width of the user embedding."})
    gate_hidden: int = field(default=64, metadata={"help": "Hidden width of the gate's MLP."})
    gate_noise: float = field(default=0.0, metadata={"help": "Standard deviation of the noise on the gate's logits in training."})
    temperature: float = field(default=1.0, metadata={"help": "Softmax temperature of the gate."})
    gate_weight: Literal["straight_through", "softmax"] = field(
        default="straight_through",
        metadata={"help": "`softmax` is the paper's; `straight_through` starts at full strength and keeps the gradient."},
    )
    gate_scope: Literal["model", "layer"] = field(
        default="model", metadata={"help": "`model`: one gate for all layers; `layer`: one for each (the authors' code)."}
    )
    load_balance_coef: float = field(
        default=0.01, metadata={"help": "Weight that a trainer gives `Routing.balance_loss()`; 0 for none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        for name in ("r", "num_experts", "top_k", "user_dim", "gate_hidden"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}.", where="MoleConfig", fix="Give 1 or more.")
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"top_k is {self.top_k}, of {self.num_experts} experts.", where="MoleConfig", fix="Give at most num_experts."
            )
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}.", where="MoleConfig", fix="Give more than 0.")
        for name, known in (("gate_weight", ("straight_through", "softmax")), ("gate_scope", ("model", "layer"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"There is no {name} {getattr(self, name)!r}.", where="MoleConfig", fix=f"Use {' or '.join(known)}."
                )

    @property
    def routes_are_few(self) -> bool:
        """Whether a route is one of `num_experts`, so that what a text gives under it serves all users who have it."""
        return self.gate_scope == "model" and self.gate_weight == "straight_through" and self.top_k == 1
