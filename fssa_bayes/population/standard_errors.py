"""Standard errors of what is computed from estimates, where information may lack full rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["find_unidentified", "invert_information", "too_few_people", "with_standard_errors"]


def with_standard_errors(
    quantities: Callable[[Tensor], Tensor],
    theta: Tensor,
    outer: Tensor,
    information: Tensor,
    expected_null: int,
    *,
    num_people: int,
    advice: str,
) -> dict[str, np.ndarray]:
    """Evaluates functions of the estimates, with standard errors of three forms.

    Args:
        quantities: Maps parameters (P,) to quantities (Q,), differentiably.
        theta: Estimates of the parameters, with shape (P,).
        outer: Sum of the outer products of people's scores, (P, P).
        information: Observed information, (P, P).
        expected_null: Number of directions that no data could identify.
        num_people: Number of people with comparisons.
        advice: Ends the warning of :func:`invert_information`.

    Returns:
        Arrays with shape (Q,): `estimate`; `se_hessian`, by the information; `se_outer_product`,
        by the outer products; `se_sandwich`, by both. Errors of quantities that the data do not
        identify are NaN, and those by outer products are NaN for too few people.
    """
    jacobian = torch.autograd.functional.jacobian(quantities, theta)
    inverse = invert_information(information, expected_null, advice)
    if too_few_people(num_people, information):
        outer, inverse_outer = outer * torch.nan, outer * torch.nan
    else:
        inverse_outer = invert_information(outer, expected_null, advice)
    unidentified = find_unidentified(jacobian, inverse, information)
    standard_error = {
        "se_hessian": inverse,
        "se_outer_product": inverse_outer,
        "se_sandwich": inverse @ outer @ inverse,
    }
    columns = {"estimate": quantities(theta).numpy()}
    for name, covariance in standard_error.items():
        variance = torch.einsum("pi,ij,pj->p", jacobian, covariance, jacobian)
        columns[name] = variance.clamp(min=0).masked_fill(unidentified, torch.nan).sqrt().numpy()
    return columns


def too_few_people(num_people: int, information: Tensor) -> bool:
    """Tells whether people are too few for their scores to have a covariance.

    The scores of U people sum to zero, so that they span U − 1 directions at most. Warns from two
    people a parameter downwards.
    """
    parameters = int(torch.linalg.matrix_rank(information, rtol=1e-9, hermitian=True))
    if num_people >= 2 * parameters:
        return False
    few = num_people <= parameters
    said = "cannot be had and are NaN" if few else "are rough (compare se_hessian)"
    warnings.warn(
        f"se_sandwich and se_outer_product, which take people for clusters, {said}: "
        f"{num_people} people with comparisons for {parameters} parameters",
        stacklevel=4,
    )
    return few


def invert_information(
    matrix: Tensor, expected_null: int | None = None, advice: str = ""
) -> Tensor:
    """Inverts an information matrix, leaving out directions the data say nothing about.

    Args:
        matrix: Information with shape (P, P).
        expected_null: Number of directions without information above which there is a warning;
            None for no warning.
        advice: Ends the warning, with what the cause may be and what may help.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    informative = eigenvalues > 1e-9 * eigenvalues[-1]
    null = int((~informative).sum())
    if expected_null is not None and null > expected_null:
        warnings.warn(
            f"the information on the population is not positive in {null - expected_null} of "
            f"{len(matrix)} directions, {advice}",
            stacklevel=4,
        )
    vectors = vectors[:, informative]
    return vectors / eigenvalues[informative] @ vectors.T


def find_unidentified(
    jacobian: Tensor, inverse: Tensor, information: Tensor, share: float = 0.05
) -> Tensor:
    """Tells which quantities depend on directions without information by more than a share.

    Args:
        jacobian: Derivatives of the quantities by the parameters, with shape (Q, P).
        inverse: Inverse of the information, by :func:`invert_information`, (P, P).
        information: The information, (P, P).
        share: Share of the squared length of a quantity's derivative.

    Returns:
        True where a quantity is not identified, with shape (Q,).
    """
    seen = torch.einsum("pi,ij,jk->pk", jacobian, inverse, information)
    return (jacobian - seen).square().sum(-1) > share * jacobian.square().sum(-1)
