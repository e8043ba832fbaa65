"""The number of latent dimensions, chosen on people left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from fssa_bayes.comparison.elpd import Pair, compare, fit_fresh, leave_users_out, score_users
from fssa_bayes.data import Preferences

__all__ = ["LatentDimChoice", "choose_latent_dim"]


@dataclass(frozen=True)
class LatentDimChoice:
    """Holds the number of latent dimensions chosen by some people and judged by others.

    Attributes:
        latent_dim: The number chosen.
        choosing: The comparison that it was chosen by, see :func:`compare`; index `latent_dim`.
        reported: The same on people who had no part in choosing or fitting, for the number
            chosen, its neighbours and 0.
        num_choosing: Number of people the choice was made by.
        num_reported: Number of people it was judged by.
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

    The score of a number chosen because it scored best is too good; so it is reported on people
    who had no part in the choice.

    Args:
        build: Takes a number of latent dimensions and returns a fresh model and its guide, None
            for 0.
        data: The comparisons of all people.
        latent_dims: Numbers to choose from, at least two.
        report_size: Share of the people that the choice is judged by.
        num_folds: Folds of :func:`leave_users_out` among the others.
        seed: Seed of the split, and as in :func:`leave_users_out`.
        num_samples: As in :func:`leave_users_out`.
        fit_options: As in :func:`leave_users_out`.

    Returns:
        The choice: the smallest number whose score is within one standard error of the difference
        from the best.

    Raises:
        ValueError: If there are fewer than two different numbers or an option is out of range.

    References:
        Hastie, Tibshirani & Friedman (2009), The elements of statistical learning, section 7.10,
        on the one-standard-error rule.
    """
    widths = sorted(set(latent_dims))
    if len(widths) < 2 or widths[0] < 0:
        raise ValueError(f"latent_dims must be at least 2 numbers from 0 up, got {latent_dims}")
    choosing, reporting = data.split_users(report_size, seed=seed)
    options = {"seed": seed, "num_samples": num_samples}
    scores = {
        width: leave_users_out(
            lambda width=width: build(width),
            choosing,
            num_folds,
            fit_options=fit_options,
            **options,
        )
        for width in widths
    }
    chosen_by = compare(scores).rename_axis("latent_dim")
    close = chosen_by["elpd_diff"] <= chosen_by["dse"].fillna(0)
    chosen = min(chosen_by.index[close])
    place = widths.index(chosen)
    shown = {*widths[max(0, place - 1) : place + 2], widths[0]}
    final = {}
    for width in sorted(shown):
        model, guide = fit_fresh(lambda width=width: build(width), choosing, seed, fit_options)
        final[width] = score_users(model, guide, reporting, **options)
    return LatentDimChoice(
        latent_dim=int(chosen),
        choosing=chosen_by,
        reported=compare(final).rename_axis("latent_dim"),
        num_choosing=len(choosing),
        num_reported=len(reporting),
    )
