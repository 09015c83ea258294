"""The architecture holds: imports run downwards, gradients are taken in one file."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "skanomaly"
FILES = sorted(PACKAGE.rglob("*.py"))
# From top to bottom: a file may import those on later lines.
LAYERS = [
    {"__init__"},
    {"_persistence", "export"},
    {"methods"},
    {"_base", "_mixins"},
    {
        *("_batches", "_checkpoints", "_input", "_parameters", "_progress"),
        *("_thresholds", "_mahalanobis"),
    },
    {"engine", "networks", "objectives"},
    {"metrics"},
    {"calibration", "datasets", "explanation", "model_selection"},
    {"_conformal"},
    {"utils", "exceptions", "_version"},
]


def package_of(path):
    """Return the name of a file's package, and its layer, counted from the top."""
    name = path.relative_to(PACKAGE).with_suffix("").parts[0]
    known = next((k for k, names in enumerate(LAYERS) if name in names), None)
    return (name, known) if known is not None else ("methods", 2)


def imported(path):
    """Yield every module of the package that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
            parts = path.relative_to(PACKAGE).parts[: -node.level]
            module = "/".join([*parts, *(node.module or "").split(".")]).strip("/")
            if module:
                yield module
            else:
                yield from (alias.name for alias in node.names)


def test_discovery_finds_the_files():
    assert {"_net.py", "_base.py", "_networks.py"} <= {f.name for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    package, layer = package_of(path)
    for module in imported(path):
        target, below = package_of(PACKAGE / f"{module}.py")
        own_package = path.parent != PACKAGE and module.startswith(path.parent.name)
        if target == package == "methods" and not own_package:
            pytest.fail(f"{path.name} imports another method: {module}")
        assert below > layer or target == package, f"{path.name} imports {module}"
        if layer == below == LAYERS.index({"engine", "networks", "objectives"}):
            assert target == package or package == "engine", module


def test_import_chains_are_short_and_without_cycles():
    known = {f.relative_to(PACKAGE).with_suffix("").as_posix(): f for f in FILES}
    lengths = {}

    def below(module, above=()):
        assert module not in above, [*above, module]
        if module not in lengths:
            found = {m for m in imported(known[module]) if m in known}
            chains = (below(m, (*above, module)) for m in found)
            lengths[module] = 1 + max(chains, default=0)
        return lengths[module]

    assert max(below(module) for module in known) <= 6


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_gradients_are_taken_in_the_engine_alone(path):
    taken = re.findall(r"\.backward\(|\.step\(|autograd\.grad\(", path.read_text())
    assert not taken or path == PACKAGE / "engine" / "_net.py"


@pytest.mark.parametrize(
    "package",
    ["calibration", "datasets", "explanation", "metrics", "model_selection"],
)
def test_data_and_metrics_need_no_torch(package):
    files = [path for path in FILES if package_of(path)[0] == package]
    assert files
    for path in files:
        assert not re.search(
            r"^\s*(import|from) (torch|skorch)", path.read_text(), re.M
        )


def test_private_imports_of_scikit_learn_stand_in_one_file():
    pattern = re.compile(r"from sklearn(\.\w+)*\._|from sklearn\S* import \(?\s*_")
    for path in FILES:
        if path.name != "_sklearn_compat.py":
            assert not pattern.search(path.read_text()), path


def code_lines(node, source_lines):
    docstrings = set()
    for part in ast.walk(node):
        body = getattr(part, "body", None)
        value = None
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
        elif isinstance(part, ast.keyword) and part.arg == "doc":
            value = part.value  # of a parameter
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            docstrings |= set(range(value.lineno, value.end_lineno + 1))
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", None)
    numbered = enumerate(source_lines, 1)
    return sum(
        first <= k <= (last or k) and k not in docstrings and is_code(line)
        for k, line in numbered
    )


def is_code(line):
    return bool(line.strip()) and not line.strip().startswith("#")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path):
    tree, lines = ast.parse(path.read_text()), path.read_text().splitlines()
    assert code_lines(tree, lines) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(node, lines) <= 50, node.name
