"""Every public name has a complete numpydoc docstring."""

import inspect

import pytest
from numpydoc.validate import validate

import skanomaly
from skanomaly import datasets, exceptions, metrics, model_selection

# See also, examples and a second paragraph are welcome, but not for every method.
OPTIONAL = {"EX01", "ES01", "SA01", "SA04", "GL01"}


def public_objects():
    for module in (skanomaly, datasets, metrics, model_selection, exceptions):
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


@pytest.mark.parametrize("name", ["AABiGAN", "HistoryAD", "TransferAD"])
def test_every_parameter_of_a_detector_is_described(name):
    cls = getattr(skanomaly, name)
    described = cls.__doc__.split("Attributes\n")[0]
    for parameter in inspect.signature(cls).parameters:
        assert f"    {parameter} : " in described
    assert "%(" not in cls.__doc__
    assert max(map(len, cls.__doc__.splitlines())) <= 88
