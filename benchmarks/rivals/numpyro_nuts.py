"""NumPyro's NUTS and HMC, one chain a person, all chains in one compiled program.

Under `vmap` all people wait for the longest tree of NUTS in each draw. HMC with a fixed length of
its trajectories has no trees, and is two to three times faster here. A warm-up of 150 steps, a
dense mass matrix and trees of depth 5 at most were tried and are no better (K = 8, ten choices).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from benchmarks.rivals.problem import Draws, Problem
from benchmarks.rivals.rival import Point, Rival, Stopwatch

__all__ = ["NumPyroHMC", "NumPyroNUTS"]

# Steps of one call of the compiled program. The first call is the warm-up, in which each person's
# step size and mass matrix adapt; sizes are multiples of it.
_CHUNK = 64
_TRAJECTORY = 1.5  # About a quarter of the period under the prior, in whose units z is.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class NumPyroNUTS(Rival):
    """Adapts and runs a kernel of each person's own under `vmap`, compiled beforehand."""

    name = "NumPyro NUTS"
    package = "numpyro"
    algorithm: ClassVar[str] = "NUTS"
    options: ClassVar[dict] = {}

    def __init__(self) -> None:
        os.environ.setdefault("XLA_FLAGS", _ONE_THREAD)  # Before JAX is imported.
        self._programs: dict[tuple, tuple[Callable, Callable]] = {}

    def prepare(self, problem: Problem) -> None:
        """Compiles."""
        for _ in self.curve(problem, [_CHUNK], 0):
            pass

    def curve(self, problem: Problem, sizes: Sequence[int], seed: int) -> Iterator[Point]:
        """Yields the draws of chains that go on from one size to the next, after the warm-up."""
        import jax

        watch, parts = Stopwatch(), []
        with watch:
            data, potential = _potential(problem)
        key = problem.model, data[0].shape
        if key not in self._programs:
            width = problem.model.latent_dim
            self._programs[key] = _compile(potential, width, data, self.algorithm, self.options)
        start, advance = self._programs[key]
        keys = jax.random.split(jax.random.PRNGKey(seed), len(problem.context))
        with watch:
            states, _ = advance(start(keys, data), data)  # The warm-up.
            jax.block_until_ready(states)
        for size in sizes:
            with watch:
                while len(parts) * _CHUNK < size:
                    states, z = jax.block_until_ready(advance(states, data))
                    parts.append(z)
                drawn = np.concatenate(parts)
            yield Point(size, watch.wall, watch.cpu, Draws(torch.from_numpy(drawn)))


class NumPyroHMC(NumPyroNUTS):
    """Does the same by HMC with trajectories of a fixed length."""

    name = "NumPyro HMC"
    algorithm = "HMC"
    options: ClassVar[dict] = {"trajectory_length": _TRAJECTORY}


def _compile(
    potential: Callable, width: int, data: tuple, algorithm: str, options: dict
) -> tuple[Callable, Callable]:
    """Returns the programs that begin all chains, and that take them `_CHUNK` steps further."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer.hmc import hmc

    def initialise(key, data):
        init, _ = hmc(potential_fn_gen=lambda *data: partial(potential, data), algo=algorithm)
        return init(jnp.zeros(width), _CHUNK, model_args=data, rng_key=key, **options)

    # A kernel keeps what it was initialised with, which must be no tracer of another program.
    init, step = hmc(potential_fn_gen=lambda *data: partial(potential, data), algo=algorithm)
    first = jax.tree.map(lambda part: part[0], data)
    init(jnp.zeros(width), _CHUNK, model_args=first, rng_key=jax.random.PRNGKey(0), **options)

    def advance(state, data):
        def draw(state, _):
            state = step(state, model_args=data)
            return state, state.z

        return jax.lax.scan(draw, state, None, length=_CHUNK)

    return jax.jit(jax.vmap(initialise)), jax.jit(jax.vmap(advance, out_axes=(0, 1)))


def _potential(problem: Problem) -> tuple[tuple, Callable]:
    """Returns the people's data, and −log p(z) p(C|z) up to a constant, of one person's data."""
    import jax
    import jax.numpy as jnp

    utility = problem.model.utility
    if utility.is_linear:
        data = tuple(jnp.asarray(part, jnp.float32) for part in problem.choices())

        def potential(data, z):
            design, offset = data
            return 0.5 * z @ z - jax.nn.log_sigmoid(offset + design @ z).sum()

        return data, potential

    context, model = problem.context, problem.model
    with torch.no_grad():
        factors = utility.item_factors(model.standardise(context.items)).double().numpy()
    sign = 2 * np.asarray(context.choice) - 1
    signed = (factors[context.left] - factors[context.right]) * sign[:, None]
    signed = signed.reshape(len(context), problem.size, -1)
    layers = [
        (jnp.asarray(layer.weight.detach().numpy()), jnp.asarray(layer.bias.detach().numpy()))
        for layer in utility.user_tower
        if hasattr(layer, "weight")
    ]

    def potential(data, z):
        hidden = z
        for place, (weight, bias) in enumerate(layers):
            hidden = weight @ (jax.nn.relu(hidden) if place else hidden) + bias
        return 0.5 * z @ z - jax.nn.log_sigmoid(data[0] @ hidden).sum()

    return (jnp.asarray(signed, jnp.float32),), potential
