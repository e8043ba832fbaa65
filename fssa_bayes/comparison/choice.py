"""The size of a model, such as its number of latent dimensions, chosen on people left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from fssa_bayes.comparison.elpd import compare
from fssa_bayes.comparison.people import (
    Fittable,
    Pair,
    fit_fresh,
    hold_users_out,
    leave_users_out,
    score_users,
)
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["LatentDimChoice", "choose_latent_dim", "choose_size"]

_RULE = "the fewest within one standard error of the best"


@dataclass(frozen=True)
class LatentDimChoice:
    """Holds the number of latent dimensions chosen by some people and judged by others.

    Attributes:
        latent_dim: The number chosen.
        choosing: The comparison by which the number was chosen, see :func:`compare`; index
            `latent_dim`.
        reported: The comparison on people who had no part in choosing or fitting, of the number
            chosen, its neighbours and the smallest; None where nobody was kept for it.
        num_choosing: Number of people by whom the number was chosen.
        num_reported: Number of people by whom the choice was judged.
    """

    latent_dim: int
    choosing: pd.DataFrame
    reported: pd.DataFrame | None
    num_choosing: int
    num_reported: int

    def __str__(self) -> str:
        lines = [
            f"{self.latent_dim} latent dimensions: {_RULE}, by leaving out people among "
            f"{self.num_choosing}."
        ]
        if self.reported is None:
            return lines[0]
        lines[0] += (
            f" Judged by {self.num_reported} others, who took no part in choosing or fitting:"
        )
        for width, row in self.reported.iterrows():
            if width != self.reported.index[0]:
                lines.append(
                    f"{width} against {self.reported.index[0]}: {-row['per_unit']:+.3f} ± "
                    f"{row['dse'] / self.num_reported:.3f} nats a person ({row['verdict']})."
                )
        return "\n".join(lines)


def choose_latent_dim(
    data: Preferences,
    latent_dims: Sequence[int] = (0, 1, 2, 4, 8),
    *,
    build: Callable[[int], Pair] | None = None,
    num_folds: int = 1,
    report_size: float = 0.0,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> LatentDimChoice:
    """Chooses the number of latent dimensions on people held out.

    By default every number is fitted once, to three quarters of the people, and scored by the
    others: log p of all choices of a person, z integrated out. Differences are paired by person.
    The score of a number chosen because it scored best is too good; with `report_size` the score
    is reported on people who had no part in the choice.

    Args:
        data: The comparisons of all people.
        latent_dims: Numbers to choose from, at least two.
        build: Takes a number of latent dimensions and returns a fresh model and its guide, None
            for 0. None is the linear utility for items without features, else the bilinear one.
        num_folds: 1 for one split; else the folds of :func:`leave_users_out`.
        report_size: Share of the people by whom the choice is judged; 0 for nobody.
        seed: Seed of the splits, and as in :func:`leave_users_out`.
        num_samples: As in :func:`leave_users_out`.
        fit_options: As in :func:`leave_users_out`.

    Returns:
        The choice, made by :func:`choose_size`.

    Raises:
        ValueError: If there are fewer than two different numbers or an option is out of range.
    """
    widths = sorted(set(latent_dims))
    if len(widths) < 2 or widths[0] < 0:
        raise ValueError(f"latent_dims must be at least 2 numbers from 0 up, got {latent_dims}")
    if not 0 <= report_size < 1:
        raise ValueError(f"report_size must lie in [0, 1), got {report_size}")
    check_unweighted(data, "choose_latent_dim()")
    choosing, reporting = data, None
    if report_size:
        choosing, reporting = data.split_users(report_size, seed=seed)
    build = build or (lambda width: _build(data, width, seed))
    options = {"seed": seed, "num_samples": num_samples}
    chosen, table = choose_size(
        build, choosing, widths, num_folds, fit_options=fit_options, **options
    )
    place, final = widths.index(chosen), {}
    for width in sorted({*widths[max(0, place - 1) : place + 2], widths[0]}) if reporting else ():
        model, guide = fit_fresh(partial(build, width), choosing, seed, fit_options)
        final[width] = score_users(model, guide, reporting, **options)
    return LatentDimChoice(
        latent_dim=chosen,
        choosing=table.rename_axis("latent_dim"),
        reported=compare(final).rename_axis("latent_dim") if final else None,
        num_choosing=len(choosing),
        num_reported=len(reporting) if reporting else 0,
    )


def _build(data: Preferences, latent_dim: int, seed: int) -> Pair:
    """Builds a model of the data by default options, and its guide."""
    utility = "linear" if data.items is None else "bilinear"
    model = HeterogeneousBTL.for_data(data, latent_dim, seed=seed, utility=utility)
    return model, NeuralProcessGuide(model) if latent_dim else None


def choose_size(
    build: Callable[[int], Pair | Fittable],
    data: Preferences,
    sizes: Sequence[int],
    num_folds: int = 5,
    *,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> tuple[int, pd.DataFrame]:
    """Chooses the size of a model by how well people left out are predicted.

    Args:
        build: Takes a size and returns what :func:`leave_users_out` asks of its `build`.
        data: The comparisons of all people.
        sizes: Different sizes to choose from, such as numbers of latent dimensions or of classes.
        num_folds: As in :func:`leave_users_out`, like the next three; 1 for one split, by
            :func:`hold_users_out`.
        seed: Seed of folds, fits and proposals.
        num_samples: Number of proposals for each person to begin with.
        fit_options: Arguments of :func:`fssa_bayes.fit`.

    Returns:
        The smallest size whose score is within one standard error of the difference from the best,
        and the table of :func:`compare` by size. The score of a size that was chosen by this score
        is too good to be reported as the score of the model.

    References:
        Hastie, Tibshirani & Friedman (2009), The elements of statistical learning, section 7.10,
        on the one-standard-error rule.
    """
    options = {"seed": seed, "num_samples": num_samples, "fit_options": fit_options}
    if num_folds == 1:
        scores = {size: hold_users_out(partial(build, size), data, **options) for size in sizes}
    else:
        scores = {
            size: leave_users_out(partial(build, size), data, num_folds, **options)
            for size in sizes
        }
    table = compare(scores)
    close = table["elpd_diff"] <= table["dse"].fillna(0)
    return int(min(table.index[close])), table
