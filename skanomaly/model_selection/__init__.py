"""Cross-validation for known kinds of anomalies and two domains, and fast searches.

`LeaveAnomalyKindOut` is for detectors that learn from a few known anomalies, and
`TargetKFold` for detectors that learn from two domains. `SideBySideGridSearchCV` and
`SideBySideRandomizedSearchCV` train the candidates of a search together.
"""

from ._search import SideBySideGridSearchCV, SideBySideRandomizedSearchCV
from ._splits import LeaveAnomalyKindOut, TargetKFold

__all__ = [
    "LeaveAnomalyKindOut",
    "SideBySideGridSearchCV",
    "SideBySideRandomizedSearchCV",
    "TargetKFold",
]
