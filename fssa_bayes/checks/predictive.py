r"""Do people simulated from a fitted model behave as the real ones do?

Simulation-based calibration asks whether an inference fits its model, and passes on a wrong model.
These checks ask whether the model fits people: the real choices against the choices of people drawn
from the model and asked about the same pairs. They look at what a heterogeneous model of paired
comparisons is for, how people agree and differ, and need no posterior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from fssa_bayes._random import seeded
from fssa_bayes.checks.enough import NotEnoughDataError
from fssa_bayes.checks.statistics import CHECKS, prepare_statistics
from fssa_bayes.data import Preferences, check_unweighted, user_batches
from fssa_bayes.data.comparisons import select_where
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.posterior import PopulationDraws

__all__ = ["compare_with_replicates", "drop_half_wins", "predictive_checks", "simulate_choices"]

_CHOICES_AT_ONCE = 2**22  # Simulated choices held at once.


def predictive_checks(
    model: HeterogeneousBTL,
    data: Preferences,
    num_replicates: int = 400,
    *,
    level: float = 0.05,
    population: PopulationDraws | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compares real choices with those of people simulated from the model on the same pairs.

    The residual e = y − p̄ of a choice is its distance from the probability p̄ averaged over people
    (over people with the same covariates, where the model has any). A person's *spread* in the
    direction a is :math:`\sum_{n \ne m} a_{nm} e_n e_m`, here summed over people and divided by
    :math:`\sum |a_{nm}|`: an average covariance of two choices of one person, which only
    differences between people bring about.

    - `share of left`: share of choices of the left item (sees a position bias).
    - `share of ties`: share of ties, where the model has them.
    - `agreement on shared pairs`: probability that two people who judged the same pair agree.
    - `intransitive triples`: share of cycles among three items that one person compared with each
      other, repeated judgements averaged.
    - `spread: left`, a = 1: do people differ in their liking for the left side?
    - `spread: ties`, a = 1 and e = 1[tie] − P(tie): do people differ in how readily they
      call a tie, where the model has ties?
    - `spread: favourites`, a = s_n s_m with s the sign of p̄ − ½: do people differ in how often
      they choose what most people choose (consistency, lapses, taste)?
    - `spread: similar pairs`, a = d_n·d_m with d the difference of the items' standardised
      features: the score test of Λ = λI against the homogeneous model.
    - `spread: the model's directions`, a = c_nm / (v_n v_m) with c the model's own covariance of
      the two choices and v = p̄(1 − p̄): sees a between-person variance that is too small or too
      large as a whole. Not for a homogeneous model, which has no such directions.
    - `spread: NAME`, a = d_n d_m in the feature NAME alone; up to 8 features.

    Args:
        model: A fitted model, homogeneous or not.
        data: Real choices. People of the fit make the checks conservative. Other people do not,
            but the error of the population's estimates then counts as a difference, unless
            `population` is given.
        num_replicates: Number of simulated data sets.
        level: Probability that a check rejects any part of a model that is true: the verdicts are
            adjusted for the number of checks.
        population: Draws of the population's parameters, which the replicates take in turn, so
            that their uncertainty is part of the comparison; None holds them fixed.
        seed: Seed of the draws.

    Returns:
        One row a check (index `check`). Columns: `observed`; `replicated` and `sd`, mean and
        standard deviation over the replicates; `tail_probability`, two-sided, of this check alone,
        and `tail_error`, its Monte-Carlo standard error; `adjusted`, the probability that the
        largest standardised deviation of all checks is as large as that of this check; `units`,
        the number of pairs, triples or people that the check rests on; `verdict`, `"as the model
        says"`, `"higher than the model says"`, `"lower than the model says"`, or why the check was
        skipped. Half wins are left out of real and of simulated choices.

    Raises:
        NotEnoughDataError: If there is no choice other than half wins.
        ValueError: If the data do not fit the model or an option is out of range.

    References:
        Gelman, Meng & Stern (1996), Posterior predictive assessment of model fitness via realized
        discrepancies.
        Westfall & Young (1993), Resampling-based multiple testing, for the adjustment.
        Commenges & Jacqmin-Gadda (1997), Generalized score test of homogeneity based on correlated
        random effects models.
    """
    check_unweighted(data, "predictive_checks()")
    data = align(model, data)
    if not isinstance(num_replicates, int) or num_replicates < 20:
        raise ValueError(f"num_replicates must be an integer of at least 20, got {num_replicates}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    models = [model] if population is None else [member for member, _ in population.members]
    data = drop_half_wins(data)
    with seeded(seed), torch.no_grad():
        statistics, skipped = prepare_statistics(model, data, seed)
        observed = statistics(data.choice[None].astype(np.float32))
        replicated = [
            statistics(choices) for choices in simulate_choices(models, data, num_replicates)
        ]
    return compare_with_replicates(
        statistics.names,
        observed[0],
        np.concatenate(replicated),
        statistics.units,
        skipped,
        level,
    )


def drop_half_wins(data: Preferences) -> Preferences:
    """Leaves out half wins, which a model without ties never simulates; ties are kept.

    Raises:
        NotEnoughDataError: If no choice is left.
    """
    keep = ~data.half_wins
    if data.num_comparisons and (keep.all() or data.ties == "keep"):
        return data
    if not keep.any():
        raise NotEnoughDataError("data must have choices other than half wins, got none")
    return select_where(data, keep)


def simulate_choices(
    models: Sequence[HeterogeneousBTL], data: Preferences, num: int
) -> Iterator[np.ndarray]:
    """Yields choices (B, R) of new people on the same pairs, some of `num` replicates at a time.

    Of several models each replicate takes the next.
    """
    size = max(1, min(num, _CHOICES_AT_ONCE // data.num_comparisons))
    rounds = [range(start, min(start + size, num)) for start in range(0, num, size)]
    if len(models) > 1:  # Replicate by replicate, each from the next population.
        rounds = [range(number, number + 1) for number in range(num)]
    for number, replicates in enumerate(rounds):
        model, count = models[number % len(models)], len(replicates)
        parts = []
        for _, batch in user_batches(data, count, model.device):
            z = model.prior(batch.num_users, batch.covariates).sample((count,))
            parts.append(model.choice(batch, z).sample()[:, batch.mask].cpu())
        yield torch.cat(parts, -1).numpy()


def compare_with_replicates(
    names: list[str],
    observed: np.ndarray,
    replicated: np.ndarray,
    units: dict[str, int],
    skipped: dict[str, str],
    level: float,
) -> pd.DataFrame:
    """Compares observed statistics with replicated ones.

    Args:
        names: Names of the T statistics.
        observed: Statistics of the real choices, (T,).
        replicated: Statistics of the simulated choices, (B, T).
        units: What each statistic rests on, by name.
        skipped: Why other checks were skipped, by name.
        level: Probability that any part of a model that is true is rejected.

    Returns:
        The table of :func:`predictive_checks`.
    """
    count = len(replicated)
    mean, sd = replicated.mean(0), replicated.std(0, ddof=1)
    # If the model is true, the observed data are one more replicate.
    pool = np.vstack([observed, replicated])
    spread = pool.std(0)
    deviation = np.abs(pool - pool.mean(0)) / np.where(spread > 0, spread, np.inf)
    worst = deviation.max(-1)
    adjusted = (worst[None, :] >= deviation[0][:, None] - 1e-9).mean(-1)
    higher = (1 + (replicated >= observed - 1e-12).sum(0)) / (1 + count)
    lower = (1 + (replicated <= observed + 1e-12).sum(0)) / (1 + count)
    tail = np.minimum(1.0, 2 * np.minimum(higher, lower))
    side = np.where(observed > mean, "higher", "lower")
    rows = {}
    for position, name in enumerate(names):
        rejected = adjusted[position] <= level
        rows[name] = {
            "observed": observed[position],
            "replicated": mean[position],
            "sd": sd[position],
            "tail_probability": tail[position],
            "tail_error": 2 * math.sqrt(tail[position] / 2 * (1 - tail[position] / 2) / count),
            "adjusted": adjusted[position],
            "units": units[name],
            "verdict": f"{side[position]} than the model says" if rejected else "as the model says",
        }
    for name, reason in skipped.items():
        rows[name] = {"units": 0, "verdict": reason}
    order = [name for name in CHECKS if name in rows]
    order += [name for name in rows if name not in order]
    columns = ["observed", "replicated", "sd", "tail_probability", "tail_error", "adjusted"]
    table = pd.DataFrame.from_dict(rows, orient="index").loc[order, [*columns, "units", "verdict"]]
    return table.rename_axis("check")
