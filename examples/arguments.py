"""The command lines of the examples: arguments are checked when they are read, errors take a line.

What a user can mend ends in one line and exit code 2: an argument out of range, a file that is not
there or holds something else, a folder that cannot be written, a fit that breaks down, too little
memory. Anything else is a fault of the example or of the library and shows its traceback; `--debug`
shows every traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import fssa_bayes

__all__ = ["Parser", "device", "real", "run", "share", "whole"]

# Of a wrong file or folder, a missing package, a fit that breaks down, data that are too large.
MENDABLE = (OSError, ImportError, FloatingPointError, MemoryError)
OUR_FOLDERS = (Path(fssa_bayes.__file__).parent, Path(__file__).parent)


class Parser(argparse.ArgumentParser):
    """Reads the arguments of an example, with errors of one line.

    Args:
        description: What the example shows: its docstring.
    """

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.add_argument("--seed", type=whole(0), default=0)
        self.add_argument(
            "--out", type=Path, default=Path("output"), help="folder for what is written"
        )
        self.add_argument(
            "--debug", action="store_true", help="show where in the code errors arise"
        )

    def error(self, message: str) -> NoReturn:
        """Ends the process with the message and exit code 2."""
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line} (--help lists the arguments)\n")


def whole(least: int = 1, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Returns a type of arguments: integers from `least` to `most`."""

    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be an integer from {least:,} to {most:,}, got {text!r}"
            )
        return value

    return read


def real(above: float = 0.0, most: float = math.inf) -> Callable[[str], float]:
    """Returns a type of arguments: finite numbers above `above`, and not above `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (above < value <= most and math.isfinite(value)):
            limit = "" if math.isinf(most) else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(
                f"must be a number above {above:g}{limit}, got {text!r}"
            )
        return value

    return read


def share(text: str) -> float:
    """Reads a number from 0 to 1."""
    return 0.0 if text == "0" else real(0.0, 1.0)(text)


def device(text: str) -> str:
    """Reads the name of a device that PyTorch has here."""
    import torch

    try:
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"must be a device that PyTorch has here, got {text!r}"
        ) from error
    return text


def run(
    main: Callable[[argparse.Namespace], None], parser: Parser, argv: Sequence[str] | None = None
) -> None:
    """Reads the arguments, makes the folder `--out` and runs an example.

    Args:
        main: The example.
        parser: Its arguments.
        argv: The arguments; those of the process if None.
    """
    args = parser.parse_args(argv)
    try:
        with as_one_of_several(args):
            make_folder(args.out)
            check_data(args)
            main(args)
    except Exception as error:
        if args.debug or not is_mendable(error):
            raise
        parser.error(str(error) or type(error).__name__)


@contextlib.contextmanager
def as_one_of_several(args: argparse.Namespace) -> Iterator[None]:
    """Lets the first process alone, of those that `torchrun` starts, print and write."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
    ):
        args.out = Path(folder)
        yield


def check_data(args: argparse.Namespace) -> None:
    """Finds out before any work whether the files that arguments name are there."""
    for name in ("data", "items", "users"):
        path = getattr(args, name, None)
        if isinstance(path, Path) and not path.exists():
            raise FileNotFoundError(f"--{name} must exist, got '{path}'")


def make_folder(path: Path) -> None:
    """Makes the folder of results, and finds out before any work whether it can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"--out must be a folder that can be written, got '{path}': {error}"
        ) from error


def is_mendable(error: Exception) -> bool:
    """Says whether an error is about what the user gave.

    A ValueError is where the library or an example raised it; inside of NumPy or PyTorch it is a
    fault of the code that called them.
    """
    if isinstance(error, MENDABLE):
        return True
    if not isinstance(error, ValueError):
        return False
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    # Of an error in another process only the text of the traceback is left.
    files = re.findall(r'File "([^"]+)"', str(error.__cause__)) or [file]
    return any(Path(files[-1]).is_relative_to(folder) for folder in OUR_FOLDERS)
