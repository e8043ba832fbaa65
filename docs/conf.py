"""How Sphinx builds the documentation: `sphinx-build -W docs docs/_build`."""

from __future__ import annotations

import re
from importlib import metadata

from sphinx.application import Sphinx

project = "fssa_bayes"
author = "the authors of fssa_bayes"
copyright = "2026, the authors of fssa_bayes"
version = release = metadata.version("fssa_bayes")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # They stand in the signature.
autodoc_default_options = {"members": True, "inherited-members": "Module, Trainer"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"fssa_bayes {version}"
html_static_path: list[str] = []


def escape_shapes(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keeps the asterisk of a shape such as (*, U, N) from being read as emphasis."""
    lines[:] = [re.sub(r"(?<=[(\s])\*(?=[,)])", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", escape_shapes, priority=400)
