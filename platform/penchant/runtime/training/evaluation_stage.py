"""The last stage of a fit: judge the bundle, write metrics.json and the report."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.status import Status

from penchant import __version__
from penchant.artifacts import read_json, write_json
from penchant.backbone.features import FeatureExtractor
from penchant.data import PreferenceDataset
from penchant.data.summary import summarise
from penchant.evaluation.evaluate import EmbeddedUsers, Evaluator, TableEvaluator, UniformEvaluator, dataset_texts
from penchant.evaluation.experts import expert_table
from penchant.evaluation.judgements import write_judgements
from penchant.evaluation.methods import MethodEvaluator
from penchant.evaluation.metrics import (
    Bootstrap,
    accuracy_table,
    calibration_table,
    onboarding_points,
    paired_differences,
    recovered_share,
)
from penchant.evaluation.questions import Answerer, compare_questions
from penchant.evaluation.report import MapPoints, write_report
from penchant.evaluation.users import group_purity, project_users
from penchant.methods.inputs import method_features
from penchant.methods.saved import load_method
from penchant.methods.training import PERSONALISED
from penchant.reward.heads import read_head
from penchant.runtime.training.bundle_stage import frozen_head
from penchant.runtime.training.feature_stage import feature_cache
from penchant.runtime.training.prepared import Prepared, check_judged
from penchant.runtime.training.stages import Stages
from penchant.runtime.training.tracking import track_run
from penchant.scoring.experts import build_model, expert_reader, read_model
from penchant.scoring.tables import ExpertTable, FrozenTable, ScoreTable


def evaluate(stages: Stages, *, bayes_accuracy: float | None = None, answerer: Answerer | None = None) -> dict[str, Any]:
    """Judges the bundle of a run and writes `metrics.json` and `report.html`; returns the metrics.

    Stages that are not done are run first.

    Args:
        bayes_accuracy: The best reachable accuracy, where it is known by construction (the planted world).
        answerer: Whoever answers for unseen users what they were never asked, where that is known (the planted world).

    Raises:
        DataError: There is no test comparison. It is raised before anything is run.
    """
    check_judged(stages.dataset)
    if stages.is_lora:
        return evaluate_lora(stages, bayes_accuracy=bayes_accuracy)
    if stages.settings.replaces_stages:
        return evaluate_method(stages, bayes_accuracy=bayes_accuracy)
    dataset, settings = stages.dataset, stages.settings.evaluation
    graph, reward = stages.fit_graph(), stages.fit_reward()
    feature_RF = Prepared.open(stages.run.stage("prepared")).features()
    model = stages.model()
    oracle = stages.oracle(model, feature_RF.float())
    with stages.console.status("Evaluating") as status:
        evaluator = Evaluator(model, dataset, feature_RF, oracle=oracle, seed=settings.seed)
        for name, table in evaluator.tables.items():
            if isinstance(table, ExpertTable):
                table.on_progress = functools.partial(_say, status, name)
        users = evaluator.users()
        metrics = _judge(stages, evaluator, users)
        onboarding, notes = read_onboarding(stages.run.stage("onboarding") / "onboarding.json")
        metrics["onboarding"] |= onboarding
        metrics["notes"] += notes
        metrics["graph"] |= {key: value for key, value in graph.items() if key != "settings"}
        metrics["graph"]["history"] = stages.history("graph")
        metrics["reward"] = reward["frozen"] | {"history": stages.history("reward")}
        metrics["run"] = {"penchant": __version__, "bundle": model.manifest.name}
        if model.parts.experts is not None:
            metrics["experts"] = {
                **reward["experts"],
                **expert_table(model.texts.experts("personalised"), dataset, users, evaluator),
                "settings": model.parts.experts.settings.model_dump(mode="json"),
                "history": stages.history("experts"),
            }
        if answerer is not None:
            status.update("Evaluating: asking new users")
            questions = compare_questions(evaluator, answerer, resamples=settings.resamples, seed=settings.seed)
            metrics |= {} if questions is None else {"questions": questions}
    return _leave(stages, metrics, users, bayes_accuracy)


def evaluate_method(stages: Stages, *, bayes_accuracy: float | None = None) -> dict[str, Any]:
    """The same for a run of another method than Penchant's, which has no bundle."""
    dataset, settings = stages.dataset, stages.settings
    summary = stages.fit_method()
    folder = stages.run.stage("method")
    with stages.console.status("Evaluating"):
        method, vector_UD = load_method(folder)
        feature_RF = Prepared.open(stages.run.stage("prepared")).features().float()
        extractor = FeatureExtractor(settings.backbone, feature_cache(settings.backbone))
        prompts = (dataset.prompts[number] for number in dataset.prompt_of_response)
        groups = len(dataset.group_names) if (folder / "oracle.safetensors").is_file() else 0
        evaluator = MethodEvaluator(
            method,
            vector_UD,
            dataset,
            method_features(settings.method, feature_RF, prompts, extractor),
            uniform=read_head(folder / "uniform.safetensors", settings.reward.head, user_dim=0),
            oracle=read_head(folder / "oracle.safetensors", settings.reward.head, user_dim=groups) if groups else None,
            attribute=stages.attribute,
            seed=settings.evaluation.seed,
        )
        users = evaluator.users()
        metrics = _judge(stages, evaluator, users)
    metrics |= _about(stages)
    metrics["onboarding"]["kind"] = settings.method.name
    metrics["reward"] = summary | {"history": stages.history("method")}
    return _leave(stages, metrics, users, bayes_accuracy)


def evaluate_lora(stages: Stages, *, bayes_accuracy: float | None = None) -> dict[str, Any]:
    """The same for a run of plain LoRA, beside uniform and the oracle on the frozen base."""
    dataset, settings, run = stages.dataset, stages.settings, stages.run
    summary = stages.fit_lora()
    feature_RF = Prepared.open(run.stage("prepared")).features().float()
    extractor = FeatureExtractor(settings.backbone, feature_cache(settings.backbone), stages.driver_device)
    folder = run.stage("experts") / PERSONALISED
    parts = (extractor.model, settings.backbone, settings.reward.head, settings.experts)
    model = build_model(read_model(folder), *parts, user_dim=0, where=str(folder))
    with stages.console.status("Evaluating") as status:
        lora = ExpertTable(
            model,
            expert_reader(extractor, settings.experts),
            dataset_texts(dataset),
            batch_size=settings.backbone.batch_size,
            on_progress=functools.partial(_say, status, "LoRA"),
        )
        uniform = FrozenTable.from_features(frozen_head(run, settings, "uniform", user_dim=0), feature_RF)
        oracle = stages.frozen_oracle(feature_RF)
        tables: dict[str, ScoreTable] = {"uniform": uniform, PERSONALISED: lora}
        evaluator = UniformEvaluator(dataset, tables, oracle=oracle, seed=settings.evaluation.seed)
        users = evaluator.users()
        metrics = _judge(stages, evaluator, users)
    metrics |= _about(stages)
    metrics["onboarding"]["kind"] = "none"
    metrics["reward"] = summary["frozen"] | {"history": stages.history("reward")}
    metrics["experts"] = summary["experts"] | {"history": stages.history("experts")}
    return _leave(stages, metrics, users, bayes_accuracy)


def _about(stages: Stages) -> dict[str, Any]:
    """What a run of another method says of it and of itself."""
    method = stages.settings.method
    about = " ".join((type(method).__doc__ or "").split())
    return {"method": {"settings": method.model_dump(mode="json"), "about": about}, "run": {"penchant": __version__}}


def read_onboarding(path: Path) -> tuple[dict[str, Any], list[str]]:
    """How new users are onboarded, what was tried and how accurate it was; and what should be noted of it."""
    found = read_json(path)
    # Earlier versions wrote NaN where nothing was held out.
    found["tried"] = {name: value for name, value in found["tried"].items() if math.isfinite(value)}
    words = f"No choice was held out to choose the onboarding by: {found['kind']} was taken untried (onboarding.kind)."
    return found, [] if found["tried"] else [words]


def _judge(stages: Stages, evaluator: TableEvaluator, users: EmbeddedUsers) -> dict[str, Any]:
    """What is measured of every method. Leaves the judgements themselves too."""
    dataset, settings = stages.dataset, stages.settings.evaluation
    judgements = evaluator.judge(users)
    write_judgements(stages.run.path / "judgements.parquet", judgements)
    bootstrap = Bootstrap(judgements, resamples=settings.resamples, seed=settings.seed)
    curve = evaluator.onboarding_curve(settings.onboarding_counts) if (~dataset.seen).any() else {}
    return {
        "accuracy": accuracy_table(bootstrap),
        "differences": paired_differences(bootstrap),
        "recovered": recovered_share(bootstrap),
        "calibration": calibration_table(judgements),
        "onboarding": {"curve": onboarding_points(curve, resamples=settings.resamples, seed=settings.seed)},
        "graph": {"purity": _purity(dataset, users)},
        "data": summarise(dataset).as_dict(),
        "notes": [*_notes(stages, has_oracle="oracle" in evaluator.tables), *evaluator.notes],
    }


def _leave(stages: Stages, metrics: dict[str, Any], users: EmbeddedUsers, bayes_accuracy: float | None) -> dict[str, Any]:
    """Writes the metrics and the report, and hands the metrics to whatever tracks the run."""
    if bayes_accuracy is not None:
        metrics["bayes_accuracy"] = bayes_accuracy
    metrics["run"]["seconds"] = round(time.monotonic() - stages.started, 1)
    write_json(stages.run.path / "metrics.json", metrics)
    write_report(stages.run.path / "report.html", metrics, _map_points(stages.dataset, users))
    with track_run(stages.settings.tracking, stages.run, "evaluation") as tracker:
        tracker.summary(metrics["accuracy"])
    stages.run.add("tensorboard")
    stages.run.share("metrics.json", "report.html", "judgements.parquet")
    return metrics


def _say(status: Status, name: str, done: int, total: int) -> None:
    status.update(f"Evaluating: {name}, {done:,} of {total:,} texts under their routes")


def _purity(dataset: PreferenceDataset, users: EmbeddedUsers) -> dict[str, float]:
    if dataset.group is None or not users.embedding_UD.shape[1]:
        return {}
    known = users.known_U & (dataset.group >= 0)
    seen, unseen = known & dataset.seen, known & ~dataset.seen
    embedding = users.embedding_UD.numpy()
    return {
        cohort: group_purity(embedding, dataset.group, fit_U=seen, of_U=mask)
        for cohort, mask in (("seen", seen), ("unseen", unseen))
        if mask.any()
    }


def _notes(stages: Stages, *, has_oracle: bool) -> list[str]:
    dataset, settings = stages.dataset, stages.settings
    notes = [str(warning) for warning in dataset.warnings]
    if settings.reward.head.kind == "linear" and not settings.experts.num_experts and not settings.replaces_stages:
        notes.append("A linear head knows users by their experts alone, and there are none: the personalised head sees no user.")
    backbone = settings.backbone
    cut = sum(len(prompt) > backbone.prompt_characters for prompt in dataset.prompts)
    if cut:
        kept = "beginning" if backbone.prompt_truncation_side == "right" else "end"
        notes.append(
            f"Of {cut:,} of {len(dataset.prompts):,} prompts the {kept} alone was read (backbone.prompt_characters="
            f"{backbone.prompt_characters}, backbone.prompt_truncation_side={backbone.prompt_truncation_side})."
        )
    if not has_oracle:
        notes.append("The users' true groups are not known: there is no oracle, and the wrong user is a random other one.")
    if not len(dataset.select(split="valid", cohort="seen")):
        notes.append(
            "Seen users have no valid comparisons: training kept its last steps, and of the graph's candidates the first."
        )
    if dataset.comparisons.controversial is None:
        notes.append("The comparisons do not say which pairs are controversial: only all of them are shown.")
    if dataset.seen.all():
        notes.append("There are no unseen users: onboarding was not judged.")
    return notes


def _map_points(dataset: PreferenceDataset, users: EmbeddedUsers) -> MapPoints | None:
    rows = torch.from_numpy(users.known_U).nonzero()[:, 0].numpy()
    if len(rows) < 3 or users.embedding_UD.shape[1] < 2:  # uniform's users have no vectors, those of one kind a line
        return None
    plane = project_users(users.embedding_UD[rows].numpy())
    shown = rows[plane.user]
    group = None if dataset.group is None else dataset.group[shown]
    return MapPoints(
        x=plane.x,
        y=plane.y,
        seen=dataset.seen[shown],
        group=None if group is None else [dataset.group_names[code] if code >= 0 else "?" for code in group],
        total=len(rows),
    )
