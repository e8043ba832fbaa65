"""Published log-likelihoods of logits and mixed logits beside those that this package reaches.

Values of mixed logits are estimated afresh, by heavy-tailed importance draws that the fit has not
seen. A published value above the maximum is noise of its simulation: maximum simulated likelihood
chooses parameters under which its own few draws do well, and fresh draws do not confirm the value.
Fits whose value is lower than the best seed's by more than a nat are counted: likelihoods of mixed
logits have local maxima.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import Row, spread
from fssa_bayes import FitResult, HeterogeneousBTL, Preferences, fit
from fssa_bayes.datasets import cars_us, electricity, swiss_route, train_choice, yogurt

OURS = "fssa_bayes"
TARGET_ERROR = 0.2  # Nats, of a log-likelihood that is estimated afresh.
LOWER = 1.0  # Nats below the best seed at which a fit has ended at another maximum.


@dataclass(frozen=True)
class Logit:
    """Names a model and what was published of it.

    Attributes:
        name: What the model is called.
        published: Published log-likelihoods by source.
        options: How coefficients differ between people; None where they do not.
    """

    name: str
    published: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, object] | None = None


NONE = {"correlation": "none"}
PRICE_FIXED = {"coefficients": {"price": "fixed"}}
NEGATIVE = {"coefficients": ["-lognormal"] * 4}

LOGITS = {
    "electricity": [
        Logit("logit", {"xlogit, torch-choice": -4958.649}),
        Logit(
            "normal",
            {"xlogit, 600 draws": -3888.5, "xlogit, 1,500 draws": -3886.2},
            NONE,
        ),
        Logit("correlated", options={}),
        Logit(
            "pf fixed, correlated",
            {"mlogit, 100 draws": -3851.4},
            {"coefficients": {"pf": "fixed"}},
        ),
        Logit("pf log-normal", options=NONE | {"coefficients": {"pf": "-lognormal"}}),
    ],
    "yogurt": [
        Logit("logit", {"logitr, torch-choice": -2656.888}),
        Logit("normal", {"logitr, 500 draws": -1243.5}, NONE | PRICE_FIXED),
        Logit("correlated", {"logitr, 500 draws": -1227.9}, PRICE_FIXED),
    ],
    "train": [
        Logit("logit", {"mlogit": -1724.150}),
        Logit("normal", options=NONE),
        Logit(
            "correlated",
            {"500 Halton draws": -1346.6, "500 Halton draws, again": -1351.0},
            {},
        ),
        Logit("log-normal", options=NONE | NEGATIVE),
        Logit("log-normal, correlated", options=NEGATIVE),
    ],
    "swiss_route": [
        Logit("logit", {"torch-choice": -1665.689}),
        Logit("normal", options=NONE),
        Logit("correlated", options={}),
        Logit("log-normal", options=NONE | NEGATIVE),
        Logit("log-normal, correlated", options=NEGATIVE),
    ],
    "cars_us": [
        Logit("logit", {"logitr": -4616.952}),
        Logit("normal", options=NONE | PRICE_FIXED),
    ],
}
"""The models by name of the data. The coefficient of the price is fixed in those of yogurt and
cars_us; log-normal coefficients are negative."""


def run(args: argparse.Namespace) -> Iterator[Row]:
    for name, read in readers(args.data).items():
        data = read()
        if args.quick:
            data = data.subset(range(20))
        for logit in LOGITS[name][:2] if args.quick else LOGITS[name]:
            yield from compare(name, data, logit, args.seeds)


def readers(path: Path | None) -> dict[str, Callable[[], Preferences]]:
    """Lists the data that are there: those of the package, and those in the folder of a file."""
    found: dict[str, Callable[[], Preferences]] = {
        "electricity": electricity.read,
        "yogurt": yogurt.read,
    }
    if path is None:
        print("parity: train, swiss_route and cars_us skipped, they need --data PATH")
        return found
    found["train"] = lambda: train_choice.read(path)
    for name, module in (("swiss_route", swiss_route), ("cars_us", cars_us)):
        file = path.parent / module.FILE
        if file.exists():
            found[name] = lambda module=module, file=file: module.read(file)
        else:
            print(f"parity: {name} skipped, there is no {file}")
    return found


def compare(name: str, data: Preferences, logit: Logit, seeds: list[int]) -> Iterator[Row]:
    """Fits a model with each seed, and sets published values beside what fresh draws give."""
    case = f"{name}: {logit.name}"
    values = defaultdict(list)
    seeds = seeds if logit.options is not None else seeds[:1]  # Its likelihood is exact.
    for seed in seeds:
        started, used = time.perf_counter(), time.process_time()
        result = fit_logit(data, logit, seed)
        values["fit: CPU time", "s"].append(time.process_time() - used)
        values["fit: wall-clock time", "s"].append(time.perf_counter() - started)
        # The seeds of the draws are none of the fits'.
        estimate = result.log_marginal_likelihood(seed=1_000 + seed, target_error=TARGET_ERROR)
        values["log-likelihood", "nats"].append(estimate.value)
        if logit.options is not None:
            values["its Monte-Carlo standard error", "nats"].append(estimate.standard_error)
    reached = values["log-likelihood", "nats"]
    error = max(values.get(("its Monte-Carlo standard error", "nats"), [0.0]))
    for source, value in logit.published.items():
        is_noise = value > max(reached) + 3 * error + 0.0005
        note = ", noise above the maximum" if is_noise else ""
        yield spread("parity", case, source, f"log-likelihood{note}", "nats", [value])
    for (metric, unit), figures in values.items():
        yield spread("parity", case, OURS, metric, unit, figures)
    if logit.options is not None:
        lower = sum(value < max(reached) - LOWER for value in reached)
        yield spread("parity", case, OURS, f"seeds of {len(seeds)} at a lower maximum", "", [lower])


def fit_logit(data: Preferences, logit: Logit, seed: int) -> FitResult:
    """Fits by maximum likelihood, without a guide."""
    model = HeterogeneousBTL.for_data(
        data,
        0 if logit.options is None else None,
        seed=seed,
        utility="linear",
        feature_names=data.feature_names,
        num_covariates=0,
        **(logit.options or {}),
    )
    with warnings.catch_warnings():
        # Posteriors of persons, which it concerns, are not what is compared.
        warnings.filterwarnings("ignore", message="[0-9,]+ people are few for the")
        warnings.filterwarnings("ignore", message="the model does not use the covariates")
        return fit(model, None, data, seed=seed, progress_bar=False)
