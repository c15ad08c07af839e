"""The end of a fit: what the stages left becomes a bundle, which needs none of the run's other files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from penchant.artifacts import Manifest, write_json
from penchant.data import PreferenceDataset
from penchant.evaluation.evaluate import dataset_texts, response_keys
from penchant.graph.config import CandidateSettings
from penchant.graph.encoder import GraphEncoder
from penchant.graph.neighbours import NeighbourIndex
from penchant.reward.heads import RewardHead, read_head
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.run_folder import RunFolder
from penchant.scoring.bundle import BundleParts, write_bundle
from penchant.scoring.config import OnboardingSettings
from penchant.scoring.experts import read_experts
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.onboarding import Comparisons, fit_prototypes, rank_within
from penchant.scoring.questions import QuestionPool
from penchant.scoring.selection import choose_onboarding, cross_fitted
from penchant.tensors import read_tensors


def assemble(dataset: PreferenceDataset, settings: FitSettings, run: RunFolder, graph: dict[str, Any]) -> Manifest:
    """Fits prototypes, chooses how users are onboarded, and writes `bundle/` and `onboarding/onboarding.json`.

    Args:
        graph: Summary of the graph stage.
    """
    folder = run.stage("graph")
    features = Prepared.open(run.stage("prepared")).features().float()
    user_UD = read_tensors(folder / "users.safetensors")["embedding"]
    responses = read_tensors(folder / "responses.safetensors")
    encoder_settings = CandidateSettings.model_validate(graph["settings"]).encoder
    encoder = GraphEncoder(
        encoder_settings,
        num_users=0,
        num_responses=len(dataset.response_ids),
        feature_dim=features.shape[1] if encoder_settings.uses_text else 0,
    )
    encoder.load_state_dict(read_tensors(folder / "encoder.safetensors"), strict=False)
    train = dataset.select(split="train", cohort="seen")
    seen_row = np.cumsum(dataset.seen) - 1
    parts = BundleParts(
        backbone=settings.backbone,
        encoder=encoder.eval(),
        user_ids=dataset.user_ids[dataset.seen],
        user_UD=user_UD,
        response_ids=dataset.response_ids,
        response_keys=np.array(response_keys(dataset), dtype=object),
        response_layers=responses["layers"],
        response_degree=responses["degree"],
        neighbours=NeighbourIndex.build(seen_row[train.user], train.chosen, user_UD.numpy(), responses["layers"][-1].numpy()),
        head_settings=settings.reward.head,
        personalised=frozen_head(run, settings, "personalised", user_dim=user_UD.shape[1]),
        uniform=frozen_head(run, settings, "uniform", user_dim=0),
        experts=read_experts(run.stage("experts"), settings.experts) if settings.experts.num_experts else None,
        prototype_KD=torch.from_numpy(fit_prototypes(user_UD.numpy(), settings.onboarding.prototypes)),
        questions=_questions(dataset, settings.onboarding, features),
        onboarding=settings.onboarding,
    )
    chosen, tried = _choose_onboarding(dataset, settings.onboarding, parts, features)
    counts = {
        "users": int(dataset.seen.sum()),
        "responses": len(dataset.response_ids),
        "comparisons": len(train),
    }
    final = BundleParts(**(vars(parts) | {"onboarding": chosen}))
    run.stage("onboarding").mkdir(exist_ok=True)
    write_json(run.stage("onboarding") / "onboarding.json", {"kind": chosen.kind, "tried": tried})
    return write_bundle(run.stage("bundle"), final, dataset=dataset.fingerprint, counts=counts)


def _questions(dataset: PreferenceDataset, settings: OnboardingSettings, features: torch.Tensor) -> QuestionPool | None:
    """A few training prompts with some of their responses."""
    random = np.random.default_rng(0)
    train = dataset.select(split="train", cohort="seen")
    rows = np.unique(np.concatenate([train.chosen, train.rejected]))
    rows = rows[random.permutation(len(rows))]
    prompt = dataset.prompt_of_response[rows]
    asked = random.permutation(np.unique(prompt))[: settings.question_prompts]
    kept = rows[np.isin(prompt, asked) & (rank_within(prompt) < settings.question_responses)]
    if not len(kept):
        return None
    texts = dataset_texts(dataset)
    return QuestionPool([texts[row] for row in kept], features[torch.from_numpy(kept)])


def _choose_onboarding(
    dataset: PreferenceDataset, settings: OnboardingSettings, parts: BundleParts, features: torch.Tensor
) -> tuple[OnboardingSettings, dict[str, float]]:
    """By unseen users' own choices, each held out in turn; where none has two of them, by seen users' valid choices."""
    if settings.kind == "auto" and parts.head_settings.kind == "linear":
        # It sees no user: under it all kinds rank alike, and prototypes would place everybody at one point.
        settings = settings.model_copy(update={"kind": "forward" if parts.encoder.settings.inductive else "neighbours"})
    unseen = dataset.select(split=("train", "valid"), cohort="unseen")
    if len(unseen) and np.bincount(unseen.user).max() > 1:
        users, user = np.unique(unseen.user, return_inverse=True)
        rounds = cross_fitted(Comparisons(user, unseen.chosen, unseen.rejected), folds=4)
    else:
        parts_of_seen = [dataset.select(split=split, cohort="seen") for split in ("train", "valid")]
        users = np.unique(np.concatenate([part.user for part in parts_of_seen]))
        embedded, held_out = (
            Comparisons(np.searchsorted(users, part.user), part.chosen, part.rejected) for part in parts_of_seen
        )
        rounds = [(embedded, held_out)]
        # The graph holds these users' own choices, which flatters the other kinds; prototypes hold no one's.
        if settings.kind == "auto":
            settings = settings.model_copy(update={"kind": "prototypes"})
    model = PersonalisedRewardModel(Manifest(name="", dataset="", backbone={}, graph={}, reward={}, counts={}, files={}), parts)
    return choose_onboarding(model, settings, features, rounds, num_users=len(users))


def frozen_head(run: RunFolder, settings: FitSettings, name: str, *, user_dim: int) -> RewardHead:
    """A head that the frozen phase has left."""
    return read_head(run.stage("reward") / f"{name}.safetensors", settings.reward.head, user_dim=user_dim)
