"""Kinds of data: tables, images and clips, each declared once.

A detector names the kinds it takes as the keys of its ``_auto_values``. A further kind,
such as windows of time series, is another instance of :class:`Kind`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CLIP", "IMAGE", "TABLE", "ByKind", "Kind", "kind_of"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of data: the axes of a sample, and the defaults that go with them.

    Attributes
    ----------
    name : str
        Plural noun for messages.
    axes : tuple of str
        Axes of a sample. With more than one, the first are the channels.
    family : {"mlp", "conv"}
        Networks that take such samples.
    scaling : {"minmax", "standard"}
        Value of ``scaling="auto"``.
    n_estimators : int
        Value of ``n_estimators="auto"``, if samples are small enough.
    far_out : float
        Distance beyond the range of the training data from which a value makes a sample
        an outlier, in halves of the width of the range. It is larger for columns, which
        may have heavy tails, than for pixels, which have bounds.
    units : str
        Name of the elements along the sides, for messages.
    least_side : int
        Minimum number of elements along each side, for the networks.
    like : Kind or None
        The kind whose settings hold where a detector has none for this kind.
    """

    name: str
    axes: tuple[str, ...]
    family: Literal["mlp", "conv"]
    scaling: Literal["minmax", "standard"]
    n_estimators: int
    far_out: float
    units: str = ""
    least_side: int = 1
    like: Kind | None = None

    @property
    def ndim(self) -> int:
        """Dimensions of an array of samples."""
        return 1 + len(self.axes)

    @property
    def has_channels(self) -> bool:
        """Whether a sample has channels and sides, and not columns."""
        return len(self.axes) > 1

    @property
    def shape(self) -> str:
        """Shape of an array of samples, for messages."""
        return f"(n_samples, {', '.join(self.axes)})"

    def setting(self, name: str, *tables: ByKind) -> Any:
        """Return a setting for this kind, or for the kind it is like.

        Parameters
        ----------
        name : str
            The setting.
        *tables : mapping of Kind to mapping of str to object
            Settings by kind. The first table that has the setting counts.

        Raises
        ------
        KeyError
            If no table has it.
        """
        for table in tables:
            kind: Kind | None = self
            while kind is not None:
                if name in table.get(kind, {}):
                    return table[kind][name]
                kind = kind.like
        raise KeyError(name)


#: Settings by kind and name.
ByKind = Mapping[Kind, Mapping[str, Any]]

TABLE = Kind(
    name="tables",
    axes=("n_features",),
    family="mlp",
    scaling="standard",
    n_estimators=8,
    far_out=100.0,
)
IMAGE = Kind(
    name="images",
    axes=("channels", "height", "width"),
    family="conv",
    scaling="minmax",
    n_estimators=1,
    far_out=1.0,
    units="pixels",
    least_side=4,
)
CLIP = Kind(
    name="clips",
    axes=("channels", "frames", "height", "width"),
    family="conv",
    scaling="minmax",
    n_estimators=1,
    far_out=1.0,
    units="frames and pixels",
    least_side=4,
    like=IMAGE,
)


def kind_of(ndim: int, kinds: Iterable[Kind]) -> Kind | None:
    """Return the kind whose arrays have `ndim` dimensions, None if there is none.

    Parameters
    ----------
    ndim : int
        Dimensions of an array of samples.
    kinds : iterable of Kind
        To choose from.
    """
    return next((kind for kind in kinds if kind.ndim == ndim), None)
