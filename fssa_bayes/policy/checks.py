"""Checks of arguments that several modules of the policy share."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["check_factors", "check_positions", "check_positive", "check_reach", "expand_factors"]


def check_positive(**numbers: float) -> None:
    """Checks that numbers, given by name, are positive and finite.

    Raises:
        ValueError: If a number is not.
    """
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_positions(name: str, positions: np.ndarray, length: int) -> np.ndarray:
    """Returns positions as int64, after checking them.

    Args:
        name: Name of the argument.
        positions: Integers with one dimension.
        length: Number of things that the positions count.

    Raises:
        ValueError: If the array is of another shape or type, or a position is not in
            0 … length - 1.
    """
    if positions.ndim != 1 or (positions.size and not np.issubdtype(positions.dtype, np.integer)):
        raise ValueError(
            f"{name} must be positions with one dimension, got {positions.dtype} with shape "
            f"{positions.shape}"
        )
    if positions.size and not (positions.min() >= 0 and positions.max() < length):
        raise ValueError(
            f"{name} must lie in 0 … {length - 1}, got {positions.min()} … {positions.max()}"
        )
    return positions.astype(np.int64)


def check_reach(model: PreTrainedModel, longest: int, name: str, room: int = 0) -> None:
    """Checks that sequences fit into a model's positions.

    Args:
        model: The language model.
        longest: Number of tokens of the longest sequence.
        name: What the sequences are.
        room: Number of tokens that are to follow.

    Raises:
        ValueError: If the sequences do not fit.
    """
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if reach is not None and longest + room > reach:
        rule = f"leave room for max_new_tokens={room} in" if room else "fit into"
        raise ValueError(
            f"{name} must {rule} the model's {reach} positions, got one of {longest} tokens"
        )


def check_factors(name: str, z: Tensor) -> None:
    """Checks that latent factors are a floating-point tensor.

    Raises:
        TypeError: If they are not.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = f"{z.dtype} tensor" if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")


def expand_factors(z: Tensor, rows: int, latent_dim: int) -> Tensor:
    """Gives latent factors a row for each of R sequences.

    Args:
        z: Latent factors (K,) for all, (R, K), or draws (S, R, K).
        rows: Number of sequences R.
        latent_dim: Width K.

    Returns:
        Latent factors with shape (R, K), or (S, R, K) for draws.

    Raises:
        ValueError: If z has another shape, or there are no draws.
        TypeError: If z is not a floating-point tensor.
    """
    check_factors("z", z)
    shape = (latent_dim,) if z.ndim == 1 else (rows, latent_dim)
    if z.ndim not in (1, 2, 3) or z.shape[-2:] != shape or (z.ndim == 3 and len(z) == 0):
        raise ValueError(
            f"z must have shape (K,), (R, K) or (S, R, K) with K = {latent_dim} and R = {rows}, "
            f"got {tuple(z.shape)}"
        )
    return z.expand(rows, -1) if z.ndim == 1 else z
