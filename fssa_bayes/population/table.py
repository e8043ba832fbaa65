r"""Population estimates of the linear utility with standard errors.

The coefficients of a person are β = w0 + Λz, z ~ N(B w̃, I) with w̃ the person's standardised
covariates, if any. Only w0, ΛΛᵀ and ΛB are identified, so Λ = L Rᵀ is rotated to its
lower-triangular form L and the free parameters are θ = (w0, tril L, RᵀB), those of a model of Rᵀz.
The parameters of the answers (log ν of ties, position bias, logit of the lapse rate) follow in θ,
so that all standard errors include their uncertainty.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.population.parameters import estimate_parameters, label_parameters
from fssa_bayes.population.standard_errors import with_standard_errors

__all__ = ["population_table"]


def population_table(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimates mean, standard deviation and correlation of coefficients, and covariates' effects.

    With covariates, means are those of the average person (of the first fit), standard deviations
    and correlations those of people who share their covariates, and a row `effect`, `"age on
    price"`, says by how much a unit of the covariate changes the mean coefficient, the others held
    fixed: ΛB. With fewer latent dimensions than features these effects lie in the span of Λ, so
    that a covariate which acts in another direction is seen in part; `latent_dim=num_features`
    leaves them free.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide; None if `latent_dim` is 0.
        data: The comparisons the model was fitted to.
        num_samples: Draws of each person's z.
        seed: Seed of the draws.

    Returns:
        One row for each mean, standard deviation, correlation and effect of a covariate (index
        `quantity`, `term`), in units of the features and covariates given; items without features
        are centred over all items. Columns:
        `estimate`; `se_hessian`, from the observed information; `se_outer_product`, from the
        outer product of the people's scores, which most software for mixed logits prints; and
        `se_sandwich`, both together, robust to misspecification, with people as clusters and
        without the factor U / (U − 1) by which some software enlarges it for U people; NaN, as the
        one before, where people are no more than parameters. Terms
        that the data do not identify (constant or collinear features) have NaN, effects of constant
        or collinear covariates in `estimate` too. A model with ties,
        position bias or lapses has rows `answer` for log ν, the bias in nats, the lapse rate and
        its logit, on which an interval is more nearly symmetric.

    Raises:
        ValueError: If the utility is not linear, the prior not normal, or there are too many
            parameters for a dense information matrix.

    Warns:
        UserWarning: If there are fewer than two people a parameter, or directions without
            information that are not expected.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    data = align(model, data)
    estimate = estimate_parameters(model, guide, data, num_samples, seed, "population()")
    rank = estimate.loading.shape[1]
    scale = model.feature_scale.double().cpu()

    def quantities(theta: Tensor) -> Tensor:
        location, loading, effect, of_answers = estimate.unpack(theta)
        location, loading = location / scale, loading / scale[:, None]
        if data.items is None:
            location, loading = location - location.mean(), loading - loading.mean(0)
        if model.lapse_logit is not None:
            of_answers = torch.cat([of_answers, of_answers[-1:].sigmoid()])
        if rank == 0:
            return torch.cat([location, of_answers])
        covariance = loading @ loading.T
        sd = covariance.diagonal().sqrt()
        pair = torch.tril_indices(len(sd), len(sd), -1)
        correlation = (covariance / sd[:, None] / sd[None, :])[pair[0], pair[1]]
        effect = (loading @ effect / estimate.covariate_scale).T.flatten()
        return torch.cat([location, sd, correlation, effect, of_answers])

    columns = with_standard_errors(
        quantities,
        estimate.theta,
        estimate.outer,
        estimate.information,
        estimate.expected_null,
        num_people=int((data.counts > 0).sum()),
        advice=estimate.advice,
    )
    index = label_parameters(data, rank, estimate.covariate_names, model.answer_parameters())
    table = pd.DataFrame(columns, index=index)
    unknown = np.repeat(~estimate.has_own_effect.numpy(), model.num_features)
    table.iloc[np.flatnonzero(index.get_level_values(0) == "effect")[unknown]] = np.nan
    return table
