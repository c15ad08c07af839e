"""README and the pages keep to what there is: commands parse, settings, files and what links lead to exist."""

import functools
import re
import shlex
import types
import typing
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from penchant.adapters.config import LampSettings, PersonalSettings
from penchant.cli import app
from penchant.config import load_settings
from penchant.errors import ConfigError
from penchant.runtime.jobs.settings import ScoreJob, load_job
from penchant.runtime.serving.config import ServiceSettings
from penchant.runtime.study.page import write_tables
from penchant.runtime.study.results import read_results
from penchant.runtime.training.config import FitSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HELP = sorted((ROOT / "platform" / "penchant" / "cli").glob("*.py"))
LINE = re.compile(r"\s*(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(penchant|python) (.*)")
IN_REPOSITORY = re.compile(r"(?!jobs/x.py)(recipes|tune|jobs|serve|kubernetes|benchmarks|tests|platform)/\S+\.(py|yaml|json)")
PLACEHOLDER = "1"  # what stands for COMMAND, ID or OUT: it may be a number and a text
SETTING = re.compile(r"([a-z_]+(?:\.[\w*+-]+)+)(?<!\.json)(?<!\.html)(?<!\.py)(=\S+)?")


def fenced(text: str) -> list[str]:
    """Command lines in blocks of code, with continued lines joined."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if LINE.match(line)]


def spans(text: str) -> list[str]:
    """What stands between backticks within a line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def words_of(line: str) -> tuple[str, list[str]]:
    """The program and its words, as far as the shell would hand them over."""
    program, rest = LINE.match(line).groups()
    words = shlex.split(rest, comments=True)
    end = next((at for at, word in enumerate(words) if word in {"&&", "|", "&", ";", ">", "..."}), len(words))
    return program, words[:end]


@functools.cache
def root() -> typing.Any:
    """The `penchant` command with all that is under it."""
    return typer.main.get_command(app)


def parse(words: list[str], *, whole: bool) -> None:
    """Parses a `penchant` command without running it; of one that is only spoken of, what is not said may be missing."""
    command, path = root(), []
    rest = [word for word in words if word != "--help"]
    while hasattr(command, "commands"):
        if not rest or rest[0] == PLACEHOLDER:
            assert not whole, "it names a group of commands, and none of them"
            return
        assert rest[0] in command.commands, f"there is no command {' '.join([*path, rest[0]])!r}"
        path.append(rest.pop(0))
        command = command.commands[path[-1]]
    try:
        context = command.make_context(path[-1], rest)
    except Exception as error:  # typer does not export these
        if whole or type(error).__name__ not in {"MissingParameter", "BadOptionUsage"}:
            raise
        return
    check_overrides(path, context.params)


def check_overrides(path: list[str], given: dict[str, typing.Any]) -> None:
    """Builds the settings that the command would build from its KEY=VALUE words."""
    overrides = given.get("overrides") or []
    if path == ["submit"]:
        load_job(ROOT / given["config"], overrides)
    elif path == ["serve"]:
        load_settings(ServiceSettings, overrides=["bundle=there", *overrides])
    elif path == ["score-table"]:
        load_settings(ScoreJob, overrides=overrides, values={"job": "score", "bundle": "b", "data": "d", "out": "o"})
    elif path[0] == "adapters":
        load_settings(PersonalSettings if given.get("examples") else LampSettings, overrides=overrides)
    else:
        load_settings(FitSettings, overrides=overrides)


def check_files(words: list[str]) -> None:
    """Files of the repository are there, and a benchmark knows the options that it is given."""
    for word in words:
        if IN_REPOSITORY.fullmatch(word):
            assert (ROOT / word).is_file(), f"there is no {word}"
    for at, word in enumerate(words):
        if word.startswith("benchmarks/") and word.endswith(".py"):
            source = (ROOT / word).read_text()
            unknown = [option for option in words[at + 1 :] if option.startswith("--") and f'"{option}"' not in source]
            assert not unknown, f"{word} has no {', '.join(unknown)}"


def anchors(page: Path) -> set[str]:
    """The names that GitHub, and the site, give to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_link(page: Path, target: str) -> None:
    """A link within the repository leads to a file or folder, and its anchor to a heading."""
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    assert there.exists(), f"{page.name} links to {target}, which is not there"
    assert not anchor or anchor in anchors(there), f"{page.name} links to {target}: there is no such heading"


def is_setting(model: typing.Any, keys: list[str]) -> bool:
    """Whether dotted keys lead somewhere: through groups of settings, and by any name through a mapping of them."""
    if not keys or keys == ["*"]:
        return True
    if typing.get_origin(model) in (typing.Union, types.UnionType):
        return any(is_setting(one, keys) for one in typing.get_args(model))
    if typing.get_origin(model) is dict:
        return is_setting(typing.get_args(model)[1], keys[1:])
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return False
    return keys[0] in model.model_fields and is_setting(model.model_fields[keys[0]].annotation, keys[1:])


LINES = [
    *(pytest.param(line, id=f"{page.name}: {line.strip()[:70]}") for page in PAGES for line in fenced(page.read_text())),
    *(
        pytest.param(line, id=f"{page.name}: {line.strip()[:70]}")
        for page in HELP
        for line in re.findall(r"^ +penchant .*$", page.read_text(), flags=re.MULTILINE)
    ),
]


@pytest.mark.parametrize("line", LINES)
def test_line_parses(line):
    program, words = words_of(line)
    if program == "penchant":
        parse(words, whole=True)
    elif words[0].startswith("jobs/"):
        load_job((ROOT / words[0]).with_suffix(".yaml"), words[1:])
    check_files(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_spoken_of_is_there(page):
    roots = (FitSettings, ServiceSettings, LampSettings)
    for span in spans(page.read_text()):
        if LINE.match(span) and span.startswith("penchant "):
            parse(words_of(re.sub(r"\b[A-Z]{2,}\b", PLACEHOLDER, span))[1], whole=False)
        found = SETTING.fullmatch(span)
        if found and any(found[1].split(".")[0] in model.model_fields for model in roots):
            assert any(is_setting(model, found[1].split(".")) for model in roots), f"there is no setting {found[1]!r}"
        check_files(span.split())


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target:
            check_link(page, target)


def test_the_checks_see_what_they_look_for():
    assert fenced("x\n```sh\nA=1 penchant fit \\\n  --data d  # so\nls\n```\n") == ["A=1 penchant fit    --data d  # so"]
    assert words_of("A=1 .venv/bin/penchant fit --data 'a b' && ls  # so") == ("penchant", ["fit", "--data", "a b"])
    assert spans("`a` b\n```\n`c`\n```\n`d`") == ["a", "d"]
    parse(["fit", "--data", "d", "graph.candidates.*.encoder.dim=8"], whole=True)
    parse(["fit"], whole=False)
    for wrong in (["fitt"], ["data", "chekc"], ["data"]):
        with pytest.raises(AssertionError):
            parse(wrong, whole=True)
    for wrong in (["fit"], ["fit", "--data", "d", "--expert", "1"]):
        with pytest.raises(Exception, match=r"Missing parameter|No such option"):
            parse(wrong, whole=True)
    for wrong in (["fit", "--data", "d", "graph.dim=8"], ["serve", "--bundle", "b", "scorer.replicas=2"]):
        with pytest.raises(ConfigError):
            parse(wrong, whole=True)
    for wrong in (["benchmarks/nothing.py"], ["python", "benchmarks/generation.py", "--turns", "3"]):
        with pytest.raises((AssertionError, FileNotFoundError)):
            check_files(wrong)
    for wrong in ("nowhere.md", "docs/serve.md#nothing"):
        with pytest.raises(AssertionError):
            check_link(ROOT / "README.md", wrong)
    check_link(ROOT / "README.md", "docs/serve.md#speed")
    assert is_setting(ServiceSettings, ["generator", "vllm", "adapters_uri"])
    assert is_setting(FitSettings, ["graph", "candidates", "*", "encoder", "dim"])
    assert not is_setting(FitSettings, ["graph", "candidates", "*", "dim"])


@pytest.mark.parametrize("name", ["results", "results-experts"])
def test_a_studys_page_is_drawn_from_its_numbers(name, tmp_path):
    write_tables(read_results(ROOT / "docs" / f"{name}.json"), tmp_path / "drawn.md")
    assert (tmp_path / "drawn.md").read_text(encoding="utf-8") == (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
