"""One person: what is believed of them, and the policy that follows it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.policy import PreferenceRows
from fssa_bayes.posterior import Posterior
from fssa_bayes.steering.records import list_records

if TYPE_CHECKING:
    from fssa_bayes.steering.bundle import Bundle

__all__ = ["Person"]


class Person:
    """A person's posterior and policy, after some choices.

    Args:
        bundle: The bundle.
        rows: The person's choices; None for somebody of whom nothing is known.

    Attributes:
        rows: The choices.
        posterior: The posterior of the person.
        z: Posterior mean of the latent factor, with shape (K,).
        z_sd: Posterior standard deviations, with shape (K,).
    """

    def __init__(self, bundle: Bundle, rows: PreferenceRows | None) -> None:
        self.bundle, self.rows = bundle, rows
        data = bundle.empty() if rows is None else rows.to_preferences(bundle.features)
        self._data: Preferences = data
        with torch.no_grad():
            self.posterior = Posterior(
                bundle.model, bundle.guide, data, bundle.num_samples, seed=bundle.seed
            )
            z, log_weights = self.posterior.proposals
        weights = log_weights[:, 0].double().softmax(0).unsqueeze(-1)
        z = z[:, 0].double()
        mean = (weights * z).sum(0)
        self.z = mean.float()
        self.z_sd = (weights * (z - mean).square()).sum(0).sqrt().float()

    @property
    def num_choices(self) -> int:
        """Number of choices."""
        return 0 if self.rows is None else len(self.rows)

    @property
    def draws(self) -> Tensor:
        """Equally weighted draws of z, with shape (S, K)."""
        return self.posterior.z[:, 0]

    def choice_prob(self, rows: PreferenceRows | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Returns how probable it is that the person prefers the first of two responses.

        Args:
            rows: Pairs of responses: rows, or records with `prompt`, `chosen` and `rejected`. Who
                chose is not looked at.

        Returns:
            One row a pair, in their order: `mean`, and the 5 % and 95 % posterior quantiles `lower`
            and `upper`.

        Raises:
            ValueError: If there are no pairs, or one cannot be read.
            TypeError: If rows are neither rows nor records.
        """
        if not isinstance(rows, PreferenceRows):
            rows = self.bundle.read(
                {**record, "user": "person"} for record in list_records("rows", rows)
            )
        own = PreferenceRows(
            rows.prompts, rows.chosen, rows.rejected, [self._data.user_names[0]] * len(rows),
            tools=rows.tools, chat_template_kwargs=rows.chat_template_kwargs,
        )  # fmt: skip
        target = own.to_preferences(self.bundle.features)
        found = self.posterior.choice_prob(target)
        columns = {name: getattr(found, name)[0].double() for name in ("mean", "lower", "upper")}
        left = torch.from_numpy(target.choice > 0.5)
        columns["lower"], columns["upper"] = (
            torch.where(left, columns["lower"], 1 - columns["upper"]),
            torch.where(left, columns["upper"], 1 - columns["lower"]),
        )
        columns["mean"] = torch.where(left, columns["mean"], 1 - columns["mean"])
        return pd.DataFrame({name: value.numpy() for name, value in columns.items()})

    def generate(self, prompts: Sequence, **options: Any) -> list[str]:
        """Writes a response to each prompt at the posterior mean, as the policy's own method."""
        return self.bundle.policy.generate(prompts, self.z, **options)

    def stream(self, prompt: Any, **options: Any) -> Any:
        """Writes a response piece by piece at the posterior mean, as the policy's own method."""
        return self.bundle.policy.stream(prompt, self.z, **options)

    def export(self, folder: str | os.PathLike) -> None:
        """Writes the person's policy as an ordinary adapter; see `SteerablePolicy.adapter_for`."""
        self.bundle.policy.adapter_for(self.z, folder)
