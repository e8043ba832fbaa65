"""Modes under a linear utility: slopes of 0, and the curvature, by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from exact_problems import six_people
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, Preferences
from fssa_bayes.sampling import find_modes

ORDERS = {"ann": [("a", "b", "c", "d"), ("c", "a")], "bob": [("d", "b", "a")]}


def problem(kind: str) -> tuple[HeterogeneousBTL, Preferences]:
    """A model of one kind, in double precision, and people of all sizes."""
    torch.manual_seed(1)
    options = {"ties": "davidson"} if kind == "ties" else {}
    data = six_people()
    if kind == "ties":
        data = data.with_choices(data.choice, ties="keep")
    elif kind == "rankings":
        data = Preferences.from_rankings(ORDERS)
    elif kind == "items":
        data = Preferences(data.left, data.right, data.choice, data.offsets, num_items=8)
    elif kind == "bias":
        options = {"position_bias": True}
    elif kind == "log-normal":
        options = {"coefficients": ["-lognormal", "normal", "lognormal"]}
    elif kind == "willingness to pay":
        options = {"coefficients": ["-lognormal", "normal", "lognormal"], "price": 0}
    elif kind == "covariates":
        options = {"num_covariates": 2}
        data = Preferences(
            data.left,
            data.right,
            data.choice,
            data.offsets,
            items=data.items,
            covariates=torch.randn(len(data), 2),
        )
    model = HeterogeneousBTL(data.num_features, 2, utility="linear", **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.6 * torch.randn_like(parameter))
    return model, data


@pytest.mark.parametrize(
    "kind",
    [
        *("plain", "items", "ties", "bias", "covariates", "rankings"),
        *("log-normal", "willingness to pay"),
    ],
)
def test_modes_are_stationary_and_their_curvature_is_the_information(kind: str) -> None:
    model, data = problem(kind)
    batch = data.batch()
    batch = batch.replace(choice=batch.choice.double())
    if batch.items.dtype != torch.int64:
        batch = batch.replace(items=batch.items.double())
    modes = find_modes(model, batch)

    def log_joint(z: Tensor) -> Tensor:
        prior = model.prior(batch.num_users, batch.covariates).log_prob(z)
        return (prior + model.choice(batch, z.unsqueeze(0)).log_prob(batch.choice)[0]).sum()

    z = modes.z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_joint(z), z)
    assert slope.abs().max() < 5e-3
    hessian = torch.autograd.functional.hessian(log_joint, modes.z)
    information = modes.factor @ modes.factor.mT
    for user in range(len(data)):
        torch.testing.assert_close(information[user], -hessian[user, :, user], rtol=1e-2, atol=1e-3)


def test_the_mode_of_an_empty_context_is_the_location_of_the_prior() -> None:
    model, data = problem("plain")
    modes = find_modes(model.float(), data.batch())
    torch.testing.assert_close(modes.z[0], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(modes.factor[0], torch.eye(2, dtype=torch.float64))


def test_a_start_far_away_ends_at_the_same_mode() -> None:
    model, data = problem("plain")
    batch = data.batch()
    near = find_modes(model.float(), batch)
    far = find_modes(model, batch, torch.full_like(near.z, 30.0))
    lost = find_modes(model, batch, torch.full_like(near.z, torch.inf))
    torch.testing.assert_close(far.z, near.z, atol=1e-2, rtol=0)
    torch.testing.assert_close(lost.z, near.z, atol=1e-2, rtol=0)
