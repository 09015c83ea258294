"""Writes one page per public object, and the tables that list them.

The public objects are the names in ``__all__`` of each module, so that a new estimator
has its page without a change here.
"""

import inspect
from importlib import import_module
from pathlib import Path

import skanomaly
from skanomaly._base import BaseDeepDetector

MODULES = {
    "skanomaly.datasets": "Data sets and protocols",
    "skanomaly.metrics": "Scores and displays",
    "skanomaly.model_selection": "Cross-validation and searches",
    "skanomaly.exceptions": "Errors and warnings",
}
DETECTORS = "Detectors (``skanomaly``)"
DECISIONS = "Decisions and explanations (``skanomaly``)"
EXPLANATIONS = "explain", "score_module"
FILES = "Files and versions (``skanomaly``)"


def write(folder: Path, templates: Path) -> None:
    """Write ``<name>.rst`` for every public object, and ``api_tables.inc``."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = public_objects()
    pages = {
        f"{name}.rst": page(name, templates) for s in sections.values() for name in s
    }
    pages["api_tables.inc"] = "\n".join(tables(sections))
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for file, text in pages.items():
        write_if_new(folder / file, text)


def public_objects() -> dict[str, list[str]]:
    """Return the names of all public objects, by section."""
    sections: dict[str, list[str]] = {DETECTORS: [], DECISIONS: [], FILES: []}
    for name in skanomaly.__all__:
        value = getattr(skanomaly, name)
        if inspect.isclass(value) and issubclass(value, BaseDeepDetector):
            sections[DETECTORS].append(f"skanomaly.{name}")
        elif inspect.isclass(value) or name in EXPLANATIONS:
            sections[DECISIONS].append(f"skanomaly.{name}")
        elif callable(value):
            sections[FILES].append(f"skanomaly.{name}")
    for module, about in MODULES.items():
        sections[f"{about} (``{module}``)"] = [
            f"{module}.{n}" for n in import_module(module).__all__
        ]
    return sections


def tables(sections):
    """Yield the reStructuredText of each section: its title and its table."""
    for title, names in sections.items():
        rows = "\n".join(f"   ~{name}" for name in names)
        options = "   :toctree: generated\n   :nosignatures:\n"
        yield f"{title}\n{'-' * len(title)}\n\n.. autosummary::\n{options}\n{rows}\n"


def page(full_name: str, templates: Path) -> str:
    """Return the page of one object, after the template of its kind."""
    module, name = full_name.rsplit(".", 1)
    value = getattr(import_module(module), name)
    kind = "function"
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
    elif not inspect.isfunction(value):
        kind = "data"
    template = (templates / f"{kind}.rst").read_text()
    return template.format(
        name=name,
        module=module,
        full_name=full_name,
        underline="=" * len(name),
        members=", ".join(own_methods(value)) if kind == "class" else "",
    )


def own_methods(cls: type) -> list[str]:
    """Return the public methods of this package's classes, in the order of the source.

    Methods of scikit-learn's bases are left out: they refer to pages of scikit-learn.
    """
    names = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("skanomaly"):
            names |= dict.fromkeys(vars(base))
    attributes = {n: inspect.getattr_static(cls, n) for n in names if n[0] != "_"}
    methods = (classmethod, staticmethod)
    return [
        name
        for name, value in attributes.items()
        if inspect.isfunction(value) or isinstance(value, methods)
    ]


def write_if_new(path: Path, text: str) -> None:
    """Write a text that has changed: Sphinx reads all files that are new."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
