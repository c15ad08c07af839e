"""Settings of a whole fit: each component's own, composed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from penchant.backbone.config import BackboneSettings
from penchant.config import Settings, read_yaml
from penchant.graph.config import GraphSettings
from penchant.methods.registry import CoPLSettings, MethodOption, PenchantSettings
from penchant.reward.config import ExpertSettings, RewardSettings
from penchant.scoring.config import OnboardingSettings

_COPL = Path(__file__).with_name("copl.yaml")


class WorkerSettings(Settings):
    """Who does the work. Left alone, every GPU, or all cores of the machine."""

    num_workers: int | None = Field(None, ge=1)
    """Training workers; by default one for each GPU, or one with all cores where there is no GPU."""
    min_workers: int | None = Field(None, ge=1)
    """Where a node is lost and does not come back, the stage goes on with as few as this; by default it waits for another node.
    With fewer workers the graph stage computes the same; the reward stage's dropout is drawn anew."""
    threads: int | None = Field(None, ge=1)
    """Threads of each worker; by default the cores shared among the workers."""
    use_gpu: bool | None = None
    """By default, whether the cluster has a GPU."""
    max_failures: int = Field(2, ge=0)
    """Times that a stage is taken up again from its last checkpoint after a worker died."""
    checkpoint_seconds: float = Field(20.0, gt=0)
    """Time between checkpoints: what a failure or an interruption costs at most."""
    hang_seconds: float = Field(300.0, gt=0)
    """A worker that gives no sign of life, or keeps the others waiting in an exchange, for so long is taken for dead."""
    wait_seconds: float = Field(0.0, ge=0)
    """How long to wait for an autoscaled cluster to bring the workers that `num_workers` asks for."""

    @model_validator(mode="after")
    def _check(self) -> WorkerSettings:
        if self.min_workers and self.num_workers and self.min_workers > self.num_workers:
            raise ValueError("min_workers is more than num_workers")
        return self


class EvaluationSettings(Settings):
    """The evaluation."""

    resamples: int = Field(1000, ge=10)
    """Draws of the two-way cluster bootstrap (users x prompts)."""
    onboarding_counts: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    """Numbers of an unseen user's comparisons that the onboarding curve shows."""
    seed: int = Field(0, ge=0)
    """Fixes the resamples, the wrong users and the order of an unseen user's comparisons."""


class TrackingSettings(Settings):
    """Where learning curves and results go besides the run's own files. Secrets belong in the environment."""

    tensorboard: bool = False
    """Write files for TensorBoard to tensorboard/ in the run's folder."""
    mlflow: str | None = None
    """URI of an MLflow tracking server (http://host:5000) or database (sqlite:///mlflow.db)."""
    wandb: str | None = None
    """Project of Weights & Biases; WANDB_API_KEY and WANDB_MODE are read from the environment."""


class FitSettings(Settings):
    """Everything that `penchant fit` can be told: in a YAML file, or as key=value."""

    preset_key: ClassVar[str | None] = "method"

    method: MethodOption = PenchantSettings()
    """`penchant`, or another to compare it with, by name or with its own settings: `copl`, `uniform`, `lora`, `i2e`, `proxy`,
    `vpl`, `pal-a`, `pal-b`, `lore`, `mixture`, `oracle`. `copl` is the same stages, with the authors' settings beneath what else
    is given (a file's `graph.candidates` take the place of theirs); `lora` trains as the experts do (`experts`), without users;
    the others take backbone, reward and evaluation as they are, on the frozen base and one worker."""
    backbone: BackboneSettings = BackboneSettings()
    """The frozen base model and its features."""
    graph: GraphSettings = GraphSettings()
    """The graph stage."""
    reward: RewardSettings = RewardSettings()
    """The frozen reward phase."""
    experts: ExpertSettings = ExpertSettings()
    """The experts' phase."""
    onboarding: OnboardingSettings = OnboardingSettings()
    """Embedding users who were not in training."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """The evaluation and its intervals."""
    workers: WorkerSettings = WorkerSettings()
    """Workers and checkpoints. The graph is the same with any number of workers; the other stages draw their dropout anew."""
    tracking: TrackingSettings = TrackingSettings()
    """Where else learning curves go."""

    @property
    def replaces_stages(self) -> bool:
        """Whether the method is one by itself: no graph, no experts, no bundle."""
        return not isinstance(self.method, PenchantSettings | CoPLSettings)

    @classmethod
    def preset(cls, chosen: Any) -> dict[str, Any]:
        """See `Settings.preset`: the authors' settings for `copl`."""
        name = chosen.get("name") if isinstance(chosen, dict) else getattr(chosen, "name", chosen)
        return read_yaml(_COPL) if name == CoPLSettings().name else {}

    @model_serializer(mode="wrap")
    def _write_whole(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Over a preset even what is a default, and would be left out, is written: else the preset would be read back."""
        values: dict[str, Any] = write(self)
        for group in self.preset(self.method):
            if isinstance(values.get(group), dict):
                own = getattr(self, group)
                values[group] |= {name: getattr(own, name) for name in type(own).model_fields if name not in values[group]}
        return values

    @model_validator(mode="after")
    def _check(self) -> FitSettings:
        others = [name for name, candidate in self.graph.candidates.items() if not candidate.encoder.inductive]
        if self.onboarding.kind == "forward" and others and not self.replaces_stages:
            raise ValueError(
                f"onboarding.kind: forward needs encoders with user_init: shared and response_init: text or id+text, and"
                f" candidate {others[0]!r} is none"
            )
        return self
