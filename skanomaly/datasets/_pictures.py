"""Pictures in files, which Pillow reads: a folder of images, and helpers for frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._types import Images

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFile import ImageFile

Range = tuple[float, float]

_UNREADABLE = "damaged, or no picture that Pillow reads"
_GREY = ("1", "L", "LA", "La")  # modes of at most 8 bits
# The tag of TIFF for the kind of a page, and its bit for reduced copies of another.
_SUBFILE_TYPE, _REDUCED = 254, 1


def load_images(
    folder: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    pattern: str = "*.png",
    *,
    value_range: Range | None = None,
) -> tuple[Images, list[str]]:
    """Load the pictures of a folder as one array of images.

    Pictures may be of any format and mode that Pillow reads. This needs Pillow: ``pip
    install skanomaly[images]``. See Notes on colours, transparency and values of more
    than 8 bits.

    Parameters
    ----------
    folder : path-like
        The folder.
    size : tuple of (height, width), default=None
        Size in pixels to which all pictures are resized, whatever their proportions. A
        new pixel is the mean of the old ones that it covers. With None, pictures keep
        their size, which has to be the same for all.
    pattern : str, optional
        Files to load, as in :meth:`pathlib.Path.glob`; ``"*.png"`` by default. Others
        are ``"*.jpg"``, or ``"**/*.png"`` for files in folders below, too. Hidden
        files, and those in hidden folders, whose names begin with a point, are left
        out.
    value_range : tuple of (low, high), default=None
        The values of grey pictures of 16 or 32 bits or of floats that become 0 and 255:
        ``(0, 4095)`` for a camera of 12 bits. Values beyond it become 0 or 255, too.
        With None, they are the lowest and the highest value of all such pictures in the
        folder; give the same range for training and test images that are in two
        folders. Pictures of 8 bits keep their values.

    Returns
    -------
    images : ndarray of shape (n_samples, channels, height, width)
        The images in the order of `names`, uint8, values 0 to 255.
    names : list of str
        The file of each image, relative to `folder`, with ``/`` between its parts, in
        the order of :func:`sorted`. A file of several pages is named once per page.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    FileNotFoundError
        If there is no such folder, or no file in it that matches `pattern`.
    ValueError
        If pictures differ in size and `size` is None, `size` is not two positive
        integers, `pattern` is not a relative pattern, `value_range` is not two
        ascending numbers, or a picture of floats has values that are not finite.
    OSError
        If a file is damaged, is no picture that Pillow reads, such as a TIFF of float64
        numbers, or has more pixels than Pillow allows.

    See Also
    --------
    read_frames : Reads the frames of videos from folders of pictures.

    Notes
    -----
    If all pictures are grey, there is one channel. Otherwise there are three, red,
    green and blue, equal ones for grey pictures. The mode of a file counts, not its
    content: an RGB file with equal channels is in colour. A palette is grey if all its
    colours are. Profiles of colours are not applied.

    Transparent pictures are composed on white. Pictures stand upright, as their EXIF
    data say. Of 16 bits per colour, the upper 8 are kept, and so they are for grey with
    transparency. A file of several pages, such as a TIFF or an animated GIF, has an
    image per page; previews, which some cameras store after the picture, and the layers
    of PSD files are left out.

    Pillow warns of pictures of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, and
    refuses those of twice as many, which may be made to exhaust the memory.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from skanomaly.datasets import load_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (40, 30), 200).save(f"{folder}/grey.png")
    ...     Image.new("RGB", (64, 48), "red").save(f"{folder}/red.png")
    ...     images, names = load_images(folder, size=(24, 32))
    >>> images.shape, names
    ((2, 3, 24, 32), ['grey.png', 'red.png'])
    """
    require_pillow("load_images")
    check_size(size)
    if value_range is not None:
        _check_range(value_range)
    top = Path(folder).expanduser()
    names = _matching(top, pattern)
    paths = [top / name for name in names]
    counts, mode, found = _survey(paths, needs_range=value_range is None)
    pictures = _decoded(paths, mode, found if value_range is None else value_range)
    images = stack(pictures, sum(counts), size)
    return images, np.repeat(names, counts).tolist()


def require_pillow(caller: str) -> None:
    """Raise the error for a missing Pillow, which names the extra to install."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} needs Pillow: `pip install skanomaly[images]`."
        ) from error


def check_size(size: object) -> None:
    """Raise an error if a size is neither None nor two positive integers."""
    if size is not None and not (
        isinstance(size, tuple | list) and len(size) == 2 and all(map(is_count, size))
    ):
        raise ValueError(
            f"size must be two positive integers (height, width), got {size!r}."
        )


def is_count(value: object) -> bool:
    """Return whether a value is a positive integer."""
    return isinstance(value, int | np.integer) and bool(value > 0)


@contextmanager
def opened(path: Path) -> Iterator[ImageFile]:
    """Open a picture; errors of Pillow, then and while it is decoded, name the file.

    Our own errors, which begin with the path, pass through.
    """
    from PIL import Image, UnidentifiedImageError

    too_large = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    with path.open("rb") as file:
        try:
            # Not by its name: Pillow 13 maps such files, and garbles some turned TIFFs.
            with Image.open(file) as picture:
                yield picture
        except MemoryError:
            raise
        except UnidentifiedImageError as error:
            raise OSError(f"{path} is {_UNREADABLE}.") from error
        except too_large as error:
            raise OSError(
                f"{path} is too large: {error} For pictures that you trust, raise "
                "PIL.Image.MAX_IMAGE_PIXELS."
            ) from error
        except Exception as error:  # decoders raise errors of all kinds
            if str(error).startswith(str(path)):
                raise
            raise OSError(f"{path} is {_UNREADABLE}: {error}") from error


def n_pages(picture: ImageFile) -> int:
    """Return the number of pictures in a file, without previews and layers."""
    # The .jpg of some cameras is of the format MPO, with previews after the picture.
    if picture.format in ("MPO", "PSD"):
        return 1
    return getattr(picture, "n_frames", 1)


def stack(
    pictures: Iterable[tuple[Path, Picture]], n: int, size: tuple[int, int] | None
) -> Images:
    """Return the values of pictures of 8 bits, resized or all of one size.

    Parameters
    ----------
    pictures : iterable of (path, picture)
        At least one, all grey or all of RGB.
    n : int
        Their number.
    size : tuple of (height, width) or None
        With None, they must have the size of the first.

    Returns
    -------
    ndarray of shape (n, channels, height, width)
        The values, uint8.

    Raises
    ------
    ValueError
        If the sizes differ and `size` is None.
    """
    from PIL.Image import Resampling

    images = None
    for k, (path, picture) in enumerate(pictures):
        if size is not None:
            picture = picture.resize((size[1], size[0]), Resampling.BOX)
        shape = picture.height, picture.width
        if images is None:
            images = np.empty((n, len(picture.getbands()), *shape), dtype=np.uint8)
        if shape != images.shape[2:]:
            raise ValueError(
                f"{path} has the size {shape}, the first picture {images.shape[2:]}: "
                "give a `size`, to which all are resized."
            )
        images[k] = np.moveaxis(np.atleast_3d(np.asarray(picture)), -1, 0)
    assert images is not None
    return images


def _check_range(value_range: Any) -> None:
    is_pair = isinstance(value_range, tuple | list) and len(value_range) == 2
    if is_pair and all(isinstance(each, Real) for each in value_range):
        low, high = value_range
        if -np.inf < low < high < np.inf:
            return
    raise ValueError(
        f"value_range must be two ascending numbers (low, high), got {value_range!r}."
    )


def _matching(folder: Path, pattern: str) -> list[str]:
    """Return the names of the files that match, relative to the folder, sorted."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    try:
        found = {path.relative_to(folder) for path in folder.glob(pattern)}
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "pattern must be one of files in the folder, such as '*.png' or "
            f"'**/*.png', got {pattern!r}."
        ) from error
    names = sorted(
        name.as_posix()
        for name in found
        if (folder / name).is_file() and not any(part[0] == "." for part in name.parts)
    )
    if not names:
        raise FileNotFoundError(
            f"No file in {folder} matches {pattern!r}. Other patterns are '*.jpg', and "
            "'**/*.png' for files in folders below, too."
        )
    return names


def _survey(paths: list[Path], *, needs_range: bool) -> tuple[list[int], str, Range]:
    """Return the number of pages of each file, the mode of all, and their range.

    The mode is "L" if all are grey, else "RGB". The range is that of pictures of more
    than 8 bits, NaN if there are none, or it is not needed.
    """
    counts, is_grey, low, high = [], True, np.nan, np.nan
    for path in paths:
        counts.append(0)
        with opened(path) as picture:
            for page in _pages(picture):
                counts[-1] += 1
                is_grey = is_grey and _is_grey(page)
                if needs_range and _is_deep(page):
                    values = _deep_values(path, page)
                    low = np.fmin(low, np.fmin.reduce(values, axis=None))
                    high = np.fmax(high, np.fmax.reduce(values, axis=None))
    return counts, "L" if is_grey else "RGB", (low, high)


def _decoded(
    paths: list[Path], mode: str, value_range: Range
) -> Iterator[tuple[Path, Picture]]:
    """Yield all pages of files as pictures of a mode, upright, with their paths."""
    from PIL.ImageOps import exif_transpose

    for path in paths:
        with opened(path) as picture:
            for page in _pages(picture):
                upright: Picture = exif_transpose(page)
                if _is_deep(upright):
                    upright = _scaled(_deep_values(path, upright), value_range)
                elif upright.has_transparency_data:
                    upright = _on_white(upright)
                yield path, upright.convert(mode)


def _pages(picture: ImageFile) -> Iterator[ImageFile]:
    """Yield a file once per page, at that page."""
    n = n_pages(picture)
    for k in range(n):
        if n > 1:
            picture.seek(k)
        tags = getattr(picture, "tag_v2", {})
        if k and tags.get(_SUBFILE_TYPE, 0) & _REDUCED:
            continue
        yield picture


def _is_grey(page: ImageFile) -> bool:
    if page.mode in ("P", "PA"):
        colours = np.reshape(page.getpalette() or [], (-1, 3))
        return bool((colours == colours[:, :1]).all())
    # Pillow opens grey with transparency of 16 bits as colours.
    return page.mode in _GREY or _is_deep(page) or "LA;16" in str(page.tile)


def _is_deep(page: Picture) -> bool:
    """Return whether a page has grey values of more than 8 bits."""
    return page.mode[0] in "IF"


def _deep_values(path: Path, page: Picture) -> NDArray[np.float64]:
    """Return the values of a page, NaN where it is transparent."""
    values = np.asarray(page, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} has values that are not finite numbers.")
    if "transparency" in page.info:
        values = np.where(values == page.info["transparency"], np.nan, values)
    return values


def _scaled(values: NDArray[np.float64], value_range: Range) -> Picture:
    """Return a picture of 8 bits, 0 to 255 over a range; NaN is white."""
    from PIL import Image

    low, high = value_range
    factor = 255 / (high - low) if high > low else 0.0
    grey = np.rint((np.clip(values, low, high) - low) * factor)
    return Image.fromarray(np.nan_to_num(grey, nan=255).astype(np.uint8))


def _on_white(picture: Picture) -> Picture:
    from PIL import Image

    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
