"""Configuration of Sphinx: MyST for the pages, Furo for the look, and two reference pages made from the code."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

import qdq  # noqa: E402 (the checkout's own, found by the path above)

project = "qdq"
author = "the qdq developers"
release = version = qdq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
exclude_patterns = ["extensions"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3
smartquotes = False  # "--recipe" is an option, and must stay two hyphens

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"qdq {release}"
html_copy_source = False
html_show_sphinx = False
