"""The bundle: everything that one trained model needs, in one folder::

    manifest.json                what it is, and the sha256 of every other file
    graph/encoder.safetensors    the graph encoder
    graph/users.parquet          ids of the seen users, in row order
    graph/users.safetensors      their embeddings (U, D), L2-normalised
    graph/responses.parquet      ids and text keys of the responses, in row order
    graph/responses.safetensors  their embeddings by layer (L + 1, R, D) and degrees (2, R)
    graph/choosers.safetensors   who chose what: offsets (R + 1,), users and how often (E,)
    reward/personalised.safetensors, reward/uniform.safetensors   the heads
    reward/prototypes.safetensors                                 prototype users (K, D)
    onboarding/questions.parquet                                  texts that new users may be asked to choose between
    onboarding/questions.safetensors                              their features (N, F)
    reward/experts/personalised, reward/experts/uniform           adapters in PEFT's layout, and their heads (scoring/experts.py)

`scoring/forgetting.py` takes seen users out: a file that says anything by user belongs on its list too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch import Tensor

from penchant.artifacts import Manifest, fingerprint, list_files, replace_folder
from penchant.backbone.config import BackboneSettings
from penchant.errors import ArtifactError
from penchant.graph.config import EncoderSettings
from penchant.graph.encoder import GraphEncoder
from penchant.graph.neighbours import NeighbourIndex
from penchant.reward.config import ExpertSettings, HeadSettings
from penchant.reward.heads import RewardHead, make_head
from penchant.scoring.config import OnboardingSettings
from penchant.scoring.experts import ExpertParts, copy_model, read_experts
from penchant.scoring.questions import QuestionPool
from penchant.tensors import read_tensors, write_tensors


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """What a bundle holds, in memory."""

    backbone: BackboneSettings
    encoder: GraphEncoder
    user_ids: np.ndarray
    """(U,): ids of the seen users."""
    user_UD: Tensor
    response_ids: np.ndarray
    """(R,)"""
    response_keys: np.ndarray
    """(R,): `text_key` of each response with its prompt, as hex."""
    response_layers: Tensor
    response_degree: Tensor
    neighbours: NeighbourIndex
    head_settings: HeadSettings
    personalised: RewardHead
    uniform: RewardHead
    prototype_KD: Tensor
    experts: ExpertParts | None = None
    """None for a bundle of the frozen phase alone."""
    questions: QuestionPool | None = None
    """What new users may be asked; None where the settings leave it out."""
    onboarding: OnboardingSettings
    """`kind` is never `auto` here, and `temperatures` holds the one chosen."""


def write_bundle(folder: Path, parts: BundleParts, *, dataset: str, counts: Mapping[str, int]) -> Manifest:
    """Writes a bundle atomically, in place of the one that may be there.

    Raises:
        OutputError: The disk is full or the folder may not be written.
    """
    with replace_folder(folder) as draft:
        graph, reward = draft / "graph", draft / "reward"
        graph.mkdir()
        reward.mkdir()
        write_tensors(graph / "encoder.safetensors", _without_rows(parts.encoder))
        pq.write_table(pa.table({"user_id": pa.array(parts.user_ids.tolist(), pa.string())}), graph / "users.parquet")
        write_tensors(graph / "users.safetensors", {"embedding": parts.user_UD})
        responses = {
            "response_id": pa.array(parts.response_ids.tolist(), pa.string()),
            "text_key": pa.array(parts.response_keys.tolist(), pa.string()),
        }
        pq.write_table(pa.table(responses), graph / "responses.parquet")
        write_tensors(graph / "responses.safetensors", {"layers": parts.response_layers, "degree": parts.response_degree})
        write_tensors(
            graph / "choosers.safetensors",
            {
                "offset": torch.from_numpy(parts.neighbours.offset),
                "user": torch.from_numpy(parts.neighbours.chooser),
                "times": torch.from_numpy(parts.neighbours.times),
            },
        )
        write_tensors(reward / "personalised.safetensors", parts.personalised.state_dict())
        write_tensors(reward / "uniform.safetensors", parts.uniform.state_dict())
        write_tensors(reward / "prototypes.safetensors", {"embedding": parts.prototype_KD})
        if parts.experts is not None:
            for name, saved in parts.experts.models.items():
                copy_model(saved, reward / "experts" / name)
        if parts.questions is not None:
            _write_questions(draft / "onboarding", parts.questions)
        files = list_files(draft)
        settings: dict[str, Any] = {
            "backbone": parts.backbone.model_dump(mode="json"),
            "graph": parts.encoder.settings.model_dump(mode="json"),
            "reward": parts.head_settings.model_dump(mode="json"),
            "experts": {} if parts.experts is None else parts.experts.settings.model_dump(mode="json"),
            "onboarding": parts.onboarding.model_dump(mode="json"),
        }
        # The same weights under other settings are another model: users onboarded by one kind are nobody under another.
        name = fingerprint([files, settings])[:12]
        manifest = Manifest(name=name, dataset=dataset, counts=dict(counts), files=files, **settings)
        manifest.write(draft)
    return manifest


def read_bundle(folder: str | Path) -> tuple[Manifest, BundleParts]:
    """Reads a bundle; embedding tables are memory-mapped.

    Raises:
        ArtifactError: Not a bundle, of a newer format, or damaged.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    try:
        backbone = BackboneSettings.model_validate(manifest.backbone)
        encoder_settings = EncoderSettings.model_validate(manifest.graph)
        head_settings = HeadSettings.model_validate(manifest.reward)
        onboarding = OnboardingSettings.model_validate(manifest.onboarding)
        expert_settings = ExpertSettings.model_validate(manifest.experts) if manifest.experts else None
    except ValidationError as error:
        raise ArtifactError(
            f"The manifest's settings are not valid ({error.error_count()} problems).",
            where=str(folder / "manifest.json"),
            fix="Make the bundle again.",
        ) from None
    graph, reward = folder / "graph", folder / "reward"
    user_UD = read_tensors(graph / "users.safetensors")["embedding"]
    responses = read_tensors(graph / "responses.safetensors")
    choosers = read_tensors(graph / "choosers.safetensors")
    weights = {name: read_tensors(reward / f"{name}.safetensors") for name in ("personalised", "uniform", "prototypes")}
    encoder = _read_encoder(graph / "encoder.safetensors", encoder_settings, user_UD, responses["layers"])
    ids = _read_columns(graph / "responses.parquet", ("response_id", "text_key"))
    (user_ids,) = _read_columns(graph / "users.parquet", ("user_id",))
    if len(user_ids) != len(user_UD):
        raise ArtifactError(
            f"It holds {len(user_UD)} embeddings for {len(user_ids)} users.", where=str(graph), fix="Make it again."
        )
    return manifest, BundleParts(
        backbone=backbone,
        encoder=encoder,
        user_ids=user_ids,
        user_UD=user_UD,
        response_ids=ids[0],
        response_keys=ids[1],
        response_layers=responses["layers"],
        response_degree=responses["degree"],
        neighbours=NeighbourIndex(
            user_UD.numpy(),
            responses["layers"][-1].numpy(),
            choosers["offset"].numpy(),
            choosers["user"].numpy(),
            choosers.get("times", torch.ones_like(choosers["user"])).numpy(),  # which the first bundles did not say
        ),
        head_settings=head_settings,
        personalised=_read_head(weights["personalised"], head_settings, user_UD.shape[1], reward),
        uniform=_read_head(weights["uniform"], head_settings, 0, reward),
        prototype_KD=weights["prototypes"]["embedding"],
        experts=None if expert_settings is None else read_experts(reward / "experts", expert_settings),
        questions=_read_questions(folder / "onboarding"),
        onboarding=onboarding,
    )


def _write_questions(folder: Path, pool: QuestionPool) -> None:
    folder.mkdir()
    columns = {name: pa.array([text[at] for text in pool.texts], pa.string()) for at, name in enumerate(("prompt", "response"))}
    pq.write_table(pa.table(columns), folder / "questions.parquet")
    write_tensors(folder / "questions.safetensors", {"feature": pool.feature_NF.half()})


def _read_questions(folder: Path) -> QuestionPool | None:
    if not folder.is_dir():
        return None
    prompts, responses = _read_columns(folder / "questions.parquet", ("prompt", "response"))
    feature_NF = read_tensors(folder / "questions.safetensors")["feature"].float()
    return QuestionPool(list(zip(prompts.tolist(), responses.tolist(), strict=True)), feature_NF)


def _without_rows(encoder: GraphEncoder) -> dict[str, Tensor]:
    """The encoder without its free rows: the tables of embeddings stand for them."""
    return {name: value for name, value in encoder.state_dict().items() if not name.endswith("_rows")}


def _read_encoder(path: Path, settings: EncoderSettings, user_UD: Tensor, layers: Tensor) -> GraphEncoder:
    tensors = read_tensors(path)
    feature_dim = tensors["project.weight"].shape[1] if "project.weight" in tensors else 0
    encoder = GraphEncoder(settings, num_users=0, num_responses=0, feature_dim=feature_dim)
    missing, unexpected = encoder.load_state_dict(tensors, strict=False)
    if unexpected or any(not name.endswith("_rows") for name in missing):
        raise ArtifactError("It does not fit its settings.", where=str(path), fix="Make the bundle again.")
    return encoder.eval()


def _read_head(tensors: dict[str, Tensor], settings: HeadSettings, user_dim: int, where: Path) -> RewardHead:
    head = make_head(settings, feature_dim=len(tensors["standardise.mean"]), user_dim=user_dim)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(f"A head does not fit its settings ({error}).", where=str(where), fix="Make it again.") from None
    return head.eval()


def _read_columns(path: Path, names: tuple[str, ...]) -> list[Any]:
    try:
        table = pq.read_table(path, columns=list(names))
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"It is damaged ({error}).", where=str(path), fix="Make the bundle again.") from None
    return [np.array(table[name].to_pylist(), dtype=object) for name in names]
