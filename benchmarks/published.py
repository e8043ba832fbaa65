"""A training step written the way the method was published, to compare ours with.

The comparisons are a table with one row each, the features of both items in its cells. For every
person of a batch the rows are looked up, once for the context and once more for the targets; every
cell becomes a tensor, and tensors are stacked into pairs, people and the batch. The encoder takes
[chosen, rejected] concatenated, for the context and for the targets; the decoder takes [h(x), z]
concatenated, z as wide as the hidden layers, for both items of every pair, and normalises over the
batch; both outcomes' log-probabilities are computed and the observed one is picked; the divergence
of q(z | context) from q(z | targets) is added. Of the two published encoders this is the one that
averages over pairs, the cheaper one.

References:
    Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998, and its code.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from fssa_bayes import Preferences
from fssa_bayes.model.nn import MLP

__all__ = ["PublishedModel", "Table"]


class Table:
    """Keeps comparisons as rows, and builds batches from them one cell at a time.

    Args:
        data: The comparisons; as many of each person.
    """

    def __init__(self, data: Preferences) -> None:
        features = data.items.numpy()
        self.count = int(data.counts[0])
        self.rows = pd.DataFrame(
            {
                "left": list(features[data.left]),
                "right": list(features[data.right]),
                "choice": data.choice,
            }
        )

    def load(self, person: int) -> tuple[Tensor, Tensor]:
        """Loads a person's pairs (N, 2, D) and choices (N,)."""
        index = list(range(person * self.count, (person + 1) * self.count))
        rows = self.rows.loc[index]
        left = torch.stack([torch.tensor(cell) for cell in rows["left"].values])
        right = torch.stack([torch.tensor(cell) for cell in rows["right"].values])
        return torch.stack([left, right], 1), torch.tensor(rows["choice"].values)

    def batch(self, people: np.ndarray) -> tuple[Tensor, Tensor]:
        """Loads the pairs (U, N, 2, D) and choices (U, N) of some people."""
        pairs, choices = zip(*(self.load(person) for person in people), strict=True)
        return torch.stack(pairs), torch.stack(choices)


class PublishedModel(nn.Module):
    """Encodes contexts and scores targets, with one draw of z a person.

    Args:
        num_features: Number of item features D.
        hidden_dim: Width H of all layers, and of z.
    """

    def __init__(self, num_features: int, hidden_dim: int) -> None:
        super().__init__()
        self.pair = MLP(2 * num_features, hidden_dim, hidden_dim)
        self.summary = MLP(hidden_dim, hidden_dim, 2 * hidden_dim)
        self.item = MLP(num_features, hidden_dim, hidden_dim)
        self.decoder = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, 1, bias=False),
        )

    def encode(self, pairs: Tensor, choices: Tensor) -> Normal:
        """Returns q(z | pairs) for pairs (U, N, 2, D) with choices (U, N)."""
        left_wins = choices[..., None] == 1
        chosen = torch.where(left_wins, pairs[:, :, 0], pairs[:, :, 1])
        rejected = torch.where(left_wins, pairs[:, :, 1], pairs[:, :, 0])
        summary = self.pair(torch.cat([chosen, rejected], -1)).sum(1) / max(1, pairs.shape[1])
        loc, scale = self.summary(summary).chunk(2, -1)
        return Normal(loc, F.softplus(scale))

    def margin(self, context: tuple[Tensor, Tensor], pairs: Tensor) -> Tensor:
        """Returns the margins (U, N) of pairs (U, N, 2, D) at z = the mean of q(z | context)."""
        left, right = self.decode(pairs, self.encode(*context).loc).unbind(-1)
        return left - right

    def decode(self, pairs: Tensor, z: Tensor) -> Tensor:
        """Returns the utilities (U, N, 2) of pairs (U, N, 2, D) to people with z (U, H)."""
        hidden = self.item(pairs)
        z = z[:, None, None].expand(*hidden.shape[:-1], -1)
        both = torch.cat([hidden, z], -1)
        return self.decoder(both.flatten(0, -2)).view(both.shape[:-1])

    def forward(self, context: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the loss per person, for contexts and targets as (pairs, choices)."""
        from_context, from_target = self.encode(*context), self.encode(*target)
        pairs, choices = target
        left, right = self.decode(pairs, from_context.rsample()).unbind(-1)
        both = torch.stack([F.logsigmoid(left - right), F.logsigmoid(right - left)], -1)
        observed = (choices == 0).long()
        loss = F.cross_entropy(both.reshape(-1, 2), observed.flatten(), reduction="none")
        divergence = kl_divergence(from_context, from_target).sum(-1)
        return (loss.view_as(choices).mean(-1) + divergence).mean()
