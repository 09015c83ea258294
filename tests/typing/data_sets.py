"""Type checkers know the arrays of data sets and protocols; `make lint` reads this."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from skanomaly.datasets import (
    across_domains,
    contaminate,
    fetch_emnist_letters,
    fetch_mnist,
    fetch_odds,
    fetch_tiny_imagenet,
    fetch_ucsd_ped2,
    frame_scores,
    hold_one_out,
    labelled_anomalies,
    load_images,
    make_clips,
    one_vs_rest,
    read_frames,
)

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Kinds = NDArray[Any]

digits = fetch_mnist(subset="test", download_if_missing=False)
assert_type(digits.data, Bytes)
assert_type(digits.target, Labels)
assert_type(digits.target_names, list[str])
assert_type(fetch_mnist(return_X_y=True), tuple[Bytes, Labels])
fetch_mnist(subset="tset")  # type: ignore[call-overload]
images = digits.images  # type: ignore[attr-defined]
assert_type(fetch_emnist_letters().data, Bytes)
assert_type(fetch_tiny_imagenet(without=["tabby"]).class_ids, list[str])
assert_type(fetch_tiny_imagenet(return_X_y=True), tuple[Bytes, Labels])
assert_type(fetch_ucsd_ped2().videos, Labels)

table = fetch_odds("wine")
assert_type(table.data, NDArray[np.float32] | NDArray[np.float64])
assert_type(table.target, Labels)
X_table, y_table = fetch_odds("wine", return_X_y=True)
assert_type(y_table, Labels)

X, y = fetch_mnist(return_X_y=True)
split = one_vs_rest(X, y, 0)
assert_type(split, tuple[Bytes, Bytes, Labels, Labels])
assert_type(contaminate(*split), tuple[Bytes, Bytes, Labels, Labels])
with_kinds = hold_one_out(X, y, [1, 2], return_kinds=True)
assert_type(with_kinds, tuple[Bytes, Bytes, Labels, Labels, Kinds, Kinds])
assert_type(
    labelled_anomalies(*with_kinds, kinds=2),
    tuple[Bytes, Bytes, Labels, Labels, Kinds, Kinds],
)
*_, corpus = one_vs_rest(X, y, 0, corpus_class={1, 2})
assert_type(one_vs_rest(X, y, 0, corpus_class=1)[4], Bytes)
assert_type(across_domains(X, y, X, y, 0)[4], Labels)

assert_type(load_images("folder", (32, 32), "*.jpg"), tuple[Bytes, list[str]])
frames, videos = read_frames("folder")
assert_type(frames, Bytes)
clips, starts = make_clips(frames, videos)
assert_type(starts, Labels)
assert_type(frame_scores([0.0], starts, 16), NDArray[np.float64])
