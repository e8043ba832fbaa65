"""Error against time, a panel a problem and a line a rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["draw_curves"]

_STYLES = {  # Lines that differ in mark and stroke where colours do not show.
    "Posterior": {"color": "tab:blue", "marker": "o", "linewidth": 2.2},
    "guide alone": {"color": "tab:blue", "marker": "o", "linestyle": ":", "markerfacecolor": "w"},
    "Laplace, smoothed": {"color": "tab:green", "marker": "s"},
    "shared Sobol": {"color": "tab:purple", "marker": "D", "linestyle": "--"},
    "Pólya–Gamma Gibbs": {"color": "tab:brown", "marker": "v", "linestyle": "-."},
    "NumPyro NUTS": {"color": "black", "marker": "^"},
    "NumPyro HMC": {"color": "dimgray", "marker": "x", "linestyle": "--"},
}


def draw_curves(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    path: Path,
    *,
    levels: Sequence[float],
) -> None:
    """Draws rms errors against CPU milliseconds a person, both on logarithmic scales.

    Args:
        curves: By title of the panel and name of the rival, times and errors.
        path: Where the figure goes.
        levels: Errors that are marked by horizontal lines.
    """
    from matplotlib.figure import Figure

    columns = min(3, -(-(len(curves) + 1) // 2))
    rows = -(-(len(curves) + 1) // columns)  # The legend has a panel of its own.
    figure = Figure(figsize=(3.7 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    handles = {}
    for axes, (title, lines) in zip(panels, curves.items(), strict=False):
        for name, (times, errors) in lines.items():
            (handles[name],) = axes.loglog(
                times, errors, label=name, markersize=5, **_STYLES.get(name, {})
            )
        for level in levels:
            axes.axhline(level, color="gray", linewidth=0.8, alpha=0.6)
        axes.set_title(title, fontsize=10)
        axes.grid(which="major", alpha=0.3)
        axes.tick_params(labelbottom=True, labelleft=True)
    for axes in panels[len(curves) :]:
        axes.axis("off")
    panels[len(curves)].legend(handles.values(), handles.keys(), loc="center", frameon=False)
    smallest = min(np.min(errors) for lines in curves.values() for _, errors in lines.values())
    panels[0].set_ylim(bottom=max(smallest / 1.5, 1e-4))
    figure.supxlabel("CPU milliseconds a person, one thread", fontsize=10)
    figure.supylabel("rms error of choice probabilities", fontsize=10)
    figure.savefig(path, dpi=130)
