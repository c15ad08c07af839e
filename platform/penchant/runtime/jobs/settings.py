"""The jobs: the settings of each, and what it does with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from rich.console import Console
from rich.markup import escape

from penchant.config import Settings, load_settings, read_yaml
from penchant.errors import ConfigError
from penchant.runtime.batch.config import BatchSettings
from penchant.runtime.training.config import FitSettings
from penchant.storage import absolute


class Job(Settings):
    """What can be submitted. Places are paths, or URIs of a filesystem that pyarrow knows."""

    inputs: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that are places to read."""
    files: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that are YAML files, which a submitted job takes along."""

    job: str
    """Which job it is."""
    out: str
    """Folder of the results. The same job with the same folder continues where it was."""

    def run(self, console: Console) -> None:
        """Does the work, and says what came of it.

        Raises:
            PenchantError: What the user can mend.
        """
        raise NotImplementedError

    def located(self) -> Job:
        """The same job with places that hold in whatever folder it runs."""
        names = (*self.inputs, *self.files, "out")
        changed = {name: absolute(getattr(self, name)) for name in names if getattr(self, name) is not None}
        return self.model_copy(update=changed)


class _FitJob(FitSettings, Job):
    """What the jobs of a fit share."""

    inputs = ("data",)

    data: str
    """Folder of responses, comparisons and users."""
    out: str = "runs/fit"
    """Folder of the run. The same job with the same folder continues where it was."""

    def located(self) -> Job:
        """The same job with places that hold in whatever folder it runs."""
        moved = super().located()
        assert isinstance(moved, _FitJob)
        if not Path(self.backbone.name).is_dir():
            return moved
        return moved.model_copy(update={"backbone": self.backbone.model_copy(update={"name": absolute(self.backbone.name)})})

    def stages(self, console: Console) -> Any:
        """The stages of the fit, over the data."""
        from penchant.data import PreferenceDataset
        from penchant.runtime.training.stages import Stages

        dataset = PreferenceDataset.load(self.data)
        console.print(dataset)
        for warning in dataset.warnings:
            console.print(f"[yellow]warning[/] {escape(str(warning))}")
        settings = FitSettings.model_validate(self.model_dump(include=set(FitSettings.model_fields)))
        return Stages(dataset, settings, self.out, console)


class FitGraphJob(_FitJob):
    """The graph stage: user embeddings from the preference graph."""

    job: Literal["fit_graph"] = "fit_graph"

    def run(self, console: Console) -> None:
        """See `Job.run`."""
        summary = self.stages(console).fit_graph()
        for candidate in summary["candidates"]:
            name = candidate["name"] + (" (kept)" if candidate["name"] == summary["chosen"] else "")
            console.print(f"Graph, {name}: valid accuracy {candidate['valid_accuracy']:.3f}, {candidate['seconds']:.0f} s")


class FitRewardJob(_FitJob):
    """The reward phases (with the graph stage, if that is not done), and the bundle."""

    job: Literal["fit_reward"] = "fit_reward"

    def run(self, console: Console) -> None:
        """See `Job.run`."""
        for phase, summary in self.stages(console).fit_reward().items():
            accuracy = ", ".join(f"{name} {value:.3f}" for name, value in summary["valid_accuracy"].items())
            console.print(f"Reward, {phase}: valid accuracy {accuracy}, {summary['seconds']:.0f} s")
        console.print(f"Bundle: {self.out}/bundle", soft_wrap=True)


class EvaluateJob(_FitJob):
    """The whole fit, as far as it is not done, and the report."""

    job: Literal["evaluate"] = "evaluate"

    def run(self, console: Console) -> None:
        """See `Job.run`."""
        from penchant.data.answers import read_answers
        from penchant.evaluation.report import headline
        from penchant.runtime.training.evaluation_stage import evaluate

        stages = self.stages(console)
        metrics = evaluate(stages, answerer=read_answers(self.data, stages.dataset))
        for sentence in headline(metrics):
            console.print(sentence, markup=False)
        console.print(f"Report: {self.out}/report.html", soft_wrap=True)


class ScoreJob(Job):
    """Batch scoring: every row of a Parquet file, or of all in a folder, gets its user's score."""

    inputs = ("bundle", "data", "onboarded")

    job: Literal["score"] = "score"
    bundle: str
    """The bundle/ folder that a fit left."""
    data: str
    """Parquet with user_id, prompt and response; other columns are kept."""
    onboarded: str | None = None
    """Users who were not in training: what the job `onboard` or `penchant onboard` wrote."""
    out: str = "runs/scores"
    """Folder of the results; files keep their names. The same job with the same folder continues where it was."""
    batch: BatchSettings = BatchSettings()
    """Who does the work."""

    def run(self, console: Console) -> None:
        """See `Job.run`."""
        from penchant.runtime.batch.scoring import score_tables

        done = score_tables(self.data, self.bundle, self.out, onboarded=self.onboarded, settings=self.batch, console=console)
        console.print(f"{done.rows:,} rows of {done.files:,} files scored in {done.seconds:.0f} s.")
        if done.rows:
            console.print(f"Past {done.start_up_seconds:.0f} s of start-up: {done.rows_per_second:,.0f} rows a second.")
        console.print(f"Files that were done already: {done.skipped_files:,}. Results: {self.out}", soft_wrap=True)


class OnboardJob(Job):
    """Onboarding many users: embeddings from their choices of any texts, without optimisation."""

    inputs = ("bundle", "comparisons")

    job: Literal["onboard"] = "onboard"
    bundle: str
    """The bundle/ folder that a fit left."""
    comparisons: str
    """JSONL or Parquet with user_id, prompt, chosen and rejected (texts): a file, or a folder of such files."""
    out: str = "runs/onboarded"
    """Folder of the results. The same job with the same folder continues where it was."""
    batch: BatchSettings = BatchSettings()
    """Who does the work."""

    def run(self, console: Console) -> None:
        """See `Job.run`."""
        from penchant.runtime.batch.onboarding import onboard_table

        done = onboard_table(self.comparisons, self.bundle, self.out, settings=self.batch, console=console)
        console.print(f"{done.users:,} users onboarded into {done.files:,} files in {done.seconds:.0f} s.")
        console.print(f"Files that were done already: {done.skipped_files:,}. Results: {self.out}", soft_wrap=True)


class SweepJob(Job):
    """A sweep: many short trials, the best settings chosen by validation."""

    inputs = ("data",)
    files = ("space", "config")

    job: Literal["sweep"] = "sweep"
    data: str
    """Folder of responses, comparisons and users."""
    space: str
    """YAML of what is searched."""
    config: str | None = None
    """YAML of settings that all trials start from."""
    overrides: tuple[str, ...] = ()
    """Settings of all trials and of the best, each `key=value`."""
    trials: int | None = Field(None, ge=1)
    """Trials to start; by default the space's."""
    minutes: float | None = Field(None, gt=0)
    """The trials' time, all together."""
    out: str = "runs/sweep"
    """Folder of the sweep, or its URI. The same job with the same folder continues where it was."""

    def run(self, console: Console) -> None:
        """See `Job.run`."""
        from penchant.data import PreferenceDataset
        from penchant.runtime.tuning.candidates import base_settings
        from penchant.runtime.tuning.space import load_space
        from penchant.runtime.tuning.sweep import Sweep

        space = load_space(self.space)
        base = base_settings(space, self.config, self.overrides, where=self.space)
        dataset = PreferenceDataset.load(self.data)
        console.print(dataset)
        seconds = None if self.minutes is None else 60 * self.minutes
        result = Sweep(dataset, space, base, self.out, console, trials=self.trials, seconds=seconds).run()
        console.print(f"Chosen: {result.values['why']} {self.out}/best.yaml", markup=False, soft_wrap=True)
        console.print(f"Report: {self.out}/sweep.html", soft_wrap=True)


JOBS: dict[str, type[Job]] = {
    kind.model_fields["job"].default: kind for kind in (FitGraphJob, FitRewardJob, EvaluateJob, ScoreJob, OnboardJob, SweepJob)
}
"""Every job by its name."""


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """A job from its YAML, whose `job` says which one it is, and `key=value` overrides.

    Raises:
        ConfigError: There is no such file or job, a setting is unknown or missing, or has the wrong type.
    """
    name = read_yaml(path).get("job")
    if name not in JOBS:
        what = "It does not say which job it is." if name is None else f"There is no job {name!r}."
        raise ConfigError(what, where=f"{path}, job", fix=f"Write job: and one of {', '.join(JOBS)}.")
    return load_settings(JOBS[name], path, overrides)
