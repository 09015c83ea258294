from . import datasets, exceptions, metrics
from ._history_ad import HistoryAD
from ._persistence import load, save

__all__ = ["HistoryAD", "datasets", "exceptions", "load", "metrics", "save"]
