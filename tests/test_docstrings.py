"""Every public name has a complete numpydoc docstring."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from numpydoc.validate import validate

import skanomaly
from skanomaly import datasets, exceptions, metrics, model_selection
from skanomaly.utils._docstring import fill_in

# See also, examples and a second paragraph are welcome, but not for every method.
OPTIONAL = {"EX01", "ES01", "SA01", "SA04", "GL01"}


TREE = Path(__file__).parents[1]
MODULES = skanomaly, datasets, metrics, model_selection, exceptions


def public_objects():
    for module in MODULES:
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                yield f"{module.__name__}.{name}"
            if inspect.isclass(found):
                for method, value in vars(found).items():
                    if inspect.isfunction(value) and not method.startswith("_"):
                        yield f"{found.__module__}.{found.__qualname__}.{method}"


def test_there_is_something_to_check():
    assert len(list(public_objects())) > 20


@pytest.mark.parametrize("name", sorted(set(public_objects())))
def test_docstring_is_complete(name):
    problems = dict(validate(name)["errors"])
    assert not {k: v for k, v in problems.items() if k not in OPTIONAL}


def detectors():
    found = (getattr(skanomaly, name) for name in skanomaly.__all__)
    return [one for one in found if inspect.isclass(one) and hasattr(one, "fit")]


@pytest.mark.parametrize("cls", detectors())
def test_every_parameter_of_a_detector_is_described(cls):
    described = inspect.getdoc(cls).split("Attributes\n")[0].splitlines()
    heads = {line.partition(" : ")[0] for line in described}
    assert heads >= set(inspect.signature(cls).parameters)


def test_there_are_detectors():
    assert len(detectors()) == 6


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_are_filled_in(module):
    for name in module.__all__:
        doc = inspect.getdoc(getattr(module, name))
        assert "%(" not in doc
        assert max(map(len, doc.splitlines())) <= 88


@pytest.mark.parametrize("is_dedented", [False, True])  # as since Python 3.13
def test_marks_are_filled_in_whatever_the_indentation(is_dedented):
    def function():
        """Do something.

        Parameters
        ----------
        %(both)s
        """

    if is_dedented:
        function.__doc__ = inspect.cleandoc(function.__doc__)
    fill_in(both="a : int\n    One.\nb : int\n    Two.")(function)
    assert inspect.getdoc(function) == (
        "Do something.\n\nParameters\n----------\na : int\n    One.\nb : int\n    Two."
    )


def first_lines():
    """Yield the place and the first line of each docstring in the repository."""
    for folder in ("skanomaly", "tests", "benchmarks", "examples", "docs"):
        for path in sorted((TREE / folder).rglob("*.py")):
            if {"auto_examples", "generated"} & set(path.parts):  # of the last build
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                kinds = ast.Module | ast.ClassDef | ast.FunctionDef
                if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                    name = getattr(node, "name", "")
                    yield f"{path.relative_to(TREE)} {name}", text.splitlines()[0]


def test_docstrings_name_things():
    """A result has a name, instead of a paraphrase by a relative clause."""
    lines = list(first_lines())
    assert len(lines) > 1000
    assert not [line for line in lines if re.search(r"\bwhat\b", line[1], re.I)]
