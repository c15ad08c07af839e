"""The experts' reward model: a base with experts and a head, from texts and users to scores.

Shapes: N texts, U distinct users, B askings (a text for a user), S sequences to encode, D user embedding, F features.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from penchant.backbone.config import BackboneSettings
from penchant.backbone.pooling import pool
from penchant.backbone.reading import TextBatch, share_weights, trainable_part
from penchant.errors import BackboneError, ConfigError
from penchant.reward.config import ExpertSettings
from penchant.reward.heads import RewardHead
from penchant.reward.mole import MoleConfig, MoleModel
from penchant.reward.mole.routing import Gate, Routing
from penchant.reward.mole.sharing import distinct_sequences

_SEQUENCES_AT_ONCE = 32
"""Sequences that go through the base together."""


class Answer(NamedTuple):
    """What a pass over askings gives."""

    score: Tensor
    """(B,)"""
    balance: Tensor
    """The load-balancing loss, over the distinct users; 0 for a model without experts."""
    sequences: int
    """Texts that were encoded, once for each route."""


class ExpertModel(nn.Module):
    """A base with adapters and a head. Every distinct (text, route) is encoded once.

    Args:
        base: With experts (`add_experts`), or with plain LoRA for the model without users (`add_lora`).
        head: Reads the features as the frozen phase's does, and may start as its.
        backbone: Pooling.
    """

    def __init__(self, base: PeftModel, head: RewardHead, backbone: BackboneSettings) -> None:
        super().__init__()
        self.base, self.head, self.poolings = base, head, backbone.pooling
        config = base.peft_config[base.active_adapter]
        self.mole = config if isinstance(config, MoleConfig) else None
        self.precision: torch.dtype | None = None
        """Of the base's pass; None for its own."""
        self.most_passes: Callable[[int], int] | None = None
        """Of a base that is sharded over workers: from how often this one goes through it to how often the one with most to read
        does, which all have to, since each pass gathers the layers from all."""

    @property
    def routes_are_few(self) -> bool:
        """Whether users who have the same expert have the same route."""
        return self.mole is not None and self.mole.routes_are_few

    def route(self, user_UD: Tensor) -> Routing | None:
        """The users' routes; None for a model without experts."""
        return None if self.mole is None else self._tuner().route(user_UD)

    def gates(self) -> list[Gate]:
        """One gate, or one for each adapted layer."""
        return self._tuner().gates()

    def _tuner(self) -> MoleModel:
        tuner = self.base.base_model
        assert isinstance(tuner, MoleModel)
        return tuner

    def features(self, texts: TextBatch, routing: Routing | None = None) -> Tensor:
        """Features (N, F) of texts, each under its route: the base's, pooled, and those of the surface.

        Texts of like length go through the base together, so that little padding is encoded.
        """
        order = texts.lengths().argsort()
        chunks = order.split(_SEQUENCES_AT_ONCE)
        idle = 0 if self.most_passes is None else self.most_passes(len(chunks)) - len(chunks)
        parts = [
            self._features(texts.take(rows), None if routing is None else routing.take(rows))
            for rows in [*chunks, *[order[:1]] * idle]
        ]
        # Nothing of an idle pass is kept, but the backward pass goes through it, as the others' do.
        parts[len(chunks) :] = [part[:0] for part in parts[len(chunks) :]]
        return torch.cat(parts)[order.argsort()]

    def _features(self, texts: TextBatch, routing: Routing | None) -> Tensor:
        mixed = contextlib.nullcontext() if self.precision is None else torch.autocast(texts.surface.device.type, self.precision)
        arguments: dict[str, Any] = texts.inputs() if routing is None else texts.inputs() | {"routing": routing}
        with mixed:
            hidden = self.base(**arguments).last_hidden_state
        return torch.cat([pool(hidden.float(), texts.tokens["attention_mask"], self.poolings), texts.surface], dim=1)

    def forward(
        self, texts: TextBatch, text_B: Tensor, user_UD: Tensor | None, user_B: Tensor, everyone_B: Tensor | None = None
    ) -> Answer:
        """Scores of askings: text `text_B` for user `user_B`, rows of `texts` and of the distinct users' embeddings.

        A model without users takes None for these, and pays no heed to `user_B`. Where `everyone_B` holds, the routed experts
        are left out (`ExpertSettings.expert_dropout`).
        """
        routing = None if user_UD is None else self.route(user_UD)
        balance = torch.zeros((), device=text_B.device) if routing is None else routing.balance_loss()
        asked = None if routing is None else Routing(routing.routes, user_B)
        sequences = distinct_sequences(text_B, asked, routes_are_few=self.routes_are_few, everyone_B=everyone_B)
        feature_SF = self.features(texts.take(sequences.text), sequences.routing)
        hidden_BH = self.head.hidden(feature_SF)[sequences.asking]
        return Answer(self.head.score(hidden_BH, None if user_UD is None else user_UD[user_B]), balance, len(feature_SF))

    def checkpoint_gradients(self) -> None:
        """Recomputes the base's activations in the backward pass from now on: less memory, more time."""
        self.base.gradient_checkpointing_enable({"use_reentrant": False})

    def trainable(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: adapters, gates and the head."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def mole_config(settings: ExpertSettings, *, user_dim: int) -> MoleConfig:
    """The experts that the settings ask for.

    Raises:
        ConfigError: They don't fit together (more experts asked for a user than there are).
    """
    return MoleConfig(
        r=settings.r,
        alpha=settings.alpha,
        dropout=settings.dropout,
        target_modules=_targets(settings),
        num_experts=settings.num_experts,
        top_k=settings.top_k,
        shared_expert=settings.shared_expert,
        user_dim=user_dim,
        gate_hidden=settings.gate_hidden,
        gate_noise=settings.gate_noise,
        temperature=settings.temperature,
        gate_weight=settings.gate_weight,
        gate_scope=settings.gate_scope,
        load_balance_coef=settings.load_balance_coef,
    )


def check_experts(base: nn.Module, settings: ExpertSettings, *, num_users: int) -> None:
    """Whether a base can carry the experts that the settings ask for; no weight is read, so it may be on the meta device.

    Raises:
        ConfigError: The settings don't fit together, or there are more experts than users.
        BackboneError: The base cannot be cut there, has no such modules, or they cannot carry experts.
    """
    if settings.num_experts > num_users:
        raise ConfigError(
            f"{settings.num_experts} experts are more than the {num_users} seen users.",
            where="experts.num_experts",
            fix="Ask for fewer, or for 0: the frozen phase alone.",
        )
    if settings.gate_init == "clusters" and settings.gate_hidden < settings.num_experts:
        raise ConfigError(
            f"A gate with a hidden layer of {settings.gate_hidden} cannot start as {settings.num_experts} clusters.",
            where="experts.gate_hidden",
            fix="Give at least num_experts, or set experts.gate_init=random.",
        )
    add_experts(trainable_part(base, settings.layers, dropout=True), settings, user_dim=1)


def check_lora(base: nn.Module, settings: ExpertSettings) -> None:
    """Whether a base can carry plain LoRA at the same place; it may be on the meta device too.

    Raises:
        BackboneError: See `check_experts`.
    """
    add_lora(trainable_part(base, settings.layers, dropout=True), settings)


def add_experts(base: nn.Module, settings: ExpertSettings, *, user_dim: int) -> PeftModel:
    """The base with fresh experts, over the same frozen tensors.

    Raises:
        ConfigError: The settings don't fit together.
        BackboneError: The base has no such modules, or they cannot carry experts.
    """
    return _adapted(base, mole_config(settings, user_dim=user_dim))


def add_lora(base: nn.Module, settings: ExpertSettings) -> PeftModel:
    """The base with plain LoRA of the rank that one user's experts have together: the base of `uniform`.

    Raises:
        BackboneError: The base has no such modules, or they cannot carry adapters.
    """
    rank = settings.active_rank
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.alpha / settings.r * rank,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=_targets(settings),
    )
    return _adapted(base, config)


def _targets(settings: ExpertSettings) -> list[str] | str:
    return settings.target_modules if isinstance(settings.target_modules, str) else list(settings.target_modules)


def _adapted(base: nn.Module, config: Any) -> PeftModel:
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers by an old name, which nobody who runs a fit can do anything about.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            return get_peft_model(share_weights(base), config)  # type: ignore[arg-type, return-value]
    except ValueError as error:
        linear = (name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D))
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        raise BackboneError(
            f"The base cannot carry experts there ({str(error).splitlines()[0][:160]}).",
            where="experts.target_modules",
            fix=f"Its linear maps are called {', '.join(kinds) or 'nothing: it has none'}; or use all-linear.",
        ) from None


def start_gates_as_clusters(model: ExpertModel, centre_ED: Tensor) -> None:
    """Starts every gate as k-means: a user's logit for an expert grows with the cosine to its centre.

    From random weights a few experts win every user at once, and the others never learn (docs/decisions/0008). Centres may be
    fewer than experts: the others start with nobody, and no preference against them.
    """
    for gate in model.gates():
        gate.start_as_clusters(centre_ED)
