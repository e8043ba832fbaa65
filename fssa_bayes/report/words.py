"""Words of the field: column headings in words, and what a term means where it is first used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from fssa_bayes.report.page import Section

__all__ = ["TERMS", "explain_terms", "with_headings"]

_HEADINGS = {
    "adjusted": "p, adjusted",
    "comparisons": "comparisons",
    "dse": "standard error of that",
    "elpd": "expected log density (nats)",
    "elpd_diff": "behind the best (nats)",
    "estimate": "estimate (nats a unit)",
    "expected": "expected (nats)",
    "high_k": "share with k-hat above .7",
    "latent_dim": "latent dimensions",
    "log_evidence": "log p of the choices (nats)",
    "lower": "lower end (90\u00a0%)",
    "p_value": "p",
    "per_unit": "behind the best, a person (nats)",
    "rank_lower": "best rank (90\u00a0%)",
    "rank_upper": "worst rank (90\u00a0%)",
    "sd": "standard deviation",
    "se": "standard error",
    "se_sandwich": "standard error",
    "standard_deviation": "standard deviation (nats)",
    "standard_error": "standard error",
    "tail_error": "standard error of p",
    "tail_probability": "p",
    "upper": "upper end (90\u00a0%)",
    "user": "person",
    "utility": "utility (nats)",
    "utility_se": "standard error (nats)",
    "wins": "probability of winning",
    "wins_se": "standard error of the probability",
}

TERMS: dict[str, tuple[str, str]] = {
    "Akaike weight": (
        r"Akaike weight",
        "The weight of a model among others, from its likelihood less its number of parameters.",
    ),
    "bilinear": (
        r"\bbilinear\b",
        "A utility of two neural networks, one of the item and one of the person, which can bend "
        "where a linear utility is straight.",
    ),
    "bootstrap": (
        r"\bbootstrap\b",
        "The spread of an estimate or a statistic over data drawn again, from the people or from a "
        "fitted model.",
    ),
    "Bradley–Terry(–Luce) model": (
        r"Bradley–Terry",
        "The probability that one item is preferred to another is the logistic function of the "
        "difference of their utilities.",
    ),
    "clustered by person": (
        r"clustered by person|people as clusters",
        "Standard errors that count people and not answers, since the answers of one person are "
        "alike.",
    ),
    "Davidson's ν": (
        r"Davidson's ν",
        "The parameter of ties: two items of the same utility tie with probability ν / (2 + ν).",
    ),
    "effective sample size": (
        r"[Ee]ffective (share|sample|number)|\bESS\b",
        "How many independent draws the weighted draws are worth.",
    ),
    "empirical Bayes": (
        r"[Ee]mpirical[ -]Bayes",
        "The population is estimated from many people and then held fixed while a person's "
        "posterior is computed.",
    ),
    "expected calibration error": (
        r"[Ee]xpected calibration error",
        "The mean distance between forecast probabilities and how often they come true.",
    ),
    "guide": (
        r"\bguide\b",
        "The network that approximates the posterior of a person from the choices.",
    ),
    "importance weights": (
        r"[Ii]mportance[ -]weight",
        "Weights of draws from an approximation that make them draws of the posterior.",
    ),
    "isotonic": (
        r"\bisotonic\b",
        "An estimate of how often forecasts come true that rises with the forecast, and is "
        "free else.",
    ),
    "k-hat": (
        r"k-hat",
        "Estimated shape of the tail of importance weights (Pareto). Below .7, means of the "
        "weighted draws can be trusted.",
    ),
    "KL": (
        r"\bKL\b",
        "The Kullback–Leibler divergence of one distribution from another, in nats; 0 where "
        "they agree.",
    ),
    "latent dimension": (
        r"latent dimension",
        "A direction in which people differ; everybody has a number in each.",
    ),
    "latent factor z": (
        r"latent factor",
        "The numbers that tell one person from another.",
    ),
    "likelihood ratio": (
        r"[Ll]ikelihood[ -]ratio",
        "How much more probable the choices are under one fitted model than under another.",
    ),
    "log score": (
        r"\b[Ll]og scores?\b",
        "The logarithm of the probability that was forecast for what was chosen; 0 is the best.",
    ),
    "mixed logit": (
        r"mixed logit",
        "Logit whose coefficients differ between people by a distribution; random coefficients "
        "logit, random parameters logit.",
    ),
    "Monte-Carlo error": (
        r"Monte-Carlo error",
        "The error that comes from a finite number of random draws, and not from the data.",
    ),
    "nat": (
        r"\bnats?\b",
        "Unit of utilities and of log probabilities: natural logarithms. A difference in utility "
        "of one nat is odds of 2.72.",
    ),
    "p-value": (
        r"\bp = |p-value",
        "The probability of data at least as extreme, if what is tested were true.",
    ),
    "posterior": (
        r"\b[Pp]osteriors?\b",
        "What is believed of a person or a parameter, as a distribution, after the choices.",
    ),
    "sandwich": (
        r"\bsandwich\b",
        "Standard errors that hold where the model is not quite right, too.",
    ),
    "simulation-based calibration (SBC)": (
        r"[Ss]imulation-based calibration|\bSBC\b",
        "People are simulated from the model; ranks of the truth among posterior draws must be "
        "uniform.",
    ),
    "TARP": (
        r"\bTARP\b",
        "A test of whether a posterior covers the truth in all dimensions together, by balls "
        "around reference points.",
    ),
    "utility": (
        r"\b([Uu]tility|[Uu]tilities)\b",
        "What an item is worth to a person; differences between items decide choices.",
    ),
}
"""What each term means, after the pattern by which a report is searched for the term.

The glossary of the documentation begins its entries with the same sentences.
"""


def with_headings(table: pd.DataFrame, **headings: str) -> pd.DataFrame:
    """Heads the columns of a table that is shown in words, with units.

    Args:
        table: The table, its index among the columns.
        **headings: Headings of this table's own, by column; others are those of all reports.
    """
    return table.rename(columns=_HEADINGS | headings)


def explain_terms(sections: Sequence[Section]) -> list[Section]:
    """Puts what a term means below the first section that uses the term.

    Args:
        sections: The parts of a page, in order.
    """
    explained, left = [], dict(TERMS)
    for section in sections:
        text = "\n".join(_words_of(section))
        found = {term: why for term, (pattern, why) in left.items() if re.search(pattern, text)}
        left = {term: value for term, value in left.items() if term not in found}
        explained.append(replace(section, terms=found))
    return explained


def _words_of(section: Section) -> Iterator[str]:
    """Yields all texts of a section but the cells of its tables, which are data."""
    yield section.heading
    yield from section.warnings
    yield from section.text
    if section.table is not None:
        yield from map(str, section.table.columns)
        if section.cards:  # Checks, whose cells are words of the report.
            yield from map(str, section.table.to_numpy().ravel())
    for part in section.parts:
        yield from _words_of(part)
    for figure in section.figures:
        yield figure.caption
