"""The stages of a fit, each alone or in turn; a stage whose results are there, from the same inputs, is not run again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from penchant import __version__
from penchant.artifacts import METHOD, read_json, replace_folder, write_json
from penchant.backbone.features import FeatureExtractor
from penchant.backbone.loading import outline
from penchant.data import PreferenceDataset
from penchant.errors import ConfigError
from penchant.evaluation.evaluate import dataset_texts
from penchant.methods.baselines import LoRASettings
from penchant.methods.inputs import read_attribute
from penchant.reward.experts import check_experts, check_lora
from penchant.runtime.cluster import start_ray, wait_for_resources
from penchant.runtime.training.bundle_stage import assemble, frozen_head
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.expert_stage import activation_loop, expert_loop, missing_activations
from penchant.runtime.training.feature_stage import feature_cache, feature_loop, missing_texts, take_features
from penchant.runtime.training.graph_stage import graph_loop, keep_best
from penchant.runtime.training.method_stage import method_loop
from penchant.runtime.training.prepared import Prepared, check_judged, check_learnable, prepare
from penchant.runtime.training.progress import ProgressLog, RelayedLog, show_progress
from penchant.runtime.training.reward_stage import ENDS, MODELS, reward_loop
from penchant.runtime.training.run_folder import RunFolder
from penchant.runtime.training.shared import SharedResults
from penchant.runtime.training.tracking import check_tracking, track_run
from penchant.runtime.training.workers import choose_workers, run_stage
from penchant.scoring.experts import read_model
from penchant.scoring.model import PersonalisedRewardModel
from penchant.scoring.tables import FrozenTable, ScoreTable
from penchant.storage import Location, is_remote, remove

_TITLES = {
    "features": "Reading texts",
    "graph": "Graph stage",
    "ends": "Uniform, oracle",
    "reward": "Reward, frozen",
    "activations": "Lower layers",
    "experts": "Reward, experts",
    "method": "Method",
}


class Stages:
    """Runs stages for one data set, settings and --out folder.

    Args:
        dataset: Validated data.
        settings: Of the whole fit.
        out: The --out folder, or its URI.
        console: Where progress is shown.
        address: A running Ray cluster to join.
        in_process: Train in this process, without Ray's workers and checkpoints, as one of several fits side by side.
        shared: Take the graph, uniform and the oracle from the other fits that share this folder, where these have made them
            of the same data and settings.

    Raises:
        OutputError: `out` holds another run, or something else.
        StorageError: `out` is a URI that cannot be reached or written.
        BackboneError: The base model is not there, or cannot carry the experts.
        ConfigError: There are more experts than users, settings don't fit together, or what is to track the run is not installed.
        DataError: There are too few seen users or comparisons to learn from.
    """

    def __init__(
        self,
        dataset: PreferenceDataset,
        settings: FitSettings,
        out: Location,
        console: Console,
        *,
        address: str | None = None,
        in_process: bool = False,
        shared: SharedResults | None = None,
    ) -> None:
        self.started, self.in_process, self.shared = time.monotonic(), in_process, shared
        """Since when it runs, what it shares counted as if it had been made here."""
        self.dataset, self.settings, self.console, self.address = dataset, settings, console, address
        check_learnable(dataset)
        check_tracking(settings.tracking)
        FeatureExtractor(settings.backbone).check()
        self.attribute = read_attribute(dataset, settings.method)
        if settings.experts.num_experts and not settings.replaces_stages:
            check_experts(outline(settings.backbone), settings.experts, num_users=int(dataset.seen.sum()))
        if self.is_lora:
            check_lora(outline(settings.backbone), settings.experts)
        source = Path(settings.backbone.name)
        if not is_remote(settings.backbone.name) and source.is_dir():
            # Workers, and whoever uses the bundle, run elsewhere.
            backbone = settings.backbone.model_copy(update={"name": str(source.resolve())})
            self.settings = settings = settings.model_copy(update={"backbone": backbone})
        self.run = RunFolder(out, dataset.fingerprint, settings)

    def fit(self) -> dict[str, Any]:
        """Everything up to the evaluation; returns the summaries of the heads' or the method's training.

        Raises:
            DataError: There is no test comparison to evaluate it by.
        """
        check_judged(self.dataset)
        if self.is_lora:
            return self.fit_lora()
        return {"method": self.fit_method()} if self.settings.replaces_stages else self.fit_reward()

    @property
    def is_lora(self) -> bool:
        """Whether the method is plain LoRA: the reward phases without a graph."""
        return isinstance(self.settings.method, LoRASettings)

    def prepare(self) -> Prepared:
        """The data set in integer codes, with the features of its texts."""
        backbone = self.settings.backbone
        inputs = [__version__, self.dataset.fingerprint, backbone.model_dump(mode="json", exclude={"batch_size"})]
        folder = self.run.stage("prepared")
        if self.run.is_done("prepared", inputs):
            return Prepared.open(folder)
        prepared = prepare(self.dataset, folder)
        if missing_texts(backbone, prepared):
            self.run.share("prepared")
            cache = str(feature_cache(backbone).folder.resolve())
            if self.run.uri is not None:
                cache = self.run.results(self.run.attempt("features", inputs), "features")
            self._run("features", feature_loop, inputs, {"backbone": backbone.model_dump(mode="json"), "cache": cache})
            if self.run.uri is not None:
                take_features(cache, backbone)
                remove(cache)
        prepared.write_features(FeatureExtractor(backbone, feature_cache(backbone)))
        self.run.mark_done("prepared", inputs)
        return prepared

    def fit_graph(self) -> dict[str, Any]:
        """The graph stage; returns its summary.

        Raises:
            ConfigError: The run is of a method that has no graph.
        """
        if self.settings.replaces_stages:
            raise ConfigError(
                f"Method {self.settings.method.name} has no graph stage and no bundle.",
                where="method",
                fix="Run `penchant fit` or `penchant evaluate` with it, or leave method out.",
            )
        self.prepare()
        graph = self.settings.graph.model_dump(mode="json")
        inputs = [__version__, self.dataset.fingerprint, self.settings.backbone.model_dump(mode="json"), graph]

        def make() -> None:
            self._run("graph", graph_loop, inputs, {"graph": graph}, results="candidates")
            keep_best(self.run.stage("candidates"), self.settings.graph, self.run.stage("graph"))

        self._do("graph", inputs, make)
        return read_json(self.run.stage("graph") / "graph.json")

    def fit_reward(self) -> dict[str, Any]:
        """The frozen reward phase, the experts' phase if it is wanted, and the bundle; returns the phases' summaries."""
        graph = self.fit_graph()
        inputs = self._fit_frozen()
        phases = {"frozen": read_json(self.run.stage("reward") / "reward.json")}
        if self.settings.experts.num_experts:
            inputs = self._fit_experts(inputs)
            phases["experts"] = read_json(self.run.stage("experts") / "experts.json")
        bundle_inputs = [*inputs, self.settings.onboarding.model_dump(mode="json")]
        manifest = self.run.stage("bundle") / "manifest.json"
        if not (self.run.is_done("onboarding", bundle_inputs) and self.run.bring("bundle") and manifest.is_file()):
            assemble(self.dataset, self.settings, self.run, graph)
            self.run.share("bundle")
            self.run.mark_done("onboarding", bundle_inputs)
        return phases

    def fit_method(self) -> dict[str, Any]:
        """Another method than Penchant's, with uniform and the oracle beside it; returns its summary. One worker does it."""
        self.prepare()
        reward, method, backbone = (
            part.model_dump(mode="json") for part in (self.settings.reward, self.settings.method, self.settings.backbone)
        )
        inputs = [__version__, self.dataset.fingerprint, backbone, reward, method]
        if not self.run.is_done("method", inputs):
            shared = {"reward": reward, "method": method, "backbone": backbone, "attributes": 0, "attribute": None}
            shared["models"] = self._models_to_train()
            if self.attribute is not None:
                # The users' table has the seen users in the order in which they are prepared.
                shared |= {"attributes": len(self.attribute.values), "attribute": self.attribute.code_U[self.dataset.seen]}
            self._run("method", method_loop, inputs, shared, results="method", most_workers=1)
            self._add_ends("method", "training.json")
            self.run.mark_done("method", inputs)
        return read_json(self.run.stage("method") / "training.json")

    def fit_lora(self) -> dict[str, Any]:
        """Plain LoRA, from a head on the frozen base on; uniform and the oracle stay on that. Returns the phases' summaries."""
        self.prepare()
        self._fit_experts(self._fit_frozen())
        write_json(self.run.stage("method") / METHOD, {"settings": self.settings.method.model_dump(mode="json")})
        return {
            "frozen": read_json(self.run.stage("reward") / "reward.json"),
            "experts": read_json(self.run.stage("experts") / "experts.json"),
        }

    def _before_reward(self) -> list[Any]:
        """What the heads are made from, besides their settings."""
        if self.is_lora:
            return [__version__, self.dataset.fingerprint, self.settings.backbone.model_dump(mode="json")]
        return [read_json(self.run.stage("graph") / "stage.json")]

    def _users(self) -> dict[str, Any]:
        """Where the reward phases' workers find what is known of the users."""
        graph = None if self.is_lora else self.run.location("graph")
        return {"graph": graph, "graph_seed": self.settings.graph.seed}

    def _fit_frozen(self) -> list[Any]:
        """The heads on the frozen base; returns what they were made from."""
        reward = self.settings.reward.model_dump(mode="json")
        inputs = [*self._before_reward(), reward]
        if not self.run.is_done("reward", inputs):
            models = self._models_to_train()
            self._run("reward", reward_loop, inputs, {"reward": reward, "models": models, **self._users()}, results="reward")
            self._add_ends("reward", "reward.json")
            self.run.mark_done("reward", inputs)
        return inputs

    def _models_to_train(self) -> tuple[str, ...]:
        """What is trained beside the personalised model: what there is to share is trained by itself."""
        if self.shared is None:
            return MODELS
        reward, backbone = (part.model_dump(mode="json") for part in (self.settings.reward, self.settings.backbone))
        inputs = [__version__, self.dataset.fingerprint, backbone, reward]
        config = {"reward": reward, "graph": None, "graph_seed": None, "models": ENDS}
        self._do("ends", inputs, lambda: self._run("ends", reward_loop, inputs, config, results="ends"))
        return tuple(name for name in MODELS if name not in ENDS)

    def _add_ends(self, stage: str, summary: str) -> None:
        """Adds uniform and the oracle to the results of a stage that has left them to `_models_to_train`."""
        if self.shared is None:
            return
        ends, folder = self.run.stage("ends"), self.run.stage(stage)
        for name in ENDS:
            if (ends / f"{name}.safetensors").is_file():
                shutil.copy2(ends / f"{name}.safetensors", folder)
        own, theirs = read_json(folder / summary), read_json(ends / "reward.json")
        accuracy = own["valid_accuracy"] | theirs["valid_accuracy"]
        own["valid_accuracy"] = {name: accuracy[name] for name in MODELS if name in accuracy}
        write_json(folder / summary, own)

    def _do(self, name: str, inputs: Any, make: Callable[[], None]) -> None:
        """Has a stage's results in the run's folder: as they are there, from the fits that share them, or made."""
        if self.run.is_done(name, inputs):
            return
        if self.shared is None:
            make()
        else:
            self._take(self.shared, name, inputs, make)
        self.run.mark_done(name, inputs)

    def _take(self, shared: SharedResults, name: str, inputs: Any, make: Callable[[], None]) -> None:
        own, log, waited = self.run.stage(name), self.run.log(name), time.monotonic()

        def make_and_share(folder: Path) -> None:
            make()
            shutil.copytree(own, folder / name, dirs_exist_ok=True)
            shutil.copy2(log, folder)

        folder, seconds = shared.take(name, inputs, make_and_share)
        with replace_folder(own) as draft:
            shutil.copytree(folder / name, draft, dirs_exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / log.name, log)
        self.started -= seconds - (time.monotonic() - waited)

    def _fit_experts(self, frozen: list[Any]) -> list[Any]:
        """The experts, from the frozen phase's heads on; returns what they were made from."""
        experts, backbone = (part.model_dump(mode="json") for part in (self.settings.experts, self.settings.backbone))
        inputs = [*frozen, experts]
        if not self.run.is_done("experts", inputs):
            self.cache_activations()
            self._run(
                "experts",
                expert_loop,
                inputs,
                {
                    "experts": experts,
                    "backbone": backbone,
                    "head": self.settings.reward.head.model_dump(mode="json"),
                    "reward": self.run.location("reward"),
                    "models": ("personalised",) if self.is_lora else MODELS,
                    **self._users(),
                },
                results="experts",
                most_workers=self.settings.experts.prompts_per_step,
            )
            self.run.mark_done("experts", inputs)
        return inputs

    def cache_activations(self) -> None:
        """What enters the lowest layer that carries experts, computed for all texts, where that is kept."""
        experts, backbone = (part.model_dump(mode="json") for part in (self.settings.experts, self.settings.backbone))
        if missing_activations(self.settings.backbone, self.settings.experts, self.prepare()):
            shared = {"experts": experts, "backbone": backbone}
            self._run("activations", activation_loop, [self.dataset.fingerprint, shared], shared)

    def model(self) -> PersonalisedRewardModel:
        """The bundle at work: here, in the driver."""
        return PersonalisedRewardModel.load(self.run.stage("bundle"), cached=True, device=self.driver_device)

    @property
    def driver_device(self) -> str:
        """Where the driver runs the base: on a GPU where it sees one."""
        return "cuda" if self.settings.workers.use_gpu is not False and torch.cuda.is_available() else "cpu"

    def oracle(self, model: PersonalisedRewardModel, feature_RF: torch.Tensor) -> ScoreTable | None:
        """What was trained on the users' true groups, where these are known. It is for evaluation: never in a bundle."""
        frozen, groups = self.frozen_oracle(feature_RF), len(self.dataset.group_names)
        if frozen is None or model.parts.experts is None:
            return frozen
        saved = read_model(self.run.stage("experts") / "oracle")
        made = model.texts.build_experts(saved, user_dim=groups, name="oracle")
        return model.texts.expert_table(made, dataset_texts(self.dataset))

    def frozen_oracle(self, feature_RF: torch.Tensor) -> FrozenTable | None:
        """The same on the frozen base."""
        if not (self.run.stage("reward") / "oracle.safetensors").is_file():
            return None
        head = frozen_head(self.run, self.settings, "oracle", user_dim=len(self.dataset.group_names))
        return FrozenTable.from_features(head, feature_RF)

    def history(self, stage: str) -> list[dict[str, Any]]:
        """The learning curve of a stage. Steps that were done again after a fault are in it once."""
        records = (record for record in ProgressLog(self.run.log(stage)).read() if "step" in record)
        return list({(record.get("candidate"), record["step"]): record for record in records}.values())

    def _run(
        self,
        name: str,
        loop: Any,
        inputs: Any,
        config: dict[str, Any],
        *,
        results: str | None = None,
        most_workers: int | None = None,
    ) -> None:
        """Runs a stage's loop on the workers; `results` is the folder of what they leave in `config["out"]`.

        Args:
            most_workers: For a stage that is not for as many as the settings say, or as there are GPUs.
        """
        attempt = self.run.attempt(name, inputs)
        start_ray(self.address)
        workers = self.settings.workers
        wanted = min(number for number in (workers.num_workers or 1, most_workers) if number is not None)
        wait_for_resources("GPU" if workers.use_gpu else "CPU", wanted, seconds=workers.wait_seconds, console=self.console)
        chosen = choose_workers(workers).num_workers
        if most_workers is not None and most_workers < chosen:
            self.console.print(f"{_TITLES[name]}: there is work for {most_workers} of {chosen} workers.", highlight=False)
            fewest = None if workers.min_workers is None else min(workers.min_workers, most_workers)
            workers = workers.model_copy(update={"num_workers": most_workers, "min_workers": fewest})
        log = ProgressLog(self.run.log(name)) if self.run.uri is None else RelayedLog(self.run.log(name))
        shared = {
            "prepared": self.run.location("prepared"),
            "log": str(log.path) if self.run.uri is None else log,
            "out": None if results is None else self.run.results(attempt, results),
        }
        tracking = track_run(self.settings.tracking, self.run, name)
        try:
            with tracking as tracker, show_progress(self.console, _TITLES[name], log, tracker.record):
                run_stage(
                    loop,
                    {"models": MODELS} | config | shared,
                    name=attempt,
                    storage=self.run.location("checkpoints"),
                    settings=workers,
                    in_process=self.in_process,
                )
        finally:
            self.run.add("progress", "tensorboard")
        if results is not None:
            self.run.collect(attempt, results)
