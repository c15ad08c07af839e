"""`penchant serve`, `penchant keys` and `penchant data export`: the service and its store."""

from __future__ import annotations

import datetime
import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant.artifacts import Manifest
from penchant.errors import ConfigError, OutputError

keys_app = typer.Typer(no_args_is_help=True, help="Keys to the service: make, list, revoke.")
console = Console()

StoreOption = Annotated[
    str | None, typer.Option("--store", help="User store: sqlite:///path or postgresql://user@host/database.", show_default=False)
]


def store_url(given: str | None) -> str:
    """The store that was named, or that of `PENCHANT_STORE`, or the default."""
    from penchant.runtime.serving.config import default_store

    return given or default_store()


def serve(
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="The bundle/ folder that `penchant fit` left, or its URI.", show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Also write, by this base: a folder or a hub id. Needs --adapters.", show_default=False)
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="The store/ folder that `penchant adapters fit` left.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on for HTTP; this machine alone by default.")] = "127.0.0.1",
    store: StoreOption = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML of service settings.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as scorer.max_replicas=2.", show_default=False),
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
    haproxy: Annotated[
        bool, typer.Option("--haproxy", help="Ray's HAProxy in front: faster, but its statistics listen on every interface.")
    ] = False,
) -> None:
    """Serve a bundle: scores, rankings and onboarding over HTTP, and a page to try it on. Ctrl-C stops it.

    With a base and a store of adapters, OpenAI's clients get answers in each user's own voice, with or without a bundle.

    Example:

        penchant serve --bundle runs/demo/bundle

        penchant serve --base runs/task-base --adapters runs/adapters/store
    """
    from penchant.config import load_settings
    from penchant.runtime.serving.config import ServiceSettings
    from penchant.runtime.serving.environment import prepare_environment
    from penchant.storage import absolute, local_copy
    from penchant.store import UserStore

    given = {
        "bundle": absolute(bundle) if bundle is not None else None,
        "generator.base": base if base is None or not Path(base).is_dir() else absolute(base),
        "generator.adapters": absolute(adapters) if adapters is not None else None,
        "store": store,
    }
    settings = load_settings(ServiceSettings, config, overrides or (), given=given)
    settings = settings.model_copy(update={"store": _absolute(settings.store)})
    name = None if settings.bundle is None else Manifest.read(local_copy(settings.bundle), verify=True).name
    UserStore.open(settings.store).close()
    prepare_environment(haproxy=haproxy)
    with console.status("Starting"):
        from penchant.runtime.serving.running import run_service  # brings torch and Ray: after everything that can be refused

        service = run_service(settings, host=host, port=port, address=address)
    # What stops a service in a container is SIGTERM, which should be as clean as Ctrl-C. Ray has set a handler of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _print_welcome(service.url, service.cluster, _new_key(settings), settings, name)
        service.wait()
    except KeyboardInterrupt:
        console.print("Stopping.")
    finally:
        service.stop()


def roll(
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="The new bundle's folder, or its URI.", show_default=False)
    ] = None,
    canary: Annotated[
        float | None, typer.Option(help="Give it to this share of the users alone, such as 0.1.", show_default=False)
    ] = None,
    end_canary: Annotated[bool, typer.Option("--end-canary", help="All users have the present bundle again.")] = False,
    address: Annotated[
        str, typer.Option(help="The Ray cluster that the service runs on, as `serve` printed it; `auto` finds the latest here.")
    ] = "auto",
) -> None:
    """Give a running service another bundle, without a request that fails. Onboarded users carry over.

    The bundle has to pass its self-test first; one that does not changes nothing.

    Example:

        penchant roll --bundle runs/next/bundle --canary 0.1   # a tenth of the users, always the same ones

        penchant roll --bundle runs/next/bundle                # everybody

        penchant roll --bundle runs/demo/bundle                # back again
    """
    if end_canary == (bundle is not None):
        raise ConfigError("Give --bundle or --end-canary.", where="penchant roll", fix="See --help.")
    if canary is not None and not 0 < canary < 1:
        raise ConfigError(f"A share lies between 0 and 1, not {canary:g}.", where="--canary", fix="Give 0.1 for a tenth.")
    if bundle is not None:
        from penchant.storage import local_copy

        Manifest.read(local_copy(bundle))  # its files' digests are part of the self-test
    with console.status("Rolling"):
        from penchant.runtime.serving.rolling import roll as roll_bundle  # brings torch and Ray

        rolled = roll_bundle(bundle, canary_share=canary, address=address)
    for name, settings in (("before", rolled.before), ("now", rolled.after)):
        tried = f", and {settings.canary.bundle} for {settings.canary.share:.0%} of the users" if settings.canary else ""
        console.print(f"{name}: {settings.bundle or 'no bundle'}{tried}", markup=False, soft_wrap=True, highlight=False)


def _new_key(settings: Any) -> str:
    from penchant.store import UserStore

    # A key of its own for every start: secrets are stored hashed, so an old one cannot be printed again.
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=7)
    users = UserStore.open(settings.store)
    _, secret = users.create_key(settings.tenant, ["score", "onboard", "admin"], name="penchant serve", expires=expires)
    users.close()
    return secret


def _print_welcome(url: str, cluster: str, secret: str, settings: Any, bundle: str | None) -> None:
    scoring = {
        "user": "user-0001",
        "prompt": "Explain tides.",
        "responses": ["The moon pulls on the sea.", "Step one: look up."],
    }
    lines = [f"Users in {without_password(settings.store)}", f"key: {secret}"]
    if bundle is not None:
        lines = [
            f"Bundle {bundle} at {url}; users in {without_password(settings.store)}",
            f"roll: penchant roll --address {cluster} --bundle NEW",
            f"key: {secret}",
            f"page: {url}/#key={secret}",
            f"try:  {_curl(f'{url}/v1/score', secret, scoring)}",
        ]
    if settings.generator is not None:
        model = settings.generator.model
        chat = {"model": model, "user": "user-0001", "messages": [{"role": "user", "content": "Explain tides."}]}
        lines += [
            f"Model {model} ({settings.generator.base}) for OpenAI's clients at {url}/v1",
            f"chat: {_curl(f'{url}/v1/chat/completions', secret, chat)}",
        ]
    for line in [*lines, f"docs: {url}/docs", "The key is good for a week. Ctrl-C stops."]:
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _curl(url: str, secret: str, body: dict[str, Any]) -> str:
    headers = (f"Authorization: Bearer {secret}", "content-type: application/json")
    return shlex.join(["curl", "-s", url, *(part for header in headers for part in ("-H", header)), "-d", json.dumps(body)])


def without_password(url: str) -> str:
    """A store's URL as it may be shown. A password may stand before the host and among the parameters."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        return "the store's URL"
    return address.set(query={}).render_as_string() + ("?***" if address.query else "")


def _absolute(url: str) -> str:
    """A SQLite URL with a path that holds in whatever folder a replica runs."""
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url.startswith(prefix + "/") or url == prefix:
        return url
    return prefix + str(Path(url.removeprefix(prefix)).resolve())


@keys_app.command("create")
def keys_create(
    scope: Annotated[
        list[str] | None, typer.Option(help="score, onboard or admin; give it several times. Default: score and onboard.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose users the key reaches.")] = "default",
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Days until it expires; never by default.")] = None,
    store: StoreOption = None,
) -> None:
    """Make a key, and print it: the store keeps its hash alone, so it cannot be shown again.

    Example:

        penchant keys create --scope score --tenant acme --days 90
    """
    scopes = scope or ["score", "onboard"]
    for one in scopes:
        if one not in ("score", "onboard", "admin"):
            raise ConfigError(f"There is no scope {one!r}.", where="--scope", fix="Give score, onboard or admin.")
    from penchant.store import UserStore

    expires = None if days is None else datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    url = store_url(store)
    # A relative path depends on the folder: a key in a store that nobody serves from opens nothing, and would not say why.
    new = "a new store, " if _is_absent(url) else ""
    users: Any = UserStore.open(url)
    record, secret = users.create_key(tenant, scopes, name=name, expires=expires)
    users.close()
    _say(f"Key {record.id} for tenant {tenant}: {', '.join(record.scopes)}; in {new}{without_password(_absolute(url))}.")
    _say("It is shown this once:")
    _say(secret)


@keys_app.command("list")
def keys_list(store: StoreOption = None) -> None:
    """Keys, without their secrets."""
    table = Table("Id", "Tenant", "Scopes", "Name", "Created", "Expires", "Revoked", title="Keys")
    for key in open_existing(store_url(store)).list_keys():
        instants = [instant.strftime("%Y-%m-%d %H:%M") if instant else "-" for instant in (key.created, key.expires, key.revoked)]
        table.add_row(str(key.id), escape(key.tenant), ", ".join(key.scopes), escape(key.name), *instants)
    console.print(table)


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[int, typer.Argument(help="Its id, as `penchant keys list` shows it.")], store: StoreOption = None
) -> None:
    """Revoke a key; it is refused from the next request on."""
    record = open_existing(store_url(store)).revoke_key(key)
    console.print(f"Key {record.id} of tenant {escape(record.tenant)} is revoked.")


def export(
    out: Annotated[Path, typer.Argument(help="The data set's folder; it must not be there yet.")],
    store: StoreOption = None,
    tenant: Annotated[
        str | None, typer.Option(help="This tenant's users alone; with all of them, ids become tenant/user.", show_default=False)
    ] = None,
) -> None:
    """Make a data set of the choices that a service has stored, to fit the next bundle on.

    Example:

        penchant data export online --store sqlite:///runs/service/users.db --tenant default
    """
    from penchant.data.importers.trl import import_rows

    url = store_url(store)
    people, left_out = open_existing(url), 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal left_out
        for choice in people.export(tenant):
            user = choice.user if tenant is not None else f"{choice.tenant}/{choice.user}"
            texts = {"prompt": choice.prompt, "chosen": choice.chosen, "rejected": choice.rejected}
            # A data set's texts are stripped. The service refuses what is no choice then, and may have stored it before it did.
            if not all(text.strip() for text in texts.values()) or choice.chosen.strip() == choice.rejected.strip():
                left_out += 1
            else:
                yield {"user_id": user, **texts, "timestamp": choice.created}

    console.print(import_rows(rows(), out, source=without_password(url)), soft_wrap=True)
    if left_out:
        console.print(f"Left out: {left_out:,} whose texts are blank, or the same but for white space around them.")


def open_existing(url: str) -> Any:
    """A store that is there: opening one makes it, and nobody wants to read or delete from an empty one that a slip has made.

    Raises:
        OutputError: It is not there.
    """
    from penchant.store import UserStore

    if _is_absent(url):
        raise OutputError("There is no store.", where=without_password(url), fix="Check --store, or PENCHANT_STORE.")
    return UserStore.open(url)


def _is_absent(url: str) -> bool:
    """Whether it is a SQLite file that is not there yet; of a server this is not known."""
    path = url.removeprefix("sqlite:///")
    return path != url and not Path(path).is_file()


def _say(sentence: str) -> None:
    console.print(sentence, markup=False, soft_wrap=True, highlight=False)
