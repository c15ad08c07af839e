"""A run over one task's files: task bases, the users' adapters and answers, in one folder where each is made once.

    out/plain/base          the task base of a prompt's format, fitted on the other users
    out/plain/lora/store    the target users' adapters over it
    out/bm25-1/base ...     the same with retrieval in the prompts
    out/profiles            profiles that the base wrote

Retrieval and profiles stand in the prompts that a task base is fitted on, as in the paper: so there is one base for each format.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train

from penchant.adapters.answering import PersonalModel
from penchant.adapters.applying import AdapterPool
from penchant.adapters.asking import NOBODY, Outputs, answering_adapters, ask
from penchant.adapters.bases import base_fingerprint, load_task_base, peft_config
from penchant.adapters.config import AdapterSettings, LampSettings, PersonalSettings, TaskBaseSettings
from penchant.adapters.examples import Example
from penchant.adapters.items import ItemReader
from penchant.adapters.store import AdapterStore
from penchant.adapters.tables import read_examples, write_examples
from penchant.adapters.task_stage import EVERYBODY, fit_task_base
from penchant.adapters.tasks.building import ExampleBuilder, make_builder
from penchant.adapters.tasks.config import PromptSettings
from penchant.adapters.tasks.slices import On, ask_about_history, fitted_history
from penchant.adapters.variants import Variant, check_answers
from penchant.adapters.writing import ModelWriter
from penchant.artifacts import fingerprint, read_json, write_json
from penchant.backbone.config import BackboneSettings
from penchant.backbone.grouped import GroupedModel
from penchant.backbone.loading import check_window, read_config
from penchant.data.lamp import LampData, find_task
from penchant.errors import DataError, OutputError
from penchant.runtime.training.adapter_stage import PROGRESS, fit_adapters
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.progress import open_log
from penchant.runtime.training.workers import prepare_worker, run_stage

_DONE, _EXAMPLES, _QUERIES, _ANSWERS = "base.json", "task.parquet", "queries.parquet", "answers"


class LampRun:
    """One folder, one task. Ray must be running before anything is fitted or answered.

    Args:
        data: The task's users.
        settings: Of all stages.
        rows: What is to be compared, or fitted.
        out: On storage that all nodes share.
        workers: Who does the work.
        on: What is asked: the queries, or the latest items of the targets' histories, to choose settings by.

    Raises:
        ConfigError: The base cannot answer the task, or not so.
    """

    def __init__(
        self,
        data: LampData,
        settings: LampSettings,
        rows: Sequence[Variant],
        out: Path,
        workers: WorkerSettings,
        on: On = "queries",
    ) -> None:
        self.data = data if on == "queries" else ask_about_history(data, settings.answers.held_out)
        self.rows, self.out, self.workers, self.on = rows, out.resolve(), workers, on
        self.settings = check_answers(data.task, settings, rows)
        self.notes: list[str] = []
        """What somebody who reads the answers' scores would want to know of them; known when `answer` has returned."""
        self._builders: dict[str, ExampleBuilder] = {}

    @property
    def log(self) -> Path:
        """Where the stages tell how far they are."""
        return self.out / PROGRESS

    def fit(self) -> dict[str, AdapterStore]:
        """Fits what the rows need and the folder lacks: task bases, then adapters. Row -> its store.

        Raises:
            OutputError: A task base in the folder was fitted on other examples, or with other settings.
            ConfigError: The base has no positions for a question with its answer; before anything is fitted.
            DataError, BackboneError, ArtifactError, TrainingError: As `fit_task_base` and `fit_adapters`.
        """
        self._fit_bases({row.prompts.name: row.prompts for row in self.rows})
        stores: dict[str, AdapterStore] = {}
        for row in self.rows:
            if row.adapter is not None:
                stores[row.name] = self._fit_adapters(row, row.adapter)
        return stores

    def _check_base(self) -> None:
        """Tells what the task bases will not do, being of this kind, before hours are spent on fitting them."""
        base, tokenizer = load_task_base(self.settings.base)
        ItemReader(base, tokenizer, max_tokens=self.settings.base.max_tokens)
        self._check_room(base.config)
        for adapter in (self.settings.task.adapter, *(row.adapter for row in self.rows if row.adapter is not None)):
            peft_config(adapter, base, self.settings.base.name)

    def _check_room(self, config: Any) -> None:
        """Whether a base of this config has positions for a question, what an adapter puts before it, and the answer."""
        tokens, where = self.settings.base.max_tokens, "base.max_tokens"
        tuned = [row.adapter for row in self.rows if row.adapter is not None and row.adapter.kind == "prompt_tuning"]
        if tuned:
            tokens, where = tokens + max(adapter.virtual_tokens for adapter in tuned), f"{where} + adapter.virtual_tokens"
        if self.settings.base.answers == "text":
            tokens, where = tokens + self.settings.answers.max_new_tokens, f"{where} + answers.max_new_tokens"
        check_window(config, tokens, where=where)

    def _fit_bases(self, formats: Mapping[str, PromptSettings]) -> None:
        missing = {}
        for name, prompts in formats.items():
            examples = self._task_examples(prompts)
            recipe = fingerprint(
                [self.settings.base.model_dump(), self.settings.task.model_dump(), [asdict(example) for example in examples]]
            )
            done = self.out / name / _DONE
            if not done.exists():
                write_examples(self.out / name / _EXAMPLES, {EVERYBODY: examples})
                missing[name] = recipe
            elif read_json(done)["recipe"] != recipe:
                raise OutputError(
                    "The task base here was fitted on other examples, or with other settings.",
                    where=str(self.out / name),
                    fix="Choose another folder with --out.",
                )
        if not missing:  # a task base has the positions of the base that it was fitted over
            self._check_room(read_config(BackboneSettings(name=str(self.out / next(iter(formats)) / "base"))))
            return
        self._check_base()
        settings = PersonalSettings(
            base=self.settings.base, adapter=self.settings.task.adapter, fitting=self.settings.task.fitting
        )
        config = {
            "out": str(self.out),
            "missing": missing,
            "settings": settings.model_dump(mode="json"),
            "log": str(self.log),
        }
        self._run(_base_loop, "bases", config, len(missing))

    def _task_examples(self, prompts: PromptSettings) -> list[Example]:
        builder = self._builder(prompts)
        parts = [builder.queries_of(self.data.others)]
        if self.settings.task.examples == "all":
            parts.insert(0, builder.personal_of(self.data.others))
        examples = [example for part in parts for own in part.values() for example in own]
        if not examples:
            raise DataError(
                "The other users have no queries to fit the task base on.",
                where="others",
                fix="Set task.examples=all, or add some.",
            )
        return examples

    def _fit_adapters(self, row: Variant, adapter: AdapterSettings) -> AdapterStore:
        targets = {name: fitted_history(user, row.history) for name, user in self.data.targets.items()}
        users = {user: examples for user, examples in self._builder(row.prompts).personal_of(targets).items() if examples}
        settings = PersonalSettings(
            base=self._task_base(row.prompts),
            adapter=adapter,
            fitting=self.settings.fitting,
            replace_imported=self.settings.replace_imported,
        )
        return fit_adapters(users, settings, self.out / self._folder(row), self.workers, log=self.log)

    def _folder(self, row: Variant) -> str:
        return row.folder if self.on == "queries" else f"{row.folder}-{self.on}"

    def answer(self) -> dict[str, Outputs]:
        """What every row answers to the targets' queries; for a row of two or more adapters, another one with the wrong users'.

        Needs what `fit` leaves.
        """
        shutil.rmtree(self.out / _ANSWERS, ignore_errors=True)
        for prompts in {row.prompts.name: row.prompts for row in self.rows}.values():
            write_examples(self.out / prompts.name / _QUERIES, self._builder(prompts).queries_of(self._asked()))
        rows = [
            {
                "name": row.name,
                "prompts": row.prompts.name,
                "adapter": (row.adapter or self.settings.adapter).model_dump(mode="json"),
                "store": None if row.adapter is None else f"{self._folder(row)}/store",
            }
            for row in self.rows
        ]
        config: dict[str, Any] = {"out": str(self.out), "rows": rows, "task": self.data.task.name, "log": str(self.log)}
        config["settings"] = self.settings.model_dump(mode="json")
        self._run(_answer_loop, "answers", config, len(rows))
        answered: dict[str, Outputs] = {}
        for number in range(len(rows)):
            done = read_json(self.out / _ANSWERS / f"{number}.json")
            answered |= done["answers"]
            if done["cut"]:
                room = f"base.max_tokens={self.settings.base.max_tokens}"
                self.notes.append(
                    f"{self.rows[number].name}: {done['cut']:,} of {done['prompts']:,} prompts are longer than {room}; "
                    "what is over is cut from their start, where the past stands."
                )
        return answered

    def _asked(self) -> dict[str, Any]:
        return {name: user for name, user in self.data.targets.items() if user.queries}

    def _task_base(self, prompts: PromptSettings) -> TaskBaseSettings:
        return _task_base(self.settings, self.out / prompts.name / "base")

    def _builder(self, prompts: PromptSettings) -> ExampleBuilder:
        if prompts.name not in self._builders:
            writer = None
            if prompts.profile == "written":
                base, tokenizer = load_task_base(self.settings.base)
                writer = ModelWriter(base, tokenizer, name=base_fingerprint(base)[:32])
            self._builders[prompts.name] = make_builder(self.data.task, prompts, writer=writer, folder=self.out / "profiles")
        return self._builders[prompts.name]

    def _run(self, loop: Any, name: str, config: dict[str, Any], units: int) -> None:
        """Runs a stage of so many independent units: more workers than that would have nothing to do."""
        workers = self.workers
        if workers.num_workers:
            workers = workers.model_copy(update={"num_workers": min(workers.num_workers, units)})
        name = f"{name}-{fingerprint(json.loads(json.dumps(config)))[:10]}"
        run_stage(loop, config, name=name, storage=self.out / "checkpoints", settings=workers)


def _task_base(settings: LampSettings, folder: Path) -> TaskBaseSettings:
    return settings.base.model_copy(update={"name": str(folder), "revision": None, "labels": None})


def _share() -> tuple[int, int]:
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def _base_loop(config: dict[str, Any]) -> None:
    """What each worker runs: its share of the formats' task bases."""
    device = prepare_worker(config)
    rank, world_size = _share()
    settings, out, log = PersonalSettings.model_validate(config["settings"]), Path(config["out"]), open_log(config["log"])
    missing = config["missing"]
    for number, (name, recipe) in enumerate(missing.items()):
        done = out / name / _DONE
        if number % world_size != rank or done.exists():
            continue
        examples = read_examples(out / name / _EXAMPLES)[EVERYBODY]
        fitted = fit_task_base(settings, examples, out / name / "base", device=device)
        write_json(done, {"recipe": recipe, "examples": len(examples), "steps": fitted.steps, "loss": fitted.loss})
        log.write(done=number + 1, total=len(missing), note=f"task base {name}, loss {fitted.loss:.3f}")


def _answer_loop(config: dict[str, Any]) -> None:
    """What each worker runs: its share of the rows."""
    device = prepare_worker(config)
    rank, world_size = _share()
    settings, out, log = LampSettings.model_validate(config["settings"]), Path(config["out"]), open_log(config["log"])
    task, rows = find_task(config["task"]), config["rows"]
    for number, row in enumerate(rows):
        place = out / _ANSWERS / f"{number}.json"
        if number % world_size != rank or place.exists():
            continue
        queries = read_examples(out / row["prompts"] / _QUERIES)
        base_settings = _task_base(settings, out / row["prompts"] / "base")
        base, tokenizer = load_task_base(base_settings, device)
        config_of_all = peft_config(AdapterSettings.model_validate(row["adapter"]), base, base_settings.name)
        model = GroupedModel(base, config_of_all, slots=settings.answers.rows_at_once)
        with tempfile.TemporaryDirectory() as nothing:
            store = AdapterStore.create(
                out / row["store"] if row["store"] else nothing,
                fingerprint=base_fingerprint(base),
                config=config_of_all,
                shapes=model.shapes,
            )
            pool = AdapterPool(model, store)
            personal = PersonalModel(pool, ItemReader(base, tokenizer, max_tokens=base_settings.max_tokens))
            whose = {row["name"]: dict.fromkeys(queries, NOBODY)}
            if row["store"]:
                adapted = [user for user in queries if user in store]
                whose = answering_adapters(row["name"], list(queries), adapted, settings.answers.seed)
            answered = {name: ask(personal, task, queries, owners, settings.answers) for name, owners in whose.items()}
            pool.close()
        prompts = [query.prompt for own in queries.values() for query in own]
        cut = sum(not personal.reader.fits(prompt) for prompt in prompts)
        write_json(place, {"answers": answered, "cut": cut, "prompts": len(prompts)})
        log.write(done=number + 1, total=len(rows), note=f"answers of {row['name']}")
