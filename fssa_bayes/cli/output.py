"""What a subcommand prints, and the folder that it writes whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from fssa_bayes._files import put_in_place, write_file

if TYPE_CHECKING:
    from fssa_bayes._arviz import InferenceData
    from fssa_bayes.report import Report, Section

__all__ = [
    "OptionalResults",
    "Overwrite",
    "Quiet",
    "Results",
    "WriteJson",
    "Writer",
    "prepare",
]

_MANIFEST = "results.json"  # Lists the files of a folder of results, with the main figures.
_PANEL = "What is written and printed"

Results = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Folder for the results; it must not exist yet.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
OptionalResults = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Folder for the results; it must not exist yet. Without it results are printed alone.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace earlier results in --out.", rich_help_panel=_PANEL),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors alone.", rich_help_panel=_PANEL),
]
WriteJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the main figures as one line of JSON, and nothing else.",
        rich_help_panel=_PANEL,
    ),
]


class Writer:
    """Prints what is found, and fills a folder that takes its place when everything is in it.

    The folder is filled under the name `.OUT.SUBCOMMAND.part`, where only the checkpoint of a fit
    outlives an interrupted run: the same command goes on from there.

    Args:
        out: The folder of results, or None to print alone.
        subcommand: Name of the subcommand that writes.
        overwrite: Whether `out` may hold earlier results, which are replaced.
        quiet: Whether to print nothing.

    Attributes:
        folder: The folder to fill, or None.
        checkpoint: Folder for the checkpoint of a fit, or None.
    """

    def __init__(self, out: Path | None, subcommand: str, *, overwrite: bool, quiet: bool) -> None:
        self.out = None if out is None else out.resolve()
        self.overwrite, self.quiet = overwrite, quiet
        self.folder = self.checkpoint = self.lock = None
        if self.out is not None:
            self.folder = self.out.with_name(f".{self.out.name}.{subcommand}.part")
            self.checkpoint = self.folder / "checkpoint"

    def __enter__(self) -> Self:
        """Refuses a folder that must not be replaced, and makes the one that is filled.

        Raises:
            FileExistsError: If `out` exists and is not to be overwritten, holds other files, or is
                written by another run at this moment.
            OSError: If the folder cannot be made.
        """
        if self.out is None:
            if self.overwrite:
                raise ValueError("--overwrite replaces results in --out, which is not given")
            return self
        if self.out.exists() and not self.out.is_dir():
            raise FileExistsError(f"--out must be a folder, got the file {str(self.out)!r}")
        if self.out.exists():
            if not self.overwrite:
                raise FileExistsError(
                    f"--out must not exist yet, got {str(self.out)!r}: pass --overwrite to replace "
                    "earlier results"
                )
            known = _results_in(self.out)
            found = {path.name for path in self.out.iterdir()}
            if foreign := sorted(found - known):
                raise FileExistsError(
                    f"--overwrite replaces nothing but earlier results, got {str(self.out)!r} "
                    f"with {foreign[:3]}"
                )
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"--out {str(self.out)!r} cannot be written: {error}") from error
        self.lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            self.lock = None
            raise FileExistsError(
                f"--out must belong to one run at a time, and another run writes {str(self.out)!r}"
            ) from None
        self._clear()
        return self

    def _clear(self) -> None:
        """Removes what an interrupted run has left, but for the checkpoint of its fit."""
        for path in self.folder.iterdir():
            if path.name not in ("checkpoint", "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keeps what a later run can go on from, and removes everything else that is unfinished."""
        if self.lock is None:
            return
        if self.folder.exists():
            self._clear()
            if self.checkpoint.exists() and error is not None:
                kept = (
                    f"{str(self.folder)!r} holds what was done so far: the same command goes on "
                    "from there; delete it to begin afresh"
                )
                if isinstance(error, KeyboardInterrupt):  # Typer prints no notes of it.
                    print(f"\n{kept}", file=sys.stderr)
                error.add_note(kept)
                self.lock.release()
                return
        self.lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def tell(self, section: Section) -> None:
        """Prints a section as text, unless quiet."""
        if not self.quiet:
            from fssa_bayes.report import to_text

            try:
                print(to_text(section), flush=True)
            except BrokenPipeError:  # The reader, such as `head`, has ended; the folder goes on.
                self.quiet = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def write_netcdf(self, content: InferenceData, name: str) -> None:
        """Writes an ArviZ object into the folder.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.folder / name
        try:
            content.to_netcdf(str(path))
        except Exception as error:  # HDF5 says "disk full" in many words, none of them an OSError.
            raise OSError(f"{path} could not be written, is the disk full? {error}") from error

    def finish(self, figures: dict[str, object], report: Report, *, write_json: bool) -> None:
        """Puts the folder in its place, and prints where it is, or the main figures as JSON.

        Args:
            figures: The main figures by name.
            report: The report that was written.
            write_json: Whether to print the figures.
        """
        figures = {name: _plain(value) for name, value in figures.items()}
        if self.folder is not None:
            shutil.rmtree(self.checkpoint, ignore_errors=True)
            self.lock.release()
            (self.folder / "lock").unlink(missing_ok=True)
            names = sorted({path.name for path in self.folder.iterdir()} | {_MANIFEST})
            content = {"title": report.title, "files": names, "figures": figures}
            text = json.dumps(content, indent=2, ensure_ascii=False)
            write_file(self.folder / _MANIFEST, text.encode())
            put_in_place(self.folder, self.out)
        if write_json:
            out = {} if self.out is None else {"out": str(self.out)}
            print(json.dumps(out | figures, ensure_ascii=False))
        elif self.out is not None and not self.quiet:
            print(f"\nAll of it is in {self.out}; begin with {self.out / 'report.html'}")


def prepare() -> None:
    """Takes one thread, which networks this small need, and draws pictures without a screen."""
    import matplotlib
    import torch

    matplotlib.use("Agg")
    torch.set_num_threads(1)


def _results_in(folder: Path) -> set[str]:
    """Names the files that a folder of results lists as its own."""
    try:
        names = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return {str(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _plain(value: object) -> object:
    """Turns what JSON has no word for, such as NaN, into None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
