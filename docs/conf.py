"""Sphinx: ``sphinx-build -W docs build/docs``; `.ci/run docs` builds the extension first.

The pages are Markdown that reads well on its own; the reference is made from the docstrings.
"""

from __future__ import annotations

import fusedlstm

project = "fusedlstm"
author = "the authors of fusedlstm"
project_copyright = author
version = release = fusedlstm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["examples"]
html_theme = "furo"
html_title = f"fusedlstm {release}"

myst_heading_anchors = 3  # [text](page.md#a-heading)

autodoc_default_options = {"members": True, "show-inheritance": True, "special-members": "__call__"}
autodoc_typehints = "none"  # signatures say the types; docstrings say the shapes
autodoc_member_order = "bysource"
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
