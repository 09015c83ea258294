"""Deep anomaly detection with the scikit-learn interface."""

import lazy_loader

from ._version import __version__

# Names are loaded when they are first used: torch costs seconds to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
