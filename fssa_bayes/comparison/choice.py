"""The size of a model, such as its number of latent dimensions, chosen on people left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from fssa_bayes.comparison.elpd import compare
from fssa_bayes.comparison.people import Fittable, Pair, fit_fresh, leave_users_out, score_users
from fssa_bayes.data import Preferences

__all__ = ["LatentDimChoice", "choose_latent_dim", "choose_size"]


@dataclass(frozen=True)
class LatentDimChoice:
    """Holds the number of latent dimensions chosen by some people and judged by others.

    Attributes:
        latent_dim: The number chosen.
        choosing: The comparison by which the number was chosen, see :func:`compare`; index
            `latent_dim`.
        reported: The comparison on people who had no part in choosing or fitting, of the number
            chosen, its neighbours and the smallest.
        num_choosing: Number of people by whom the number was chosen.
        num_reported: Number of people by whom the choice was judged.
    """

    latent_dim: int
    choosing: pd.DataFrame
    reported: pd.DataFrame
    num_choosing: int
    num_reported: int

    def __str__(self) -> str:
        lines = [
            f"{self.latent_dim} latent dimensions: the fewest within one standard error of the "
            f"best, by leaving out people among {self.num_choosing}. Judged by {self.num_reported} "
            "others, who took no part in choosing or fitting:"
        ]
        for width, row in self.reported.iterrows():
            if width != self.reported.index[0]:
                lines.append(
                    f"{width} against {self.reported.index[0]}: {-row['per_unit']:+.3f} ± "
                    f"{row['dse'] / self.num_reported:.3f} nats a person ({row['verdict']})."
                )
        return "\n".join(lines)


def choose_latent_dim(
    build: Callable[[int], Pair],
    data: Preferences,
    latent_dims: Sequence[int] = (0, 1, 2, 3),
    *,
    report_size: float = 0.3,
    num_folds: int = 3,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> LatentDimChoice:
    """Chooses the number of latent dimensions on some people, and reports its score on others.

    The score of a number chosen because it scored best is too good. The score is therefore reported
    on people who had no part in the choice.

    Args:
        build: Takes a number of latent dimensions and returns a fresh model and its guide, None
            for 0.
        data: The comparisons of all people.
        latent_dims: Numbers to choose from, at least two.
        report_size: Share of the people by whom the choice is judged.
        num_folds: Folds of :func:`leave_users_out` among the other people.
        seed: Seed of the split, and as in :func:`leave_users_out`.
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
    choosing, reporting = data.split_users(report_size, seed=seed)
    options = {"seed": seed, "num_samples": num_samples}
    chosen, table = choose_size(
        build, choosing, widths, num_folds, fit_options=fit_options, **options
    )
    place = widths.index(chosen)
    final = {}
    for width in sorted({*widths[max(0, place - 1) : place + 2], widths[0]}):
        model, guide = fit_fresh(lambda width=width: build(width), choosing, seed, fit_options)
        final[width] = score_users(model, guide, reporting, **options)
    return LatentDimChoice(
        latent_dim=chosen,
        choosing=table.rename_axis("latent_dim"),
        reported=compare(final).rename_axis("latent_dim"),
        num_choosing=len(choosing),
        num_reported=len(reporting),
    )


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
        num_folds: As in :func:`leave_users_out`, like the next three.
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
    scores = {
        size: leave_users_out(lambda size=size: build(size), data, num_folds, **options)
        for size in sizes
    }
    table = compare(scores)
    close = table["elpd_diff"] <= table["dse"].fillna(0)
    return int(min(table.index[close])), table
