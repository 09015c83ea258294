"""Types of data sets and of the functions that load them, for type checkers.

scikit-learn has no annotations: for a checker everything in its Bunch is of any type.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    class Bunch(dict[str, Any]):
        """A dict whose keys are attributes too."""

else:
    from sklearn.utils import Bunch

DataHome = str | os.PathLike[str] | None
Subset = Literal["train", "test", "all"]
RandomState = int | np.random.RandomState | None

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Kinds = NDArray[Any]
ClassLabels = str | int | float | np.generic | Sequence[Any] | Set[Any] | NDArray[Any]


class Sized(Protocol):
    """Arrays and data frames."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """The number of samples comes first."""


#: The type of a set of samples, which a protocol returns as it was given.
Samples = TypeVar("Samples", bound=Sized)
Split = tuple[Samples, Samples, Labels, Labels]
SplitWithKinds = tuple[Samples, Samples, Labels, Labels, Kinds, Kinds]


class LabelledBunch(Bunch):
    """Samples with their labels."""

    target: Labels
    DESCR: str
    filename: str


class ImageBunch(LabelledBunch):
    """Images with their classes."""

    data: Images
    target_names: list[str]


class TinyImageNetBunch(ImageBunch):
    """Images with the WordNet ids of their classes."""

    class_ids: list[str]


class VideoBunch(LabelledBunch):
    """Frames with the numbers of their videos."""

    data: Images
    videos: Labels


class TableBunch(LabelledBunch):
    """A table."""

    data: NDArray[np.float32] | NDArray[np.float64]
    feature_names: list[str]
    frame: None


class FrameBunch(Bunch):
    """A table in pandas objects."""

    data: pd.DataFrame
    target: pd.Series
    feature_names: list[str]
    frame: pd.DataFrame
    DESCR: str
    filename: str


B = TypeVar("B", bound=Bunch, covariant=True)


class Loader(Protocol[B]):
    """A function that loads the parts of an official split."""

    @overload
    def __call__(
        self,
        *,
        subset: Subset = ...,
        data_home: DataHome = ...,
        download_if_missing: bool = ...,
        return_X_y: Literal[False] = ...,
    ) -> B: ...
    @overload
    def __call__(
        self,
        *,
        subset: Subset = ...,
        data_home: DataHome = ...,
        download_if_missing: bool = ...,
        return_X_y: Literal[True],
    ) -> tuple[Images, Labels]: ...
    @overload
    def __call__(
        self,
        *,
        subset: Subset = ...,
        data_home: DataHome = ...,
        download_if_missing: bool = ...,
        return_X_y: bool,
    ) -> B | tuple[Images, Labels]: ...
