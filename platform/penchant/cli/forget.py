"""`penchant forget`, `penchant data drop-users` and `penchant store prune`: what deletes people, and what is too old."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from penchant.artifacts import refuse_uri
from penchant.cli.serve import StoreOption, open_existing, store_url, without_password
from penchant.errors import ConfigError, DataError

if TYPE_CHECKING:
    from penchant.adapters.store import AdapterStore
    from penchant.store import UserStore

store_app = typer.Typer(no_args_is_help=True, help="Look after a service's user store.")
console = Console()
_TENANTS_NAMED = 5

UserArguments = Annotated[list[str] | None, typer.Argument(metavar="USER", help="Ids of users.", show_default=False)]
UsersOption = Annotated[
    Path | None, typer.Option("--users", metavar="FILE", help="A text file with one id a line.", show_default=False)
]


def forget(
    users: UserArguments = None,
    users_file: UsersOption = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Take them out of this bundle's seen users.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the bundle without them here, not in place of the old one.", show_default=False),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Delete them from this user store: sqlite:///path or postgresql://...", show_default=False),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", help="Whose users they are in the store; needed where it has several.", show_default=False),
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            "--adapters", help="Delete their adapters from this folder, as `penchant serve` takes it.", show_default=False
        ),
    ] = None,
) -> None:
    """Forget users: take them out of a bundle, a user store and a folder of adapters. Somebody whom none of those given knows is
    an error.

    An id means one person in each tenant: name --bundle and --adapters beside --tenant only where they are of the same tenant.

    From the bundle go their ids, their embeddings and their choices; its name changes, and everybody else's scores stay. From the
    store go their choices and all that was made of them; a hash of the id stays there, so that a service which still runs the old
    bundle does not use it for them either.

    What was learnt from them together with others stays: the weights of the models and the embeddings of responses. The next fit
    leaves them out, if its data does (`penchant data drop-users`). Not reached: the folder of the run that made the bundle, and
    copies.

    Examples:

        penchant forget user-0001 --bundle runs/demo/bundle

        penchant forget --users ids.txt --store sqlite:///runs/service/users.db --adapters runs/films/store
    """
    ids = _read_ids(users, users_file)
    if bundle is None and store is None and adapters is None:
        raise ConfigError("It is not said where to forget them.", where="forget", fix="Give --bundle, --store or --adapters.")
    for option, given, needs, needed in (("--out", out, "--bundle", bundle), ("--tenant", tenant, "--store", store)):
        if given is not None and needed is None:
            raise ConfigError(f"{option} means nothing without {needs}.", where=option, fix=f"Give {needs}, or leave it out.")
    for place in (bundle, adapters):
        if place is not None:
            refuse_uri(place)
    owner = tenant or "default"
    people = None if store is None else open_existing(store)
    held = None if adapters is None else _open_adapters(adapters)
    stored = set() if people is None else _find_stored(people, ids, tenant)
    elsewhere = stored | (set() if held is None else {user for user in ids if user in held})

    def delete() -> None:
        if held is not None:
            _say(f"Adapters deleted: {sum(held.delete(user) for user in ids):,}.")
        if people is not None:
            deleted = sum(people.forget(owner, user, remember=True) for user in ids)
            people.close()
            _say(f"The store knew {len(stored):,} of {len(ids):,} as users of tenant {owner}: {deleted:,} comparisons deleted.")

    # The store before the bundle: it remembers whom it has deleted, so that the same command finishes what fails half-way.
    # These bring torch: after what can be refused without.
    if bundle is None:
        from penchant.data.dropping import refuse_unknown

        places = [*([] if people is None else [f"tenant {owner} of the store"]), *([] if adapters is None else [str(adapters)])]
        refuse_unknown(ids, elsewhere, where=" and ".join(places))
        delete()
    else:
        from penchant.scoring.forgetting import forget_users

        left = forget_users(bundle, ids, out=out, known_elsewhere=elsewhere, before=delete)
        if left.users:
            _say(f"{_count(left.users)} taken out; without them it is bundle {left.manifest.name}, in {left.folder}.")
            old = "" if out is None else f"{bundle}, "
            _say(f"Still held by: {old}the run's folder, copies, and services until they load the new bundle.")
        else:
            _say(f"Bundle {left.manifest.name} does not hold them, and stays as it is.")


@store_app.command("prune")
def store_prune(
    older_than: Annotated[
        int, typer.Option("--older-than", metavar="DAYS", min=1, max=36500, help="How long a choice is kept.", show_default=False)
    ],
    store: StoreOption = None,
) -> None:
    """Delete what users chose longer ago than so many days, of all tenants; who has no choice left is forgotten.

    The others are onboarded again from the choices that are left.

    Example:

        penchant store prune --older-than 365 --store sqlite:///runs/service/users.db
    """
    url = store_url(store)
    instant = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=older_than)
    people = open_existing(url)
    deleted, left = people.prune(instant), people.counts()
    people.close()
    _say(
        f"Deleted: {deleted:,} comparisons from before {instant:%Y-%m-%d %H:%M} UTC. "
        f"Left: {left.comparisons:,}, of {left.users:,} users, in {without_password(url)}."
    )


def data_drop_users(
    folder: Annotated[Path, typer.Argument(help="A data set's folder.")],
    out: Annotated[Path, typer.Argument(help="Folder of the data set without them.")],
    users: UserArguments = None,
    users_file: UsersOption = None,
) -> None:
    """Copy a data set without some users, so that the next fit leaves them out. Responses that only they were shown go too.

    Example:

        penchant data drop-users my-data my-data-2 user-0001 user-0002
    """
    from penchant.data.dropping import drop_users

    _say(drop_users(folder, out, _read_ids(users, users_file)))


def _find_stored(people: UserStore, users: list[str], tenant: str | None) -> set[str]:
    """Those whom the store knows as users of the tenant, also as forgotten ones: a command that was interrupted is repeated.

    The bundle's users whom it does not know are no mistake, since a service must learn to leave them alone. But one that knows
    nobody of them, nor the tenant, is another store than was meant, or they are another tenant's.

    Raises:
        ConfigError: The store has several tenants, and it is not said which.
        DataError: It knows none of the users, and nothing of the tenant.
    """
    tenants = people.tenants()
    if tenant is None and len(tenants) > 1:
        raise ConfigError(
            f"The store has users or keys of several tenants: {_named(tenants)}.",
            where="--tenant",
            fix="Say whose users they are. Nothing was changed.",
        )
    owner = tenant or "default"
    stored = {user for user in users if people.user(owner, user) is not None}
    if not stored and owner not in tenants:
        raise DataError(
            f"The store knows none of them, and nobody else of tenant {owner}.",
            where=f"tenant {owner} of the store",
            fix=f"Check --store and --tenant: it has {_named(tenants) or 'no tenant'}. Nothing was changed.",
        )
    return stored


def _named(tenants: list[str]) -> str:
    more = f" and {len(tenants) - _TENANTS_NAMED:,} more" if len(tenants) > _TENANTS_NAMED else ""
    return ", ".join(tenants[:_TENANTS_NAMED]) + more


def _open_adapters(folder: Path) -> AdapterStore:
    from penchant.adapters.store import AdapterStore

    return AdapterStore.open(folder)


def _read_ids(users: list[str] | None, file: Path | None) -> list[str]:
    """The ids that were given, each once."""
    ids = list(users or [])
    if file is not None:
        try:
            ids += [line for line in file.read_text(encoding="utf-8").split("\n") if line]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"It cannot be read ({error}).", where=str(file), fix="Give a text file, one id a line.") from None
    if not ids:
        raise ConfigError("There is no user.", where="USER", fix="Give ids, or --users with a file of them.")
    return list(dict.fromkeys(ids))


def _count(users: list[str]) -> str:
    return "1 user is" if len(users) == 1 else f"{len(users):,} users are"


def _say(sentence: str) -> None:
    console.print(sentence, markup=False, soft_wrap=True, highlight=False)
