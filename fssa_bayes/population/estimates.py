"""Estimates with their covariance: errors, intervals and p-values of all tables come from here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import special  # scipy.stats takes ten times as long to import.
from torch import Tensor

from fssa_bayes.population.standard_errors import KINDS, Uncertainty

__all__ = ["Estimates"]

_LEAST_ALONE = 0.5  # Share of a variance that rests on single people from which it is said.
_ALL_ALONE = 0.9  # Share from which a quantity rests on single people by itself.
_MOST_NAMED = 5


@dataclass(frozen=True)
class Estimates:
    """Holds estimates of quantities, their covariance and its degrees of freedom.

    The covariance is one of three kinds. `"hessian"` is the inverse of the observed information,
    the classical one, which takes a person's choices for independent. `"outer_product"` is the
    inverse of the sum of the outer products of people's scores. `"sandwich"` is both together, with
    people as clusters, which holds for dependent choices and a misspecified model too.

    The sandwich of few people is corrected, and intervals and p-values are those of Student's t:

    * for a homogeneous model with lapses the factor G / (G − 1) of fewer than 100 people, and G − 1
      degrees, as choices' likelihood is not concave;
    * without lapses CR2, with Satterthwaite's degrees of freedom. It concerns the scores of people
      who compared an item that fewer than 100 people compared; of everybody, where items
      have features and there are fewer than 100 people;
    * for a heterogeneous model or a mixture the factor G / (G − 1) of fewer than 100 people, and
      G − 1 degrees. It is NaN where people are no more than parameters.

    Where choices are separated (:func:`fssa_bayes.population.find_separation`), quantities without
    a finite estimate have no error. An interval of one that goes to infinity has a lower end by the
    profile likelihood, which takes comparisons for independent; for minus infinity, an upper end.
    Where a prior (`penalty`) keeps them finite, they have the classical error, with the prior's
    information, and no other; it is the default of the table then.

    With more people nothing is corrected and degrees of freedom are infinite. What a single person
    alone informs has the classical error, with a warning; with one person that is everything. So
    has what varies too little between people, whose scores agree or cancel: where the sandwich of
    a homogeneous model has less than a hundredth of the classical variance.

    Where people have weights w, the sandwich is that of weighted pseudo-likelihood, with
    information Σ w I and the outer products Σ w² s sᵀ of scores s. It does not depend on the unit
    of weights, and few people are corrected by the factor G / (G − 1) alone. `"hessian"` takes
    weights for numbers of equal people, so that it shrinks with their unit, as do bounds by the
    profile likelihood; what has the classical error in place of the sandwich has it times
    √(Σ w² / Σ w). `"outer_product"` is NaN.

    Attributes:
        names: Names of the quantities, Q.
        values: Their estimates, with shape (Q,), all of them finite; :attr:`limits` says which are
            not.
        jacobian: Their derivatives by the parameters of the model, (Q, P).
        uncertainty: What is known of the errors of these parameters.
        others: Names that may be meant but are of other estimates, and the argument that asks for
            those; or None.

    References:
        White (1982), Maximum likelihood estimation of misspecified models.
        Binder (1983), On the variances of asymptotically normal estimators from complex surveys,
        International Statistical Review 51.
        Liang & Zeger (1986), Longitudinal data analysis using generalized linear models.
        Bell & McCaffrey (2002), Bias reduction in standard errors for linear regression with
        multi-stage samples, Survey Methodology 28(2).
        Pustejovsky & Tipton (2018), Small-sample methods for cluster-robust variance estimation
        and hypothesis testing in fixed effects models, JBES 36(4).
    """

    names: pd.Index
    values: Tensor
    jacobian: Tensor
    uncertainty: Uncertainty
    others: tuple[pd.Index, str] | None = None

    @classmethod
    def of(
        cls,
        names: pd.Index,
        quantities: Callable[[Tensor], Tensor],
        theta: Tensor,
        uncertainty: Uncertainty,
    ) -> Estimates:
        """Evaluates quantities, a differentiable function of the parameters θ (P,)."""
        jacobian = torch.autograd.functional.jacobian(quantities, theta)
        return cls(names, quantities(theta), jacobian, uncertainty)

    @property
    def num_people(self) -> int:
        """Number of people with comparisons, the clusters."""
        return self.uncertainty.num_people

    @property
    def limits(self) -> Tensor:
        """The estimates (Q,), infinite or NaN where separated choices leave none that is finite.

        They are NaN, too, where no comparison tells them, as across components of the graph.
        """
        limit = self.uncertainty.limit
        values = self.values if limit is None else limit.values(self.jacobian, self.values)
        return values.masked_fill(~self.uncertainty.told(self.jacobian), torch.nan)

    @property
    def identified(self) -> np.ndarray:
        """Tells which quantities the data identify, with shape (Q,)."""
        return self.uncertainty.identified(self.jacobian).numpy()

    def standard_errors(self, kind: str | None = None) -> np.ndarray:
        """Returns standard errors (Q,), NaN where the data do not identify a quantity.

        Args:
            kind: `"hessian"`, `"outer_product"` or `"sandwich"`; None for the last, or the first
                where a heterogeneous model has too few people for it.

        Warns:
            UserWarning: If sandwich errors rest on a single person's comparisons, or two sets of
                draws give errors that differ by more than 15 %, which are NaN.
        """
        kind = self.uncertainty.choose(kind)
        self._warn_of_unsettled([kind])
        return self._standard_errors(kind)

    def _standard_errors(self, kind: str) -> np.ndarray:
        if kind == "sandwich":
            self._warn_of_single_people()
        return self.uncertainty.standard_errors(self.jacobian, kind).numpy()

    def degrees_of_freedom(self, kind: str | None = None) -> np.ndarray:
        """Returns the degrees of freedom of the standard errors, (Q,), infinite for the normal."""
        kind = self.uncertainty.choose(kind)
        return self.uncertainty.degrees_of_freedom(self.jacobian, kind).numpy()

    def vcov(self, kind: str | None = None) -> pd.DataFrame:
        """Tabulates the covariance of the quantities; what is not identified has NaN.

        Arguments and warnings are those of :meth:`standard_errors`.
        """
        kind = self.uncertainty.choose(kind)
        self._warn_of_unsettled([kind])
        if kind == "sandwich":
            self._warn_of_single_people()
        covariance = self.uncertainty.covariance_of(self.jacobian, kind).numpy()
        return pd.DataFrame(covariance, index=self.names, columns=self.names)

    def contrast(
        self, weights: object, *, kind: str | None = None, level: float = 0.9
    ) -> pd.DataFrame:
        """Estimates linear combinations of the quantities.

        Args:
            weights: A pair of names, for the first less the second; a mapping from names to
                weights; a list of pairs and mappings; or a DataFrame with one row a combination and
                one column a name. Names of a heterogeneous model's quantities are (`quantity`,
                `term`), and a term alone is its mean.
            kind: As in :meth:`standard_errors`.
            level: Probability of the intervals.

        Returns:
            One row a combination. Columns: `estimate`, `standard_error`, `df`, `lower` and `upper`,
            `statistic`, the estimate by its error, and `p_value`, two-sided.

        Raises:
            ValueError: If a name is unknown, a weight is not finite, or `kind` or `level` are not
                as above.
            TypeError: If `weights` are of another type.
        """
        rows, names = self._read_weights(weights)
        chosen = Estimates(names, rows @ self.values, rows @ self.jacobian, self.uncertainty)
        columns = chosen.describe(kind, level=level, p_values=True)
        return pd.DataFrame({"estimate": chosen.limits.numpy()} | columns, index=names)

    def describe(
        self, kind: str | None = None, *, level: float | None, p_values: bool
    ) -> dict[str, np.ndarray]:
        """Returns errors, and intervals and p-values on request, as columns of a table.

        Args:
            kind: As in :meth:`standard_errors`.
            level: Probability of the intervals; None for no intervals.
            p_values: Whether there are p-values, with degrees of freedom.
        """
        if level is not None and not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        values, error = self.values.numpy(), self.standard_errors(kind)
        if level is None and not p_values:
            return {"standard_error": error}
        df = np.where(np.isnan(error), np.nan, self.degrees_of_freedom(kind))
        columns = {"standard_error": error} | ({"df": df} if p_values else {})
        if level is not None:
            width = special.stdtrit(df, (1 + level) / 2) * error
            columns |= {"lower": values - width, "upper": values + width}
            columns |= self._one_sided(columns, level)
        if p_values:
            with np.errstate(divide="ignore", invalid="ignore"):
                statistic = values / error
            columns |= {"statistic": statistic, "p_value": 2 * special.stdtr(df, -abs(statistic))}
        return columns

    def three_errors(self) -> dict[str, np.ndarray]:
        """Returns the estimates and errors of all three kinds, as columns of a table."""
        self.uncertainty.warn_of_few_people()
        self._warn_of_unsettled(KINDS)
        self._warn_of_boundary()
        errors = {f"se_{kind}": self._standard_errors(kind) for kind in KINDS}
        self._warn_of_silent_scores()
        return {"estimate": self.limits.numpy()} | errors

    def _warn_of_unsettled(self, kinds: Iterable[str]) -> None:
        """Names quantities of whose errors two sets of draws disagree."""
        if self.uncertainty.limit is not None:  # What is at infinity is said elsewhere.
            return
        identified, said = self.identified, []
        for kind in kinds:
            unsettled = ~self.uncertainty.settled(self.jacobian, kind).numpy() & identified
            if unsettled.any():
                said.append(f"se_{kind} of {self._list(unsettled)}")
        if said:
            warnings.warn(
                f"{'; '.join(said)}: NaN, as two sets of draws differ by more than 15 %, where "
                "people's posteriors have heavy tails or the information is close to singular. "
                "More draws (num_samples) may do, or fewer latent dimensions",
                stacklevel=4,
            )

    def _warn_of_boundary(self) -> None:
        """Warns of estimates at the boundary of their range, where scores say nothing of them."""
        if self.uncertainty.limit is not None:  # What is at infinity is said elsewhere.
            return
        singular = self.uncertainty.singular(self.jacobian).numpy() & self.identified
        if singular.any():
            warnings.warn(
                f"se_sandwich and se_outer_product of {self._list(singular)} are NaN: everybody's "
                "score is 0 there, as where a standard deviation is estimated at 0, the boundary "
                "of its range. Nor does se_hessian tell how large it may be: compare with the "
                "model in which the coefficient is 'fixed'",
                stacklevel=4,
            )

    def _warn_of_silent_scores(self) -> None:
        """Warns where the outer product of scores says nothing though the information does."""
        if not self.uncertainty.has("outer_product"):
            return
        finite = self.uncertainty.known_by(self.jacobian, "sandwich")
        silent = finite & ~self.uncertainty.known_by(self.jacobian, "outer_product")
        if silent.any():
            warnings.warn(
                f"se_outer_product of {self._list(silent.numpy())} is NaN: people's scores do not "
                "vary in a direction on which it depends. The other errors stand",
                stacklevel=4,
            )

    def _one_sided(self, columns: dict[str, np.ndarray], level: float) -> dict[str, np.ndarray]:
        """Returns `lower` and `upper` with the bounds of quantities that are at infinity."""
        limit = self.uncertainty.limit
        if limit is None:
            return {}
        ends = limit.bounds(self.jacobian, self.limits.numpy(), level)
        names = ("lower", "upper")
        return {
            name: np.where(np.isnan(end), columns[name], end)
            for name, end in zip(names, ends, strict=True)
        }

    def _read_weights(self, weights: object) -> tuple[Tensor, pd.Index]:
        """Returns weights (R, Q) and names of the combinations, as :meth:`contrast` takes them."""
        if isinstance(weights, pd.DataFrame):
            mappings, names = weights.to_dict("records"), weights.index
        else:
            listed = weights if isinstance(weights, list) else [weights]
            mappings = [_as_mapping(one) for one in listed]
            names = pd.Index([_name_of(one) for one in mappings], name="contrast", dtype=object)
        if not len(mappings):
            raise ValueError("weights must name one combination at least, got none")
        rows = torch.zeros(len(mappings), len(self.names), dtype=torch.float64)
        for row, mapping in zip(rows, mappings, strict=True):
            for name, weight in mapping.items():
                if not np.isfinite(weight):
                    raise ValueError(f"weights must be finite, got {weight} for {name!r}")
                row[self._position(name)] += float(weight)
        return rows, names

    def _position(self, name: Hashable) -> int:
        """Looks up a quantity by its name, or a mean by its term."""
        for label in (name, ("mean", name)):
            found = np.flatnonzero([label == other for other in self.names])
            if len(found) == 1:
                return int(found[0])
        known = ", ".join(repr(other) for other in self.names[:_MOST_NAMED])
        advice = ""
        if self.others is not None and name in self.others[0]:
            advice = f"; {self.others[1]} compares items"
        raise ValueError(f"weights must name quantities such as {known}, got {name!r}{advice}")

    def _warn_of_single_people(self) -> None:
        """Warns where clustered errors rest on the comparisons of single people."""
        if self.num_people == 1:
            warnings.warn(
                "all comparisons are of one person: standard errors cannot be clustered, and are "
                "the classical ones, which take comparisons for independent",
                stacklevel=4,
            )
            return
        degenerate = self.uncertainty.degenerate(self.jacobian).numpy()
        share = np.where(degenerate, 0.0, self.uncertainty.share_alone(self.jacobian).numpy())
        alone, said = share > max(_LEAST_ALONE, min(_ALL_ALONE, share.max())) - 1e-9, []
        if alone.any():
            through = (share > _LEAST_ALONE) & ~alone
            more = f" (through which much of the error of {self._list(through)} does)"
            said.append(
                f"{self._list(alone)} rests for the most part on a single person's comparisons"
                f"{more if through.any() else ''}"
            )
        if degenerate.any():
            names = self._list(degenerate)
            said.append(f"{names} varies too little between people, whose choices agree or cancel")
        if said:
            warnings.warn(
                f"what is known of {', and of '.join(said)}: there the standard error is the "
                "classical one, which takes comparisons for independent",
                stacklevel=4,
            )

    def _list(self, which: np.ndarray) -> str:
        """Names some of the quantities as tables show them, a few of them."""
        names = self.names[which]
        if isinstance(names, pd.MultiIndex):
            names = [
                term if quantity in ("mean", "answer") else f"{quantity} of {term}"
                for quantity, term in names
            ]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return ", ".join(str(name) for name in names[:_MOST_NAMED]) + more


def _as_mapping(weights: object) -> Mapping[Hashable, float]:
    """Reads a pair of names, or a mapping from names to weights."""
    if isinstance(weights, Mapping) and len(weights):
        return weights
    if isinstance(weights, tuple) and len(weights) == 2 and weights[0] != weights[1]:
        return {weights[0]: 1.0, weights[1]: -1.0}
    raise TypeError(
        "weights must be a pair of different names, a mapping from names to weights, a list of "
        f"these, or a DataFrame, got {weights!r}"
    )


def _name_of(mapping: Mapping[Hashable, float]) -> str:
    """Writes a combination as people do, such as `"a - 0.5 b - 0.5 c"`."""
    return " ".join(_terms(mapping.items())).removeprefix("+ ")


def _terms(weights: Iterable[tuple[Hashable, float]]) -> Iterable[str]:
    """Yields the terms of a combination with their signs."""
    for number, (name, weight) in enumerate(weights):
        sign = "-" if weight < 0 else "+"
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        yield f"{sign}{size}{name}" if number == 0 and sign == "-" else f"{sign} {size}{name}"
