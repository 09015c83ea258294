"""Links to the documentation."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata

__all__ = ["DocumentationMixin", "documentation_page"]


def documentation_page(name: str) -> str:
    """Return the address of the documentation page of a public object.

    Parameters
    ----------
    name : str
        Its full name.

    Returns
    -------
    str
        Empty if the metadata of the installed package names no documentation.
    """
    try:
        entries = metadata("skanomaly").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    addresses = dict(entry.split(", ", 1) for entry in entries)
    root = addresses.get("Documentation", "").rstrip("/")
    return f"{root}/generated/{name}.html" if root else ""


class DocumentationMixin:
    """For estimators whose HTML representation links to their page."""

    _doc_link_module = "skanomaly"

    @property
    def _doc_link_template(self) -> str:
        return documentation_page(f"skanomaly.{type(self).__name__}")
