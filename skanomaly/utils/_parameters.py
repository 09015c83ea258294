"""Parameters of estimators, each declared once: type, default, constraints, doc.

A parameter is a field of its class, with an annotation for type checkers. The
constructor, scikit-learn's ``_parameter_constraints`` and the documentation are made of
these fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, Signature, signature
from operator import is_not
from textwrap import fill
from typing import Any, ClassVar, Literal, dataclass_transform
from weakref import WeakKeyDictionary

__all__ = ["Auto", "Declared", "entry", "parameter", "parameter_entries"]

#: The value of a parameter that is chosen by the data.
Auto = Literal["auto"]

#: Values of all parameters that were valid, by an object that lives as long as they do.
_VALID: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()

#: Words of the documentation for parts of annotations.
_WORDS = {
    "Auto": '"auto"',
    "RandomState": "RandomState instance",
    "Memory": "joblib.Memory",
    "tuple[int, ...]": "tuple of int",
    "list[Callback]": "list of skorch.callbacks.Callback",
    "dict[str, Callable]": "dict",
}


def parameter(
    constraints: Iterable[Any], *, default: Any, doc: str, type_text: str = ""
) -> Any:
    """Return the declaration of a parameter.

    Parameters
    ----------
    constraints : iterable
        Constraints as scikit-learn's ``validate_params`` takes them.
    default : object
        Immutable.
    doc : str
        A paragraph for the documentation. ``{name}`` in it is filled in by
        :func:`~skanomaly.utils._docstring.describe`.
    type_text : str
        Type for the documentation, if the annotation does not describe it well.
    """
    about = {"constraints": list(constraints), "doc": doc, "type_text": type_text}
    return field(default=default, metadata=about)


@dataclass_transform(
    kw_only_default=True, eq_default=False, field_specifiers=(parameter,)
)
class Declared:
    """Base of estimators whose parameters are fields.

    A subclass declares its own parameters. ``name: type = value`` changes the default
    of an inherited one.
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Create the constructor and the constraints."""
        super().__init_subclass__(**options)
        inherited = dict(getattr(cls, "__dataclass_fields__", {}))
        has_own_constructor = "__init__" in vars(cls)
        constraints = vars(cls).get("_parameter_constraints", {})
        dataclass(kw_only=True, repr=False, eq=False)(cls)
        fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
        for name in inherited.keys() & fields.keys():
            if not fields[name].metadata:
                fields[name].metadata = inherited[name].metadata
        cls._parameter_constraints = {
            name: one.metadata["constraints"]
            for name, one in fields.items()
            if one.metadata
        } | constraints
        if not has_own_constructor:
            _put_own_parameters_first(cls, inherited)

    def _validate_changed_params(self, fitted: object) -> None:
        """Check the parameters, unless they are those of the last check.

        A check takes as long as a small network. `fitted` is an object that a fit
        creates, such as a net.
        """
        values = [vars(self).get(name) for name in self._parameter_constraints]
        if any(map(is_not, values, _VALID.get(fitted, [None]))):
            self._validate_params()  # type: ignore[attr-defined]
            _VALID[fitted] = values


def _put_own_parameters_first(cls, inherited):
    """Order the signature for readers: parameters of the class before common ones."""
    self, *rest = signature(cls.__init__).parameters.values()
    rest = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in rest]
    order = [p for p in rest if p.name not in inherited]
    order += [p for p in rest if p.name in inherited]
    cls.__init__.__signature__ = Signature([self, *order])


def parameter_entries(cls: type, values: Mapping[str, str]) -> list[str]:
    """Return numpydoc's entry for each parameter of a class.

    Parameters
    ----------
    cls : type
        A class with declared parameters.
    values : mapping of str to str
        Replacements for ``{name}`` in their text.
    """
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return [_described(fields[name], values) for name in signature(cls).parameters]


def entry(head: str, text: str) -> str:
    """Return an entry of a docstring.

    Parameters
    ----------
    head : str
        Name and type.
    text : str
        A paragraph.
    """
    body = fill(
        " ".join(text.split()),
        84,
        initial_indent=" " * 4,
        subsequent_indent=" " * 4,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{head}\n{body}"


def _described(declared, values):
    about, default = declared.metadata, declared.default
    words, text = about["type_text"] or _in_words(declared.type), about["doc"]
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    head = f"{declared.name} : {words}, default={default!r}"
    return entry(head.replace("'", '"'), text)


def _in_words(annotation):
    """Return an annotation as numpydoc writes types: 'int or "auto"'."""
    *first, last = (_word(part.strip()) for part in annotation.split("|"))
    return f"{', '.join(first)} or {last}" if first else last


def _word(part):
    if part.startswith("Literal["):
        return "{" + part.removeprefix("Literal[").removesuffix("]") + "}"
    return _WORDS.get(part, part)
