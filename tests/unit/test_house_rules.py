"""The house rules, as tests: imports point one way, names and files are where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from penchant.runtime.jobs.settings import load_job

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "platform" / "penchant"
ORDER = [
    "errors",
    "config",
    "artifacts",
    "tensors",
    "storage",
    "client",
    "data",
    "store",
    "backbone",
    "graph",
    "reward",
    "adapters",
    "methods",
    "scoring",
    "evaluation",
    "runtime",
    "cli",
]
APART = {"graph", "reward", "adapters"}
NEVER = {("methods", "graph"), ("methods", "adapters"), ("scoring", "methods")}
MODULES = sorted(LIBRARY.rglob("*.py"))


def room(path: Path) -> str:
    part = path.relative_to(LIBRARY).parts[0]
    return part.removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_arrows(own: str, tree: ast.AST) -> list[str]:
    wrong = []
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] == "ray" and own != "runtime":
            wrong.append(name)
        if parts[0] != "penchant" or len(parts) < 2 or parts[1] not in ORDER:
            continue
        other = parts[1]
        if other != own and (ORDER.index(other) > ORDER.index(own) or {own, other} <= APART or (own, other) in NEVER):
            wrong.append(name)
    return wrong


def undocumented(tree: ast.Module) -> list[str]:
    missing = [] if ast.get_docstring(tree) else ["module"]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")

    visit(tree.body, "")
    return missing


def forbidden(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [name for name in imported(tree) if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib"}]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = node.func.value
        if isinstance(owner, ast.Name) and owner.id == "torch" and node.func.attr in {"save", "load"}:
            found.append(f"torch.{node.func.attr}")
        if node.func.attr == "log" and isinstance(owner, ast.Call) and getattr(owner.func, "attr", "") == "sigmoid":
            found.append("sigmoid().log()")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_module_keeps_the_rules(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    if path.parent != LIBRARY or path.name != "__init__.py":
        assert wrong_arrows(room(path), tree) == []
    assert undocumented(tree) == []
    assert forbidden(source) == []
    assert source.count("\n") <= 400
    assert path.name not in {"utils.py", "types.py", "helpers.py"}


def test_the_checkers_see_what_they_look_for():
    assert wrong_arrows("graph", ast.parse("from penchant.reward.heads import RewardHead"))
    assert wrong_arrows("data", ast.parse("import penchant.scoring.model"))
    assert wrong_arrows("scoring", ast.parse("import ray.train"))
    assert wrong_arrows("methods", ast.parse("from penchant.graph.encoder import GraphEncoder"))
    assert not wrong_arrows("methods", ast.parse("from penchant.reward.heads import RewardHead"))
    assert not wrong_arrows("scoring", ast.parse("from penchant.graph.encoder import GraphEncoder"))
    assert undocumented(ast.parse('"""m"""\ndef public(): pass\nclass A:\n    """a"""\n    def b(self): pass')) == [
        "public",
        "A.b",
    ]
    assert forbidden("import pickle") == ["pickle"]
    assert forbidden("torch.load(path)") == ["torch.load"]
    assert forbidden("x.sigmoid().log()") == ["sigmoid().log()"]


@pytest.mark.parametrize("folder", ["platform", "jobs", "tune", "serve", "tests"])
def test_folder_is_no_package(folder):
    assert not (ROOT / folder / "__init__.py").exists()
    if folder == "tests":
        assert not list((ROOT / folder).rglob("__init__.py"))


def test_platform_is_still_the_standard_library():
    code = "import platform; assert platform.system(); assert 'penchant' not in (platform.__file__ or '')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


LAUNCHERS = sorted((ROOT / "jobs").glob("*.py"))


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launcher_is_short_and_has_its_settings_beside_it(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") < 80
    assert (ast.get_docstring(ast.parse(source)) or "").count(f"jobs/{path.stem}.") == 3, "it says how to run it, three ways"
    assert load_job(path.with_suffix(".yaml")).job == path.stem


def test_there_are_launchers():
    assert len(LAUNCHERS) >= 5
