"""Collects the sources of the gallery: the header and the examples with plots.

The folder of the examples also has scripts that are not in the gallery.
"""

import shutil


def collect(docs):
    """Copy the header and ``examples/plot_*.py`` to one folder, and return it."""
    target = docs / "generated" / "examples"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy(docs / "gallery_header.rst", target / "GALLERY_HEADER.rst")
    for example in sorted((docs.parent / "examples").glob("plot_*.py")):
        shutil.copy(example, target)
    return target
