"""Which estimates of a linear utility are infinite, found from the data before any fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats
from scipy.optimize import brentq
from torch import Tensor

from fssa_bayes.data import (
    Preferences,
    describe_separation,
    find_win_classes,
    first_names,
)
from fssa_bayes.model import HeterogeneousBTL, require_linear
from fssa_bayes.population.cone import Cone, find_cone, find_layered_cone, flat_cone, rising
from fssa_bayes.population.events import Answers, list_answers

__all__ = ["Limit", "Placement", "Separation", "find_separation", "label_rows"]

_ROUNDING = 1e-5  # Share of a contrast below which it is taken for rounding.
_SATURATED = 35.0  # Margin in nats of a separated answer, whose other answers are then rounding.
_MOST_DENSE = 2000  # Most features for which separation is looked for.
_MOST_SIGNS = 20  # Coefficients whose direction a message tells.
_MOST_PROFILED = 500  # Most parameters of a likelihood that is profiled.


@dataclass(frozen=True, eq=False)
class Placement:
    """Tells which of some quantities have finite distances, and where the others go.

    Attributes:
        reference: Whether a quantity is one of those that all are compared with, (M,): the largest
            class of quantities with finite distances, or all where no two have one.
        estimable: Whether the distance from the mean of the reference is finite, (M,).
        sign: 1 where the distance is infinite, −1 where it is minus infinity, else 0, (M,).
    """

    reference: np.ndarray
    estimable: np.ndarray
    sign: np.ndarray


@dataclass(frozen=True, eq=False)
class Separation:
    """Describes which estimates the choices put at infinity.

    The parameters are those of :func:`find_separation`'s model, in its units: coefficients (of
    items where these have no features), then log ν and position bias as the model has them. False
    where every choice is of use for finite estimates.

    Attributes:
        names: Names of the P parameters.
        answers: The answers of the data.
        cone: Directions in which the likelihood rises for ever, or those of classes of items.
        classes: Class of each item, (M,), where the cone is that of classes; else None.
        message: Which estimates are infinite, by name; `""` for none.
    """

    names: pd.Index
    answers: Answers
    cone: Cone
    classes: np.ndarray | None
    message: str

    def __bool__(self) -> bool:
        return bool(np.any(self.cone.direction))

    @cached_property
    def direction(self) -> np.ndarray:
        """A direction of parameters (P,) along which every separated answer gains."""
        return self._expand(self.cone.direction)

    @cached_property
    def separated(self) -> np.ndarray:
        """Whether each of the answers is separated: in the limit it is certain."""
        return self._rising(self.cone)

    def estimable(self, contrasts: np.ndarray) -> np.ndarray:
        """Tells which linear contrasts (Q, P) have a finite estimate, with shape (Q,)."""
        outside = np.linalg.norm(self.cone.outside(self._reduce(contrasts)), axis=1)
        scale = self.cone.scale if self.classes is None else 1.0
        return outside <= _ROUNDING * np.linalg.norm(contrasts / scale, axis=1)

    def signs(self, contrasts: np.ndarray) -> np.ndarray:
        """Tells where contrasts (Q, P) go: 1 to infinity, −1 to minus infinity, 0 neither, (Q,)."""
        signs = np.zeros(len(contrasts), dtype=np.int64)
        unknown = ~self.estimable(contrasts)
        signs[unknown] = self.cone.signs(self._reduce(contrasts[unknown]))
        return signs

    def place(self, design: np.ndarray) -> Placement:
        """Compares quantities, rows of a design (M, P), with the largest class among them."""
        everything = np.ones(len(design), dtype=bool)
        sign = np.zeros(len(design), dtype=np.int64)
        if not self:
            return Placement(everything, everything, sign)
        labels = self._label(design)
        sizes = np.bincount(labels)
        reference = labels == sizes.argmax() if sizes.max() > 1 else everything
        estimable = reference if sizes.max() > 1 or len(design) == 1 else ~everything
        sign[~estimable] = self.signs(design[~estimable] - design[reference].mean(0))
        return Placement(reference, estimable, sign)

    def at_limit(self, model: HeterogeneousBTL) -> HeterogeneousBTL:
        """Returns a copy of a homogeneous model, in double precision, at the limit of its maximum.

        What is estimable maximises the likelihood of the answers that are not separated, to
        rounding (with lapses it stays as it is in the model); separated answers have margins of
        35 nats or more, so that scores and information on them vanish.
        """
        twin = copy.deepcopy(model).double()
        parameters = [twin.utility.mean]
        parameters += [v for name, v in twin.answer_parameters().items() if name != "lapse logit"]
        point = torch.cat([value.detach().reshape(-1) for value in parameters]).cpu().numpy()
        point = torch.from_numpy(self.find_limit(point, polish=model.lapse_logit is None))
        sizes = [value.numel() for value in parameters]
        with torch.no_grad():
            for value, part in zip(parameters, point.split(sizes), strict=True):
                value.copy_(part.reshape(value.shape))
        return twin

    def find_limit(self, point: np.ndarray, *, polish: bool = True) -> np.ndarray:
        """Returns parameters (P,) at the limit of the maximum, see :meth:`at_limit`.

        Args:
            point: Parameters to start from, (P,).
            polish: Whether to maximise the likelihood of what is not separated.
        """
        if polish and not self.separated.all():
            point = self.answers.events().where(~self.separated).maximise(point)
        rise = self.answers.product(self.direction)[self.separated]
        lack = (_SATURATED - self.answers.product(point)[self.separated]) / rise
        return point + max(lack.max(), 0.0) * self.direction

    def bounds(
        self, contrasts: np.ndarray, signs: np.ndarray, limit: np.ndarray, level: float
    ) -> np.ndarray:
        """Bounds contrasts (Q, P) of infinite estimate by the profile likelihood, on one side.

        The bound of a contrast that goes to infinity is the smallest value that a likelihood-ratio
        test does not reject, the other parameters at their best: the lower end of an interval.
        The test takes comparisons for independent, whoever made them: people cannot be clusters
        where all of them agree.

        Args:
            contrasts: The contrasts.
            signs: 1 for a contrast that goes to infinity, −1 to minus infinity, (Q,).
            limit: Parameters by :meth:`find_limit`, (P,).
            level: Probability of an interval of the level's two ends.

        Returns:
            The bounds, (Q,); NaN where the sign is 0 and with more than 500 parameters.

        References:
            Venzon & Moolgavkar (1988), A method for computing profile-likelihood-based confidence
            intervals, Applied Statistics 37.
        """
        bounds = np.full(len(contrasts), np.nan)
        if contrasts.shape[1] <= _MOST_PROFILED:
            for row in np.flatnonzero(signs):
                bounds[row] = signs[row] * self._bound(signs[row] * contrasts[row], limit, level)
        return bounds

    def _bound(self, contrast: np.ndarray, limit: np.ndarray, level: float) -> float:
        """Returns the lower bound of a contrast (P,) that goes to infinity."""
        # With the contrast held, the answers that are still separated have no say.
        held = self._rising(self.cone.held(self._reduce(contrast[None])[0]))
        events = self.answers.events().where(~held)
        highest = events.log_prob(limit) - stats.chi2.ppf(level, 1) / 2
        direction = self.direction / (contrast @ self.direction)
        point = limit

        @cache  # The root finder asks for its ends again, which depend on where the search was.
        def excess(value: float) -> float:
            nonlocal point
            point = point + (value - contrast @ point) * direction
            point = events.maximise(point, fixed=contrast)
            return events.log_prob(point) - highest

        def along_direction(value: float) -> float:
            return events.log_prob(limit + (value - contrast @ limit) * direction) - highest

        # The other parameters at their best only lower the bound.
        top = contrast @ limit
        upper = brentq(along_direction, _step_down(along_direction, top), top, rtol=1e-6)
        if excess(upper) < 1e-6:
            return upper
        return brentq(excess, _step_down(excess, upper), upper, rtol=1e-7)

    def _label(self, design: np.ndarray) -> np.ndarray:
        """Labels rows of a design (M, P) that have finite distances from each other alike, (M,)."""
        outside = self.cone.outside(self._reduce(design))
        return label_rows(outside, _ROUNDING)

    def _rising(self, cone: Cone) -> np.ndarray:
        """Tells which of the answers rise along a direction of a cone, with shape (Q,)."""
        return rising(self.answers, self._expand(cone.direction))

    def _reduce(self, contrasts: np.ndarray) -> np.ndarray:
        """Sums the entries of contrasts (Q, P) over the items of each class."""
        if self.classes is None:
            return contrasts
        place = np.arange(len(self.classes)), self.classes
        member = sparse.csr_array((np.ones(len(self.classes)), place))
        return contrasts[:, : len(self.classes)] @ member

    def _expand(self, direction: np.ndarray) -> np.ndarray:
        """Returns a direction of parameters (P,) for one of the cone."""
        if self.classes is None:
            return direction
        whole = np.zeros(self.answers.num_parameters)
        whole[: len(self.classes)] = direction[self.classes]
        return whole


@dataclass(frozen=True, eq=False)
class Limit:
    """Tells of quantities, by their derivatives, which are at infinity.

    Attributes:
        separation: What the choices put at infinity.
        columns: Positions of its parameters among those of the derivatives, with shape (P,).
        point: The parameters at the limit, (P,); None where they are not there, as people differ.
        is_penalised: Whether a prior keeps the estimates finite. What the choices put at infinity
            rests on the prior then, and scores of people, which all but vanish, give no errors.
    """

    separation: Separation
    columns: np.ndarray
    point: np.ndarray | None
    is_penalised: bool

    def reference(self, jacobian: Tensor) -> Tensor:
        """Tells which of some quantities the others are compared with, see :class:`Placement`."""
        if self.is_penalised:
            return torch.ones(len(jacobian), dtype=torch.bool)
        return torch.from_numpy(self.separation.place(self._contrasts(jacobian)).reference)

    def estimable(self, jacobian: Tensor) -> Tensor:
        """Tells which quantities have a finite estimate, with shape (Q,)."""
        return torch.from_numpy(self.separation.estimable(self._contrasts(jacobian)))

    def signs(self, jacobian: Tensor) -> np.ndarray:
        """Tells which quantities go to infinity (1) or minus infinity (−1), else 0, (Q,)."""
        return self.separation.signs(self._contrasts(jacobian))

    def values(self, jacobian: Tensor, values: Tensor) -> Tensor:
        """Puts ±inf in place of values (Q,) where estimates are infinite, NaN where neither."""
        if self.is_penalised:
            return values
        contrasts, values = self._contrasts(jacobian), values.numpy().copy()
        values[~self.separation.estimable(contrasts)] = np.nan
        signs = self.separation.signs(contrasts)
        values[signs != 0] = signs[signs != 0] * np.inf
        return torch.from_numpy(values)

    def bounds(
        self, jacobian: Tensor, values: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns lower and upper bounds of quantities whose values (Q,) are ±inf, else NaN."""
        signs = np.where(np.isinf(values), np.sign(values), 0).astype(np.int64)
        bounds = np.full(len(values), np.nan)
        if self.point is not None:
            bounds = self.separation.bounds(self._contrasts(jacobian), signs, self.point, level)
        lower = np.where(signs > 0, bounds, np.where(signs < 0, -np.inf, np.nan))
        return lower, np.where(signs > 0, np.inf, np.where(signs < 0, bounds, np.nan))

    def _contrasts(self, jacobian: Tensor) -> np.ndarray:
        return jacobian.numpy()[:, self.columns]


def label_rows(rows: np.ndarray, rounding: float) -> np.ndarray:
    """Labels rows (M, P) that are equal, but for a share of the largest, alike, with shape (M,)."""
    value = rows @ np.random.default_rng(0).normal(size=rows.shape[1])
    order = np.argsort(value, kind="stable")
    labels = np.zeros(len(rows), dtype=np.int64)
    gap = rounding * max(np.abs(value).max(), 1e-300)
    labels[order] = np.cumsum(np.diff(value[order], prepend=value[order[:1]]) > gap)
    return labels


def _step_down(function: Callable[[float], float], start: float) -> float:
    """Finds a value below the start at which a function is negative."""
    step = 0.25
    while function(start - step) > 0:
        step *= 2
    return start - step


def find_separation(model: HeterogeneousBTL, data: Preferences) -> Separation:
    """Finds what choices put at infinity, whatever the parameters of the model are.

    Items without features are compared through the strongly connected components of their wins; a
    linear programme decides where there are features, a position bias or ties. What is said of
    coefficients holds of those of everybody in a homogeneous model, and of their mean w0 where
    people differ: along the same directions every person's choices become more probable. With
    lapses it holds for every lapse rate.

    Args:
        model: A model with linear utility, in whose units parameters are. It need not be fitted.
        data: The comparisons.

    Returns:
        The separation, which is false where there is none. It is not looked for with more than
        2,000 features, nor where coefficients are log-normal or in willingness-to-pay space.

    Raises:
        ValueError: If the utility is not linear.

    References:
        Ford (1957), Solution of a ranking problem from binary comparisons, American Mathematical
        Monthly 64.
        Albert & Anderson (1984), On the existence of maximum likelihood estimates in logistic
        regression models, Biometrika 71.
        Konis (2007), Linear programming algorithms for detecting separated data in binary logistic
        regression models, University of Oxford.
    """
    require_linear(model, "find_separation()")
    answers = list_answers(model, data)
    answer_names = [name for name in model.answer_parameters() if name != "lapse logit"]
    names = pd.Index([*data.feature_names, *answer_names], dtype=object)
    classes = _find_classes(answers)
    if not model.utility.map.is_identity:
        cone = flat_cone(answers)
    elif classes is not None:
        cone = find_layered_cone(answers.between(classes))
    elif data.items is not None and data.num_features > _MOST_DENSE:
        cone = flat_cone(answers)
    else:
        cone = find_cone(answers.distinct())
    found = Separation(names, answers, cone, classes, "")
    if not found:
        return found
    if classes is not None:
        return replace(found, message=describe_separation(data))
    return replace(found, message=_describe(found, data))


def _find_classes(answers: Answers) -> np.ndarray | None:
    """Labels the items by the graph of wins, (M,), where that alone decides; else None."""
    if answers.features is not None:
        return None
    if (answers.bias is not None or answers.tie is not None) and not _are_known(answers):
        return None
    return find_win_classes(answers.better, answers.worse, answers.num_items)


def _are_known(answers: Answers) -> bool:
    """Tells whether bias and log ν are surely finite, so that the graph of wins decides.

    They are if a pair of items, shown in both orders, was answered both ways in each; log ν without
    a bias is if the wins, ties left out, have a cycle.
    """
    decided = np.ones(len(answers), dtype=bool)
    if answers.tie is not None:
        decided = answers.tie <= 0
        if decided.all():
            return False  # Without ties log ν goes to minus infinity.
    winner, loser, size = answers.better, answers.worse, answers.num_items
    if answers.bias is None:
        classes = find_win_classes(winner[decided], loser[decided], size)
        return bool(np.bincount(classes).max() > 1)
    decided &= answers.bias != 0  # Rankings have no places.
    winner, loser, gained = winner[decided], loser[decided], answers.bias[decided] > 0
    low, high = np.minimum(winner, loser).astype(np.int64), np.maximum(winner, loser)
    answer = np.unique((low * size + high) * 4 + 2 * (winner == low) + gained)
    return bool((np.bincount(np.unique(answer // 4, return_inverse=True)[1]) == 4).any())


def _describe(found: Separation, data: Preferences) -> str:
    """Names what a linear programme found at infinity."""
    number = found.answers.num_coefficients
    eye = np.eye(len(found.names))
    if data.items is None:
        place = found.place(eye[:number])
        signs = np.concatenate([place.sign, np.zeros(len(eye) - number, dtype=np.int64)])
        infinite = np.concatenate([~place.estimable, ~found.estimable(eye[number:])])
    else:
        infinite = found.cone.sees(eye)
        signs = np.zeros(len(eye), dtype=np.int64)
    asked = infinite & (signs == 0)
    if asked.sum() <= _MOST_SIGNS:
        signs[asked] = found.signs(eye[asked])
    said = []
    for sign, where in ((1, "infinity"), (-1, "minus infinity")):
        which = infinite & (signs == sign)
        if which.any():
            goes = "goes" if which.sum() == 1 else "go"
            said.append(f"{first_names(found.names[which])} {goes} to {where}")
    which = infinite & (signs == 0)
    if which.any():
        has = "has" if which.sum() == 1 else "have"
        said.append(f"{first_names(found.names[which])} {has} no finite estimate")
    return "; ".join(said)
