"""`penchant adapters`: fit personal adapters, and let their owners list, export, import and delete them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant.cli.adapter_studies import (
    AddressOption,
    ConfigOption,
    OverrideArguments,
    WorkersOption,
    adapters_evaluate,
    adapters_study,
)
from penchant.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from penchant.adapters.config import LampSettings
    from penchant.adapters.store import AdapterStore
    from penchant.runtime.training.config import WorkerSettings

adapters_app = typer.Typer(no_args_is_help=True, help="Personal adapters (OPPU): fit them, and look after the store.")
adapters_app.command("evaluate")(adapters_evaluate)
adapters_app.command("study")(adapters_study)
console = Console()

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the adapters' store.", show_default=False)]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="A user's id.", show_default=False)]
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="File with the user's key, 64 hexadecimal digits.", show_default=False)
]


@adapters_app.command("fit")
def adapters_fit(
    examples: Annotated[
        Path | None,
        typer.Option("--examples", help="Parquet: user_id, prompt, target; a user's oldest first.", show_default=False),
    ] = None,
    lamp: Annotated[
        Path | None, typer.Option("--lamp", help="Or a folder with one LaMP task's files; then --task too.", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="LaMP's name or OPPU's: LaMP_3, product_rating.")] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Gets store/ and the learning curves; with --lamp, the task base too.")
    ] = Path("runs/adapters"),
    config: ConfigOption = None,
    overrides: OverrideArguments = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Fit an adapter for every user, many at once. Run it again to go on with users who are not done.

    From a table of examples over a base that is there, or from LaMP's files: then a task base is fitted on the other users first.

    Examples:

        penchant adapters fit --examples examples.parquet base.name=runs/task-base adapter.layers=2

        penchant adapters fit --lamp my-reviews --task product_rating --out runs/reviews prompts.retrieved=1
    """
    from penchant.adapters.config import LampSettings, PersonalSettings
    from penchant.config import load_settings
    from penchant.runtime.training.config import WorkerSettings
    from penchant.runtime.training.progress import ProgressLog, show_progress

    if (examples is None) == (lamp is None) or (lamp is None) != (task is None):
        raise ConfigError(
            "Give either --examples, or --lamp and --task.", where="command line", fix="See penchant adapters fit --help."
        )
    group = WorkerSettings(num_workers=workers)
    if lamp is not None and task is not None:
        store = _fit_lamp(lamp, task, load_settings(LampSettings, config, overrides or ()), out, group, address)
    else:
        from penchant.adapters.tables import read_examples
        from penchant.runtime.cluster import start_ray
        from penchant.runtime.training.adapter_stage import PROGRESS, fit_adapters

        assert examples is not None
        settings, users = load_settings(PersonalSettings, config, overrides or ()), read_examples(examples)
        start_ray(address)
        with show_progress(console, "Adapters", ProgressLog(out / PROGRESS)):
            store = fit_adapters(users, settings, out, group)
    console.print(f"{sum(1 for _ in store.users()):,} users have an adapter in {store.folder}.", soft_wrap=True)


def _fit_lamp(
    lamp: Path, task: str, settings: LampSettings, out: Path, workers: WorkerSettings, address: str | None
) -> AdapterStore:
    from penchant.adapters.variants import Variant
    from penchant.data.lamp import find_task
    from penchant.data.lamp.reading import read_lamp
    from penchant.runtime.cluster import start_ray
    from penchant.runtime.training.lamp_run import LampRun
    from penchant.runtime.training.progress import ProgressLog, show_progress

    data = read_lamp(lamp, find_task(task))
    console.print(data)
    row = Variant(name="oppu", prompts=settings.prompts, adapter=settings.adapter)
    run = LampRun(data, settings, [row], out, workers)
    start_ray(address)
    with show_progress(console, "Adapters", ProgressLog(run.log)):
        return run.fit()[row.name]


@adapters_app.command("list")
def adapters_list(store: StoreOption) -> None:
    """Who has an adapter, and how it came to be."""
    from penchant.adapters.store import AdapterStore

    opened = AdapterStore.open(store)
    table = Table("User", "Examples", "Steps", "Loss", "Held-out loss", "Encrypted", "Created")
    count = 0
    for user in sorted(opened.users()):
        card, count = opened.card(user), count + 1
        losses = ["" if loss is None else f"{loss:.3f}" for loss in (card.loss, card.held_out_loss)]
        secret = "yes" if card.encrypted else ""
        table.add_row(escape(user), f"{card.examples:,}", f"{card.steps:,}", *losses, secret, card.created)
    console.print(table)
    console.print(f"{count:,} users.")
    for folder in opened.damaged():
        console.print(f"Damaged: {folder}. It does not say whose it is; fit its user again, or import a copy.", soft_wrap=True)


@adapters_app.command("export")
def adapters_export(
    user: UserArgument,
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="A new folder for it.", show_default=False)],
    key: KeyOption = None,
) -> None:
    """Give a user their adapter: a standard PEFT folder, which stock PEFT loads over the same base."""
    from penchant.adapters.store import AdapterStore
    from penchant.errors import OutputError

    if out.exists():
        raise OutputError("It is there already.", where=str(out), fix="Choose a new folder.")
    AdapterStore.open(store).export(user, out, key=_read_key(key))
    console.print(f"The adapter of {user!r} is in {out}.", soft_wrap=True, markup=False)


@adapters_app.command("import")
def adapters_import(
    user: UserArgument,
    folder: Annotated[Path, typer.Argument(help="A PEFT folder with safetensors.")],
    store: StoreOption,
    key: KeyOption = None,
) -> None:
    """Take an adapter in, in place of what the user has. One of another base or kind, or a damaged one, is refused."""
    from penchant.adapters.store import AdapterStore

    AdapterStore.open(store).import_folder(user, folder, key=_read_key(key))
    console.print(f"{user!r} has the adapter from {folder}.", soft_wrap=True, markup=False)


@adapters_app.command("delete")
def adapters_delete(user: UserArgument, store: StoreOption) -> None:
    """Delete a user's adapter, and everything that is kept beside it."""
    from penchant.adapters.store import AdapterStore

    if not AdapterStore.open(store).delete(user):
        raise ArtifactError(f"User {user!r} has no adapter.", where=str(store), fix="See penchant adapters list.")
    console.print(f"The adapter of {user!r} is deleted.", markup=False)


def _read_key(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return bytes.fromhex(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        raise ConfigError(
            "There is no key in this file.", where=str(path), fix="64 hexadecimal digits, as from: openssl rand -hex 32"
        ) from None
