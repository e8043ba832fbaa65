"""The progress bar of a fit."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

from tqdm.auto import tqdm

__all__ = ["Progress"]


class Progress:
    """Shows a progress bar whose failure does not end the fit; nothing in the first second.

    Args:
        total: Number of steps of the fit.
        initial: Number of steps done before.
        enabled: Whether to show anything.
    """

    def __init__(self, total: int, initial: int, enabled: bool) -> None:
        self._bar: tqdm | None = None
        if enabled:
            with contextlib.suppress(Exception):
                self._bar = tqdm(total=total, initial=initial, mininterval=0.5, delay=1.0)

    def update(self, stage: str, loss: float) -> None:
        """Counts a step and shows its loss."""
        self._guard(lambda bar: (bar.set_postfix_str(f"{stage} {loss:.4f}", False), bar.update()))

    def skip(self, steps: int) -> None:
        """Counts steps that early stopping made unnecessary."""
        if steps:
            self._guard(lambda bar: bar.update(steps))

    def _guard(self, action: Callable[[tqdm], object]) -> None:
        if self._bar is None:
            return
        try:
            action(self._bar)
        except Exception as error:  # A closed terminal must not end a fit of an hour.
            self._bar = None
            warnings.warn(f"the progress bar failed and is switched off: {error}", stacklevel=2)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(Exception):
                self._bar.close()
