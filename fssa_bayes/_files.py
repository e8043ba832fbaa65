"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "previous_folder",
    "put_in_place",
    "remove_folder",
    "whole_file",
    "whole_folder",
    "write_file",
]


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder to fill, which replaces `path` at the end of the block.

    If the block raises, `path` is unchanged. The files are synchronised before the replacement.
    """
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.rglob("*"):
            _synchronise(file)
        _synchronise(part)
        put_in_place(part, path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            error.add_note(f"nothing was changed at {str(path)!r}")
        raise


def previous_folder(path: Path) -> Path:
    """Names the folder with the former content while `path` is replaced, whole if it exists."""
    return path.with_name(f".{path.name}.previous")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the path of a new file, which takes the place of `path` when the block ends well.

    The file is synchronised before it is seen.
    """
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        _synchronise(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, and is synchronised before."""
    with whole_file(path) as part:
        part.write_bytes(content)


def remove_folder(path: Path) -> None:
    """Removes a folder under another name, so that nobody reads a part of it."""
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")
    with contextlib.suppress(OSError):
        path.rename(part)
        shutil.rmtree(part)


def put_in_place(part: Path, path: Path) -> None:
    """Renames a finished folder; the former one is renamed before that and removed after it."""
    previous = previous_folder(path)
    try:
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            path.rename(previous)
        part.rename(path)
    except BaseException:  # Ctrl-C as well.
        if previous.is_dir() and not path.exists():
            previous.rename(path)
        raise
    _synchronise(path.parent)
    if previous.is_dir():
        remove_folder(previous)


def _synchronise(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk, so that a power cut loses nothing."""
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        return
    with contextlib.suppress(OSError):  # Windows cannot.
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
