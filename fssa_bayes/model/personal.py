r"""How people differ in the way they answer, beside their tastes.

A parameter of the answers may differ between people: :math:`a_u = a + Γ z_u`, where the first
dimensions of z are those of tastes and each personal parameter has one more of its own. Γ is lower
triangular in the latter: the last rows of the Cholesky factor of the joint covariance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PERSONAL", "PersonalAnswers", "check_personal", "name_personal"]

PERSONAL = {
    "ties": ("log_tie", "log nu"),
    "position_bias": ("position_bias", "position bias"),
    "lapses": ("lapse_logit", "lapse logit"),
    "scale": ("log_scale", "log scale"),
}
"""What may differ between people, with the names of its parameter in code and in tables."""

_INDEPENDENT = ("lapses", "scale")  # What few data tell of their correlations is third moments.
_START = 0.5  # Standard deviation; the gradient vanishes at 0.


class PersonalAnswers(nn.Module):
    """Holds the loadings of the answers' parameters that differ between people.

    Args:
        names: Keys of :data:`PERSONAL`, in its order.
        taste_dim: Number T of latent dimensions of tastes.
        is_correlated: Whether parameters are correlated with tastes and with each other, but for
            lapses and scale, which are correlated with nothing (as the scale of the references).

    References:
        Fiebig, Keane, Louviere & Wasi (2010), The generalized multinomial logit model: accounting
        for scale and coefficient heterogeneity, Marketing Science 29(3).

    Attributes:
        names: The names.
        loading: Γ with shape (A, T + A), whose entries that are not free are ignored.
        free: Which entries of Γ are parameters.
    """

    def __init__(self, names: Sequence[str], taste_dim: int, *, is_correlated: bool) -> None:
        super().__init__()
        self.names, self._is_correlated = tuple(names), is_correlated
        number = len(self.names)
        own = torch.ones(number, number, dtype=torch.bool).tril()
        if not is_correlated:
            own = torch.eye(number, dtype=torch.bool)
        tastes = torch.full((number, taste_dim), is_correlated)
        free = torch.cat([tastes, own], 1)
        for place, name in enumerate(self.names):
            if name in _INDEPENDENT:
                free[place] = False
                free[place, taste_dim + place] = True
        self.register_buffer("free", free, persistent=False)
        start = torch.cat([torch.zeros(number, taste_dim), _START * torch.eye(number)], 1)
        self.loading = nn.Parameter(start)

    @property
    def directions(self) -> Tensor:
        """Γ with shape (A, T + A), whose entries that are not free are 0."""
        return self.loading * self.free

    @property
    def num_correlated(self) -> int:
        """Number of the parameters, the first, that are correlated with others."""
        return sum(name not in _INDEPENDENT for name in self.names) if self._is_correlated else 0

    @property
    def arguments(self) -> list[str]:
        """Names of the parameters in code, such as `"log_tie"`."""
        return [PERSONAL[name][0] for name in self.names]

    @property
    def labels(self) -> list[str]:
        """Names of the parameters in tables, such as `"log nu"`."""
        return [PERSONAL[name][1] for name in self.names]

    def deviations(self, z: Tensor) -> dict[str, Tensor]:
        """Returns Γz by the parameters' names in code, each with shape (*, U, 1)."""
        # Products summed one by one: a matrix product depends on the number of people and draws.
        parts = ((z * row).sum(-1, keepdim=True) for row in self.directions)
        return dict(zip(self.arguments, parts, strict=True))


def name_personal(names: object) -> tuple[str, ...]:
    """Puts the names of what differs between people in order.

    Raises:
        TypeError: If the names are not a sequence of names.
        ValueError: If a name is unknown or named twice.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"personal must be a tuple of names such as ('ties',), got {names!r}")
    unknown = [name for name in names if name not in PERSONAL]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"personal must name some of {tuple(PERSONAL)}, each once, got {tuple(names)}"
        )
    return tuple(name for name in PERSONAL if name in names)


def check_personal(
    names: tuple[str, ...], latent_dim: int, utility: object, prior: str, most: int | None
) -> None:
    """Raises a ValueError unless a model may have answers that differ between people.

    Args:
        names: What differs.
        latent_dim: Number of latent dimensions of tastes.
        utility: The model's argument.
        prior: The model's argument.
        most: Largest number of latent dimensions of a linear utility; None for other utilities.
    """
    if prior != "normal":
        raise ValueError(
            f"personal={names} needs prior='normal', under which the parameters of answers are "
            f"normal over people, got prior={prior!r}"
        )
    if utility in ("distributional", "distributional-linear"):
        raise ValueError(f"personal must be () with utility={utility!r}, got {names}")
    if most is not None and latent_dim > most:
        raise ValueError(
            f"latent_dim must be at most {most} with personal={names}, the number of coefficients "
            f"that are not fixed, got {latent_dim}"
        )
