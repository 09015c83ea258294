"""Benchmark data sets, and the protocols that turn labelled data into benchmarks.

The loaders follow :mod:`sklearn.datasets`; no data set is part of the package. The
protocols are pure functions of arrays: each returns ``X_train, X_test, y_train,
y_test``, with ``y`` +1 for normal samples and -1 for anomalies, and each takes the
result of the one before::

    split = one_vs_rest(X, y, normal_class=3, return_kinds=True, random_state=0)
    split = contaminate(*split, contamination=0.1, random_state=0)
    split = labelled_anomalies(*split, ratio=0.05, kinds=[5], random_state=0)

`across_domains` makes such a split of two data sets, and also returns the domain of
each training sample. `load_images` loads a folder of pictures. `read_frames` reads
videos, `make_clips` cuts them, and `frame_scores` turns scores of clips into scores of
frames.
"""

from ._images import (
    fetch_cifar10,
    fetch_emnist_letters,
    fetch_fashion_mnist,
    fetch_kmnist,
    fetch_mnist,
    fetch_tiny_imagenet,
    fetch_usps,
)
from ._pictures import load_images
from ._protocols import (
    across_domains,
    contaminate,
    hold_one_out,
    labelled_anomalies,
    one_vs_rest,
)
from ._tables import fetch_odds
from ._video import fetch_ucsd_ped2, frame_scores, make_clips, read_frames

__all__ = [
    "across_domains",
    "contaminate",
    "fetch_cifar10",
    "fetch_emnist_letters",
    "fetch_fashion_mnist",
    "fetch_kmnist",
    "fetch_mnist",
    "fetch_odds",
    "fetch_tiny_imagenet",
    "fetch_ucsd_ped2",
    "fetch_usps",
    "frame_scores",
    "hold_one_out",
    "labelled_anomalies",
    "load_images",
    "make_clips",
    "one_vs_rest",
    "read_frames",
]
