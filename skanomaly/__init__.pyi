from . import datasets, exceptions, metrics
from ._history_ad import HistoryAD

__all__ = ["HistoryAD", "datasets", "exceptions", "metrics"]
