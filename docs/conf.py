"""Configuration of Sphinx for this documentation: ``sphinx-build -W -b html docs OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import celery_budgets

project = "celery-budgets"
author = "the authors of celery-budgets"
version = release = celery_budgets.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "facts",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4

# Options such as --lane are no dashes.
smartquotes = False
# Docstrings write code in single backquotes.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"celery-budgets {release}"
html_static_path = ["_static"]
html_show_sourcelink = False
# Nothing of a page comes from elsewhere: the documentation can be read offline.
html_theme_options = {"top_of_page_buttons": []}
