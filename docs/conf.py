"""Configuration of Sphinx; ``docs/_ext`` generates pages, tables and the gallery."""

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
# The documentation is of this checkout, and the benchmarks are not installed.
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import api_pages  # noqa: E402
import gallery_source  # noqa: E402
import result_tables  # noqa: E402

from skanomaly import __version__  # noqa: E402

project = "skanomaly"
copyright = "the skanomaly developers"
version = release = __version__

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "native_math",
]
root_doc = "index"
templates_path = ["_templates"]
exclude_patterns = [
    "_build",
    "_templates",
    "gallery_header.rst",
    "generated/examples",
    "tables",
]
default_role = "literal"
smartquotes_action = "De"  # dashes and ellipses; quotes are mostly those of code
nitpicky = False
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions

# Examples whose data are missing are included, but not run.
EXAMPLES_WITH_DATA = {
    "adra_photographs": (
        "cifar10.npz",
        "tiny_imagenet_32.npz",
        "weights/mobilenet_v2_1.0_224_imagenet_float32.npz",
    ),
    "contaminated_images": ("fashion_mnist.npz",),
    "transfer_digits": ("mnist.npz", "usps.npz"),
    "transfer_video": ("ucsd_ped2.npz",),
}
data_home = Path(os.environ.get("SKANOMALY_DATA") or HERE / "no_data")
not_run = [
    example
    for example, files in EXAMPLES_WITH_DATA.items()
    if not all((data_home / name).is_file() for name in files)
]

# Every build writes the git-ignored folders anew.
api_pages.write(HERE / "generated", HERE / "_templates" / "api")
result_tables.write(HERE / "tables")

autosummary_generate = False  # api_pages writes the pages
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": [str(gallery_source.collect(HERE))],
    "gallery_dirs": ["auto_examples"],
    "filename_pattern": rf"[\\/]plot_(?!{'|'.join(not_run) or '$'})",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("skanomaly",),
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e6,
    "write_computation_times": False,
    "abort_on_example_error": False,
    "download_all_examples": False,
    "plot_gallery": "True",
    "show_api_usage": False,
}
# The examples are run without a screen.
warnings.filterwarnings("ignore", message=".*non-interactive.*", category=UserWarning)

html_theme = "pydata_sphinx_theme"
html_title = "skanomaly"
html_math_renderer = "native"
html_static_path = ["_static"]
html_css_files = ["skanomaly.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "skanomaly"},
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "show_nav_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "install": [], "benchmarks": [], "contributing": []}
