"""Runs the Python of the README and of the documentation, and compares what it prints.

A block of `text` after a block of `python` is what the block prints; `...` stands for anything.
Blocks of a page share their names, and run in a folder of their own.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import shutil
import tempfile
from pathlib import Path

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

PRINTED = "what the last block printed"


class Printing(PythonEvaluator):
    """Runs a block and keeps what it prints."""

    def __call__(self, example: Example) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            super().__call__(example)
        example.namespace[PRINTED] = printed.getvalue()


def compare(example: Example) -> str | None:
    """Returns a difference between a block of text and what was printed before it, or None."""
    checker, expected = doctest.OutputChecker(), example.parsed.rstrip() + "\n"
    got = example.namespace.get(PRINTED, "").rstrip() + "\n"
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if checker.check_output(expected, got, options):
        return None
    return checker.output_difference(doctest.Example("", expected), got, doctest.REPORT_NDIFF)


def enter_folder(namespace: dict[str, object]) -> None:
    """Starts a page in an empty folder, with figures that no screen shows."""
    import matplotlib

    matplotlib.use("Agg")
    namespace["came from"], namespace["folder"] = os.getcwd(), tempfile.mkdtemp()
    os.chdir(namespace["folder"])


def leave_folder(namespace: dict[str, object]) -> None:
    """Leaves the folder; its pictures are kept where FSSA_BAYES_PICTURES names a folder."""
    os.chdir(namespace["came from"])
    if kept := os.environ.get("FSSA_BAYES_PICTURES"):
        for picture in Path(namespace["folder"]).glob("*.png"):
            shutil.copy(picture, kept)
    shutil.rmtree(namespace["folder"])


pytest_collect_file = Sybil(
    parsers=[
        CodeBlockParser(language="python", evaluator=Printing()),
        CodeBlockParser(language="text", evaluator=compare),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md"],
    setup=enter_folder,
    teardown=leave_folder,
).pytest()
