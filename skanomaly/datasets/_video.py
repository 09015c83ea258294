"""Video: the frames of UCSD Ped2, frames from folders, and clips of frames."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d

from ..utils._kinds import IMAGE
from ._pictures import check_size, is_count, n_pages, opened, require_pillow, stack
from ._store import describe_loader, find, not_found, read
from ._types import DataHome, Images, Labels, Loader, Subset, VideoBunch

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFile import ImageFile

_PED2 = "ucsd_ped2.npz"
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def _typed(loader: Callable[..., Any]) -> Loader[VideoBunch]:
    return cast(Loader[VideoBunch], describe_loader(loader))


@_typed
def fetch_ucsd_ped2(
    *,
    subset: Subset = "train",
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> VideoBunch | tuple[Images, Labels]:
    """Load UCSD Ped2, grey video of a walkway, with its abnormal frames marked by -1.

    There are 16 training videos (2,550 frames), in which people walk, and 12 test
    videos (2,010 frames), in which cyclists, skaters and carts pass too. They are read
    from ``ucsd_ped2.npz``, which nothing downloads: the error for a missing file names
    the source of the frames and the arrays to store.

    Rights: no licence is stated; keep the data for evaluation, and cite Mahadevan et
    al., "Anomaly detection in crowded scenes", CVPR 2010.

    Parameters
    ----------
    %(subset)s
    %(data_home)s
    %(download_if_missing)s
    %(return_X_y)s

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n_frames, 1, height, width), values 0 to 255, the frames
        in order and of the stored size; `target`, int64 of shape (n_frames,), +1 for a
        normal and -1 for an abnormal frame; `videos`, int64 of shape (n_frames,), the
        number of each frame's video, from 1 on (with "all", the numbers of the test
        videos follow those of the training videos); `DESCR`; and `filename`, the file
        that was read.

    Raises
    ------
    ValueError
        If `subset` is unknown, or the file holds frames or labels of another kind.
    %(errors)s

    See Also
    --------
    make_clips : Cuts the frames into clips.
    read_frames : Reads frames from folders of pictures.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_ucsd_ped2, make_clips
    >>> ped2 = fetch_ucsd_ped2(subset="test")  # doctest: +SKIP
    >>> ped2.data.shape, (ped2.target == -1).sum()  # doctest: +SKIP
    ((2010, 1, 64, 64), 1648)
    >>> clips, starts = make_clips(ped2.data, ped2.videos)  # doctest: +SKIP
    >>> clips.shape  # doctest: +SKIP
    (1830, 1, 16, 64, 64)
    """
    if subset not in ("train", "test", "all"):
        raise ValueError(f'subset must be "train", "test" or "all", got {subset!r}.')
    parts = ("train", "test") if subset == "all" else (subset,)
    members = [f"{name}_{part}" for part in parts for name in ("X", "clip")]
    members += ["y_test"] if "test" in parts else []
    path = find((_PED2,), members, data_home)
    if path is None:
        advice = (
            "Read the frames of http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm "
            "with read_frames, and store them under that name: X uint8 of shape "
            "(n_frames, height, width), clip the number of each frame's video, y 1 for "
            "an abnormal frame."
        )
        raise not_found((_PED2,), members, data_home, advice)
    arrays = read(path, members)

    frames = np.concatenate([arrays[f"X_{part}"] for part in parts])
    videos = [arrays[f"clip_{part}"].astype(np.int64) for part in parts]
    if subset == "all":
        videos[1] += videos[0].max()
    y = _signs(arrays, parts)
    if frames.dtype != np.uint8 or frames.ndim != 3 or len(frames) != len(y):
        raise ValueError(
            f"{path} must hold uint8 frames (n_frames, height, width) with one label "
            f"each, got {frames.dtype} of shape {frames.shape} with {len(y)} labels."
        )
    if return_X_y:
        return frames[:, None], y
    return VideoBunch(
        data=frames[:, None],
        target=y,
        videos=np.concatenate(videos),
        DESCR=(getdoc(fetch_ucsd_ped2) or "").partition("\n\nParameters")[0],
        filename=str(path),
    )


def read_frames(
    folder: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    size: tuple[int, int] | None = None,
) -> tuple[Images, Labels]:
    """Read the frames of videos from folders of pictures.

    The pictures (.png, .jpg, .jpeg, .tif, .tiff and .bmp) of a folder are the frames of
    one video. Names are in natural order: ``frame10`` comes after ``frame9``. Hidden
    files, whose names begin with a point, and files of other kinds are skipped.
    Colours become grey. This needs Pillow: ``pip install skanomaly[images]``.

    Parameters
    ----------
    folder : path-like or iterable of path-likes
        A folder of pictures, which is one video; a folder of such folders, one per
        video, in natural order, where those without pictures are skipped; or a list of
        the folders of the videos in any order, to leave out others, such as the ``_gt``
        folders with the masks of the UCSD data.
    size : tuple of (height, width), default=None
        Size in pixels to which all frames are resized. A new pixel is the mean of the
        old ones that it covers. With None, frames keep their size, which has to be the
        same for all.

    Returns
    -------
    frames : ndarray of shape (n_frames, 1, height, width)
        The frames of all videos in order, uint8, values 0 to 255.
    videos : ndarray of shape (n_frames,)
        The number of each frame's video, from 1 on, int64.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    FileNotFoundError
        If a folder does not exist, or there is no picture.
    ValueError
        If frames differ in size and `size` is None, `size` is not two positive
        integers, a picture has more than 8 bits per channel, a file holds several
        pictures, or a folder has both pictures and folders of pictures.
    OSError
        If a file is damaged, or not a picture, despite its name.

    See Also
    --------
    load_images : Loads a folder of pictures in grey or in colour.
    make_clips : Cuts the frames into clips.

    Examples
    --------
    >>> from pathlib import Path
    >>> from skanomaly.datasets import read_frames
    >>> frames, videos = read_frames("UCSDped1/Train", size=(64, 64))  # doctest: +SKIP
    >>> folders = sorted(Path("UCSDped1/Test").glob("Test???"))  # doctest: +SKIP
    >>> frames, videos = read_frames(folders, size=(64, 64))  # doctest: +SKIP
    """
    require_pillow("read_frames")
    check_size(size)
    videos = _videos_in(folder)
    paths = [path for video in videos for path in video]
    frames = stack(_grey(paths), len(paths), size)
    return frames, np.repeat(np.arange(1, len(videos) + 1), [*map(len, videos)])


def make_clips(
    frames: ArrayLike,
    videos: ArrayLike | None = None,
    *,
    length: int = 16,
    stride: int = 1,
) -> tuple[NDArray[Any], Labels]:
    """Cut videos into clips, each from a single video.

    In each video a clip begins at every `stride`-th frame, as long as `length` frames
    are left. Videos that are shorter have no clip.

    Parameters
    ----------
    frames : array-like of shape (n_frames, channels, height, width)
        The frames of all videos in order.
    videos : array-like of shape (n_frames,), default=None
        The number or name of each frame's video. With None, all frames are one video.
    length : int, default=16
        Frames per clip.
    stride : int, default=1
        Frames from the beginning of one clip to that of the next.

    Returns
    -------
    clips : ndarray of shape (n_clips, channels, length, height, width)
        The clips, of the type of `frames`; see Notes on copies.
    starts : ndarray of shape (n_clips,)
        The index of the first frame of each clip, ascending, int64.

    Raises
    ------
    ValueError
        If `frames` has not four dimensions, `videos` has another length, the frames of
        a video are not contiguous, `length` or `stride` is not a positive integer, or
        no video is long enough.

    See Also
    --------
    frame_scores : Turns scores of clips into scores of frames.

    Notes
    -----
    Nothing is copied where the clips follow one another at equal distances, which they
    do in a single video: `clips` is then a read-only view of `frames`. Clips of several
    videos are copied, which takes ``length / stride`` times the memory of the frames.
    For training, a stride of some frames loses little, since neighbouring clips hardly
    differ. To score all clips, go video by video::

        scores = np.full(len(frames), np.nan)
        for video in np.unique(videos):
            chosen = videos == video
            if chosen.sum() >= 16:
                clips, starts = make_clips(frames[chosen])
                s = detector.score_samples(clips)
                scores[chosen] = frame_scores(s, starts, chosen.sum())

    Frames that are read from a memory map are read from the file when they are used.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.datasets import make_clips
    >>> frames = np.zeros((50, 1, 8, 8), dtype=np.uint8)
    >>> clips, starts = make_clips(frames)
    >>> clips.shape, np.shares_memory(clips, frames)
    ((35, 1, 16, 8, 8), True)
    >>> _, starts = make_clips(frames, np.repeat([1, 2], [20, 30]), stride=4)
    >>> starts
    array([ 0,  4, 20, 24, 28, 32])
    """
    images = np.asarray(frames)
    expected = (
        "frames must be of shape (n_frames, channels, height, width), got "
        f"{images.shape}: "
    )
    if images.ndim != IMAGE.ndim:
        raise ValueError(f"{expected}give grey frames as frames[:, None].")
    if images.shape[3] < IMAGE.least_side <= images.shape[1]:  # of channels
        raise ValueError(
            f"{expected}channels come first, give np.moveaxis(frames, -1, 1)."
        )
    for name, value in (("length", length), ("stride", stride)):
        if not is_count(value):
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    starts = _starts(_lengths(images, videos), length, stride)
    if not len(starts):
        raise ValueError(f"No video has the {length} frames that a clip takes.")

    windows = np.moveaxis(sliding_window_view(images, length, axis=0), -1, 2)
    steps = np.diff(starts)
    if not (steps == steps[:1]).all():
        return windows[starts], starts
    step = steps[0] if len(steps) else 1
    return windows[starts[0] : starts[-1] + 1 : step], starts


def frame_scores(
    clip_scores: ArrayLike, starts: ArrayLike, n_frames: int, *, length: int = 16
) -> NDArray[np.float64]:
    """Score each frame by the mean over the clips that contain it.

    Parameters
    ----------
    clip_scores : array-like of shape (n_clips,) or (n_clips, length)
        A score for each clip, or one for each frame of each clip.
    starts : array-like of shape (n_clips,)
        The index of the first frame of each clip: `starts` of `make_clips`.
    n_frames : int
        Number of frames of all videos together.
    length : int, default=16
        Frames per clip; scores of shape (n_clips, length) replace it.

    Returns
    -------
    ndarray of shape (n_frames,)
        Scores, float64, higher where those of the clips are higher. A frame in no clip
        has NaN, which scorers refuse; with a stride of 1 these are only the frames of
        videos that are shorter than a clip.

    Raises
    ------
    ValueError
        If `clip_scores` has another shape, `starts` another length, or a clip reaches
        beyond the frames.

    See Also
    --------
    make_clips : Cuts videos into clips.

    Examples
    --------
    >>> from skanomaly.datasets import frame_scores
    >>> frame_scores([0, -4], [0, 1], 4, length=2)
    array([ 0., -2., -4., nan])
    """
    scores = np.asarray(clip_scores, dtype=np.float64)
    firsts = np.asarray(column_or_1d(starts))
    if scores.ndim == 1:
        scores = np.broadcast_to(scores[:, None], (len(scores), length))
    if scores.ndim != 2:
        raise ValueError(
            "clip_scores must be of shape (n_clips,) or (n_clips, length), got "
            f"{scores.shape}."
        )
    check_consistent_length(scores, firsts)
    length = scores.shape[1]
    if len(firsts) and not 0 <= firsts.min() <= firsts.max() <= n_frames - length:
        raise ValueError(
            f"Clips of {length} frames that begin at {firsts.min()} to {firsts.max()} "
            f"are not all among {n_frames} frames: check starts, n_frames and length."
        )
    members = (firsts[:, None] + np.arange(length)).ravel().astype(np.intp)
    sums = np.bincount(members, weights=scores.ravel(), minlength=n_frames)
    counts = np.bincount(members, minlength=n_frames)
    means = np.full(n_frames, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _signs(arrays: dict[str, NDArray[Any]], parts: Sequence[str]) -> Labels:
    """Return +1 for the frames of the training part, and the labels of the others."""
    signs = []
    for part in parts:
        n = len(arrays[f"clip_{part}"])
        labels = arrays["y_test"] if part == "test" else np.zeros(n)
        if len(labels) != n or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"y_{part} in {_PED2} must be 1 for an abnormal frame and 0 elsewhere, "
                f"with one label for each of {n} frames."
            )
        signs.append(np.where(labels == 1, -1, 1).astype(np.int64))
    return np.concatenate(signs)


def _videos_in(folder: Any) -> list[list[Path]]:
    """Return the pictures of each video in order, without empty videos."""
    if not isinstance(folder, str | os.PathLike):
        folders = [Path(each).expanduser() for each in folder]
        videos = [_pictures_in(each) for each in folders]
        empty = [each for each, v in zip(folders, videos, strict=True) if not v]
    else:
        top = Path(folder).expanduser()
        below = [path for path in _listed(top) if path.is_dir()]
        own, videos = _pictures_in(top), [_pictures_in(path) for path in below]
        videos = [video for video in videos if video]
        if own and videos:
            raise ValueError(
                f"{top} has both pictures and folders of pictures: give a list of the "
                "folders that are videos."
            )
        videos = [own] if own else videos
        empty = [] if videos else [top]
    if empty or not videos:
        where = ", ".join(map(str, empty)) or "an empty list of folders"
        raise FileNotFoundError(
            f"There is no picture ({', '.join(_PICTURES)}) in {where}."
        )
    return videos


def _pictures_in(folder: Path) -> list[Path]:
    return [p for p in _listed(folder) if p.suffix.lower() in _PICTURES and p.is_file()]


def _listed(folder: Path) -> list[Path]:
    """Return the paths in a folder that are not hidden, in natural order."""

    def key(path: Path) -> tuple[list[Any], str]:
        # Every other part is a number, so that only like parts are compared.
        parts = re.split(r"(\d+)", path.name.lower())
        parts[1::2] = map(int, parts[1::2])
        return parts, path.name

    return sorted((p for p in folder.iterdir() if p.name[0] != "."), key=key)


def _grey(paths: list[Path]) -> Iterator[tuple[Path, Picture]]:
    """Yield the pictures in grey, with their paths."""
    for path in paths:
        with opened(path) as picture:
            _check_picture(path, picture)
            yield path, picture.convert("L")


def _check_picture(path: Path, picture: ImageFile) -> None:
    """Refuse a picture that would lose information as grey bytes."""
    # Pillow makes bytes of 16 bits per colour by itself: "RGB;16B", say.
    deep_colours = re.search(";16[BLN]", str(picture.tile))
    if picture.mode.startswith(("I", "F")) or deep_colours:
        raise ValueError(f"{path} has more than 8 bits per channel: convert it.")
    if n_pages(picture) > 1:
        raise ValueError(
            f"{path} holds {n_pages(picture)} pictures: store each in a file of its "
            "own, in a folder per video."
        )


def _lengths(frames: NDArray[Any], videos: ArrayLike | None) -> Labels:
    """Return the number of frames of each video."""
    if videos is None:
        return np.array([len(frames)])
    names = np.asarray(column_or_1d(videos))
    check_consistent_length(frames, names)
    firsts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    if len(np.unique(names)) != len(firsts):
        raise ValueError("The frames of each of the `videos` must stand together.")
    return np.append(firsts[1:], len(names)) - firsts


def _starts(lengths: Labels, length: int, stride: int) -> Labels:
    """Return the first frame of each clip, given the lengths of the videos."""
    firsts = np.cumsum(lengths) - lengths
    return np.concatenate(
        [
            np.arange(first, first + n - length + 1, stride)
            for first, n in zip(firsts, lengths, strict=True)
        ]
    )
