"""The `penchant` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant.cli.adapters import adapters_app
from penchant.cli.data import data_app
from penchant.cli.forget import data_drop_users, forget, store_app
from penchant.cli.serve import export, keys_app, roll, serve
from penchant.cli.study import study
from penchant.cli.submit import score_table, submit
from penchant.cli.tune import tune
from penchant.errors import PenchantError
from penchant.runtime.leaving import INTERRUPTED, leave_at_once

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn what each person prefers from a handful of A/B choices, and score texts for them.",
)
bundle_app = typer.Typer(no_args_is_help=True, help="Look at bundles.")
app.add_typer(data_app, name="data")
app.add_typer(bundle_app, name="bundle")
app.add_typer(keys_app, name="keys")
app.add_typer(store_app, name="store")
app.add_typer(adapters_app, name="adapters")
app.command()(serve)
app.command()(roll)
app.command()(forget)
app.command()(tune)
app.command()(study)
app.command()(submit)
app.command()(score_table)
data_app.command("export")(export)
data_app.command("drop-users")(data_drop_users)

console = Console()
errors = Console(stderr=True)

DataOption = Annotated[
    str, typer.Option("--data", help="Folder of responses, comparisons and users, or a URI (s3://...).", show_default=False)
]
OutOption = Annotated[
    str, typer.Option("--out", help="Folder of the run, or a URI (s3://...): bundle, metrics.json, report.html.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML of settings; a run leaves its own in config.yaml.")]
AddressOption = Annotated[str | None, typer.Option(help="A running Ray cluster to join, such as `auto` or ray://host:10001.")]
ExpertsOption = Annotated[
    int | None,
    typer.Option("--experts", min=0, help="Experts at each layer (experts.num_experts); 0 for the frozen phase alone."),
]
OverrideArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as reward.steps=500.", show_default=False),
]
BundleOption = Annotated[
    str, typer.Option("--bundle", help="The bundle/ folder that `penchant fit` left, or its URI.", show_default=False)
]


@app.command()
def fit(
    data: DataOption,
    out: OutOption = "runs/fit",
    config: ConfigOption = None,
    experts: ExpertsOption = None,
    overrides: OverrideArguments = None,
    address: AddressOption = None,
) -> None:
    """Train on a data set: graph, reward, evaluation; leaves a bundle, metrics.json and report.html.

    Uses every GPU, or every core. Run it again to resume, or to reuse what is done.

    Examples:

        penchant fit --data my-data --out runs/mine

        penchant fit --data my-data --out runs/small graph.seed=1 reward.steps=500

        penchant fit --data my-data --out runs/vpl method=vpl   # another method, to compare with: no bundle
    """
    stages = _stages(data, out, config, experts, overrides, address)
    stages.fit()
    _evaluate(stages, data)


@app.command()
def fit_graph(
    data: DataOption,
    out: OutOption = "runs/fit",
    config: ConfigOption = None,
    experts: ExpertsOption = None,
    overrides: OverrideArguments = None,
    address: AddressOption = None,
) -> None:
    """The graph stage alone: user embeddings from the preference graph."""
    summary = _stages(data, out, config, experts, overrides, address).fit_graph()
    table = Table("Encoder", "Valid accuracy", "Best step", "Seconds", title="Graph stage")
    for candidate in summary["candidates"]:
        kept = " (kept)" if candidate["name"] == summary["chosen"] else ""
        table.add_row(
            candidate["name"] + kept,
            f"{candidate['valid_accuracy']:.3f}",
            str(candidate["best_step"]),
            f"{candidate['seconds']:.0f}",
        )
    console.print(table)


@app.command()
def fit_reward(
    data: DataOption,
    out: OutOption = "runs/fit",
    config: ConfigOption = None,
    experts: ExpertsOption = None,
    overrides: OverrideArguments = None,
    address: AddressOption = None,
) -> None:
    """The reward phases alone (with the graph stage, if that is not done), and the bundle."""
    phases = _stages(data, out, config, experts, overrides, address).fit_reward()
    table = Table("Phase", "Model", "Valid accuracy", "Seconds", title="Reward stage")
    for phase, summary in phases.items():
        for name, value in summary["valid_accuracy"].items():
            table.add_row(phase, name, f"{value:.3f}", f"{summary['seconds']:.0f}")
        table.add_section()
    console.print(table)


@app.command()
def evaluate(
    data: DataOption,
    out: OutOption = "runs/fit",
    config: ConfigOption = None,
    experts: ExpertsOption = None,
    overrides: OverrideArguments = None,
    address: AddressOption = None,
) -> None:
    """Evaluate a run's bundle on the test comparisons (training first what is not there)."""
    _evaluate(_stages(data, out, config, experts, overrides, address), data)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run: bundle, metrics.json, report.html.")] = Path("runs/demo"),
    experts: ExpertsOption = 0,
    overrides: OverrideArguments = None,
    address: AddressOption = None,
) -> None:
    """The whole thing on the planted world, whose right answer is known: generate, fit, score, report.

    Without experts, unless they are asked for: the frozen phase is as good there, in a third of the time.
    """
    from penchant.artifacts import explain_disk_errors
    from penchant.data.planted import PlantedWorld, load_truth, save_planted
    from penchant.runtime.training.run_folder import check_run_folder

    with explain_disk_errors(out):
        out = out.resolve()  # `.` has no name, after which the data are called
    check_run_folder(out)  # before a folder of data is made beside somebody's own
    folder = out.with_name(out.name + "-data")
    if not (folder / "truth.json").is_file():
        save_planted(PlantedWorld(), folder)
    truth = load_truth(folder)
    console.print(f"Planted world in {folder}: the best reachable accuracy (Bayes) is {truth['bayes_accuracy']:.1%}.")
    stages = _stages(str(folder), str(out), None, experts, overrides, address)
    stages.fit_reward()
    _evaluate(stages, str(folder), bayes_accuracy=truth["bayes_accuracy"])
    user, prompt = _show_two_users(stages)
    console.print(
        "\nScore texts of your own:\n  penchant score --bundle "
        f"{out}/bundle --user {user} --prompt {json.dumps(prompt)} --response 'One text.' --response 'Another.'",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"Serve it, with a page to try it on:\n  penchant serve --bundle {out}/bundle", markup=False, soft_wrap=True)


def _show_two_users(stages: Any) -> tuple[str, str]:
    """The first test pair that tastes disagree on, as two users of different groups see it; returns a user and the prompt."""
    model, dataset = stages.model(), stages.dataset
    test = dataset.select(split="test", cohort="seen")
    pair = next(row for row in range(len(test)) if test.controversial[row])
    rows = (test.chosen[pair], test.rejected[pair])
    first = test.user[pair]
    second = next(row for row in test.user if dataset.group[row] != dataset.group[first])
    users = [dataset.user_ids[row] for row in (first, second)]
    prompt = dataset.prompts[dataset.prompt_of_response[rows[0]]]
    answers = [model.score(user, prompt, [dataset.responses[row] for row in rows]) for user in users]
    table = Table("Text", *users, "Uniform", title=f"A pair that the model never saw, as two users see it: {prompt}")
    for number, row in enumerate(rows):
        own = [f"{answer.score[number]:+.2f}" for answer in answers]
        table.add_row(escape(dataset.responses[row]), *own, f"{answers[0].uniform[number]:+.2f}", end_section=True)
    console.print(table)
    return users[0], prompt


@app.command()
def score(
    bundle: BundleOption,
    user: Annotated[str, typer.Option(help="Whose score; an unknown user gets the uniform one, and the answer says so.")],
    prompt: Annotated[str, typer.Option(help="What the responses answer.")],
    response: Annotated[list[str], typer.Option(help="A response; give it several times.")],
    onboarded: Annotated[Path | None, typer.Option(help="Users that `penchant onboard --out` wrote.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score responses to a prompt for one user. Higher is preferred; only differences mean something.

    Example:

        penchant score --bundle runs/demo/bundle --user user-0001 --prompt 'Explain tides.' --response 'The moon.' --response Ha!
    """
    from penchant.scoring.model import PersonalisedRewardModel
    from penchant.scoring.onboarded import read_onboarded

    model = PersonalisedRewardModel.load(bundle)
    if onboarded is not None:
        model.remember(read_onboarded(onboarded, bundle=model.manifest.name))
    answer = model.score(user, prompt, response)
    if as_json:
        console.print_json(json.dumps(vars(answer)))
        return
    table = Table("Response", "Score", "Uniform", title=f"{escape(user)} ({answer.personalisation}), bundle {answer.bundle}")
    for text, own, uniform in sorted(zip(response, answer.score, answer.uniform, strict=True), key=lambda row: -row[1]):
        table.add_row(escape(text), f"{own:+.3f}", f"{uniform:+.3f}")
    console.print(table)
    if answer.personalisation == "unknown":
        console.print("The bundle does not know this user: these are uniform scores.")


@app.command()
def onboard(
    bundle: BundleOption,
    comparisons: Annotated[
        Path, typer.Option(help="JSONL or Parquet with user_id, prompt, chosen, rejected (texts).", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Where the users go; `penchant score --onboarded` reads it.")] = Path(
        "onboarded.json"
    ),
) -> None:
    """Embed new users from a few comparisons of any texts, without optimisation.

    Example:

        penchant onboard --bundle runs/demo/bundle --comparisons choices.jsonl --out onboarded.json
    """
    from penchant.scoring.model import PersonalisedRewardModel
    from penchant.scoring.onboarded import read_choices, write_onboarded

    choices = read_choices(comparisons)
    model = PersonalisedRewardModel.load(bundle)
    embedding = model.onboard(choices)
    write_onboarded(out, embedding, bundle=model.manifest.name, counts={user: len(rows) for user, rows in choices.items()})
    console.print(
        f"{len(embedding)} user{'s' if len(embedding) != 1 else ''} onboarded ({model.parts.onboarding.kind}) into {out}."
    )


@bundle_app.command("show")
def bundle_show(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its URI.")],
    verify: Annotated[bool, typer.Option(help="Check every file against its fingerprint.")] = True,
) -> None:
    """What a bundle is."""
    from penchant.artifacts import Manifest
    from penchant.storage import local_copy

    manifest = Manifest.read(local_copy(bundle), verify=verify)
    table = Table("What", "Value", title=f"Bundle {manifest.name}")
    for name, value in vars(manifest).items():
        if name != "files":
            table.add_row(name, escape(json.dumps(value) if isinstance(value, dict) else str(value)))
    table.add_row("files", f"{len(manifest.files)}, {'as they were written' if verify else 'not verified'}")
    console.print(table)


@bundle_app.command("diff")
def bundle_diff(first: str, second: str) -> None:
    """What differs between two bundles."""
    from penchant.artifacts import Manifest
    from penchant.storage import local_copy

    manifests = [vars(Manifest.read(local_copy(folder))) for folder in (first, second)]
    table = Table("What", first, second, title="Differences")
    for name in manifests[0]:
        left, right = (dict(_flatten(name, manifest[name])) for manifest in manifests)
        for key in sorted(left | right):
            if left.get(key) != right.get(key):
                table.add_row(key, escape(str(left.get(key, "-"))[:40]), escape(str(right.get(key, "-"))[:40]))
    console.print(table if table.row_count else "The bundles are the same.")


def _stages(
    data: str, out: str, config: Path | None, experts: int | None, overrides: list[str] | None, address: str | None
) -> Any:
    from penchant.config import load_settings
    from penchant.data import PreferenceDataset
    from penchant.runtime.training.config import FitSettings

    settings = load_settings(FitSettings, config, overrides or (), given={"experts.num_experts": experts})
    with console.status("Reading the data"):
        dataset = PreferenceDataset.load(data)
    console.print(dataset)
    for warning in dataset.warnings:
        console.print(f"[yellow]warning[/] {escape(str(warning))}")
    with console.status("Starting"):
        from penchant.runtime.training.stages import Stages

        return Stages(dataset, settings, out, console, address=address)


def _evaluate(stages: Any, data: str, bayes_accuracy: float | None = None) -> None:
    from penchant.data.answers import read_answers
    from penchant.runtime.training.evaluation_stage import evaluate as evaluate_run

    metrics = evaluate_run(stages, bayes_accuracy=bayes_accuracy, answerer=read_answers(data, stages.dataset))
    accuracy = metrics["accuracy"]
    # Five methods in 80 columns.
    narrow: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": 0, "pad_edge": False, "show_edge": False}
    table = Table("Users", "Pairs", title="Accuracy on held-out choices, % and 95% interval", **narrow)
    for method in accuracy:
        table.add_column(method.replace("_", " "), justify="center", no_wrap=True)
    for cohort, kinds in accuracy["uniform"].items():
        for kind in kinds:
            cells = [methods[cohort][kind] for methods in accuracy.values()]
            table.add_row(
                cohort,
                kind,
                *(f"{100 * cell['value']:.1f} [dim]{100 * cell['low']:.0f}-{100 * cell['high']:.0f}[/]" for cell in cells),
            )
        table.add_section()
    console.print(table)
    from penchant.evaluation.report import headline, question_sentence

    for sentence in (*headline(metrics), question_sentence(metrics)):
        if sentence:
            console.print(sentence, markup=False)
    for note in metrics["notes"]:
        console.print(f"[yellow]note[/] {escape(note)}")
    if "method" in metrics:
        said = f"Method: {metrics['method']['settings']['name']}"
    else:
        graph = metrics["graph"]
        said = f"Graph: {graph['chosen']} (valid {graph['valid_accuracy']:.3f}, {graph['seconds']:.0f} s)"
    console.print(f"{said}. Onboarding: {metrics['onboarding']['kind']}. {metrics['run']['seconds']:.0f} s in all.")
    console.print(f"Report: {stages.run.location('report.html')}", markup=False, soft_wrap=True)


def _flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, part in value.items() for pair in _flatten(f"{name}.{key}", part)]


def main() -> NoReturn:
    """Runs the command; a user's mistake is one paragraph and exit code 2."""
    try:
        app()
    except PenchantError as error:
        errors.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            errors.print("Stopped. Run the same command again to resume.")
            leave_at_once()
        raise
    sys.exit(0)
