"""The version, in a file without imports of the package, which the build reads."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

__version__ = "0.1.0"

Section = dict[str, str | int | None]  # lines of the report, by name

#: Extras of those who work on the package.
_DEVELOPMENT = {"tests", "docs", "lint"}


def show_versions() -> None:
    """Print the versions that a report of an error should contain.

    These are the versions of skanomaly, Python and the system, of the required packages
    and those of the extras, which have None if they are not installed, and the CPU
    instructions and the GPUs that torch uses. Of all packages, torch alone is imported.

    See Also
    --------
    sklearn.show_versions : Prints those of scikit-learn, with its libraries of threads.

    Examples
    --------
    >>> import skanomaly
    >>> skanomaly.show_versions()
    System:
           python: ...
       executable: ...
          machine: ...
    <BLANKLINE>
    Package:
        skanomaly: ...
    """
    sections: dict[str, Section] = {
        "System": {
            "python": sys.version.replace("\n", " "),
            "executable": sys.executable,
            "machine": platform.platform(),
        },
        "Package": {"skanomaly": __version__},
        **_requirements(),
        "torch": _torch(),
    }
    width = max(len(name) for section in sections.values() for name in section)
    blocks = (
        "\n".join([f"{title}:", *(f"{n:>{width}}: {v}" for n, v in section.items())])
        for title, section in sections.items()
    )
    print("\n\n".join(blocks))  # noqa: T201


def _requirements() -> dict[str, Section]:
    """Return the versions of required and of optional packages."""
    required: Section = {}
    optional: Section = {}
    try:
        requirements = requires("skanomaly") or []
    except PackageNotFoundError:
        return {"Packages": {"unknown": "skanomaly is not installed, only on the path"}}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        extra = re.search(r"extra == .(\w+)", requirement)
        if extra is None:
            required[name] = _installed(name)
        elif extra[1] not in _DEVELOPMENT:
            optional[name] = _installed(name)
    # An extra may need a newer version of a required package.
    optional = {k: v for k, v in optional.items() if k not in required}
    return {"Required packages": required, "Optional packages": optional}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> Section:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that is missing, say
        return {"import": f"failed: {error}"}
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ", ".join(torch.cuda.get_device_name(k) for k in range(n_devices))
    return {
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "CUDA": torch.version.cuda,
        "CUDA devices": devices or None,
        "MPS": torch.backends.mps.is_available(),
    }
