"""Benchmark data sets, and the protocols that turn labelled data into benchmarks.

The loaders follow :mod:`sklearn.datasets`; no data set is part of the package. The
protocols are pure functions of arrays: each returns ``X_train, X_test, y_train,
y_test``, with ``y`` +1 for normal and -1 for anomalous rows, and each takes what the
one before it returned::

    split = one_vs_rest(X, y, normal_class=3, return_kinds=True, random_state=0)
    split = contaminate(*split, contamination=0.1, random_state=0)
    split = labelled_anomalies(*split, ratio=0.05, kinds=[5], random_state=0)
"""

from ._images import (
    fetch_cifar10,
    fetch_fashion_mnist,
    fetch_kmnist,
    fetch_mnist,
    fetch_usps,
)
from ._protocols import (
    contaminate,
    hold_one_out,
    labelled_anomalies,
    one_vs_rest,
)
from ._tables import fetch_odds

__all__ = [
    "contaminate",
    "fetch_cifar10",
    "fetch_fashion_mnist",
    "fetch_kmnist",
    "fetch_mnist",
    "fetch_odds",
    "fetch_usps",
    "hold_one_out",
    "labelled_anomalies",
    "one_vs_rest",
]
