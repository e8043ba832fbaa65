"""Pairwise log-likelihoods: naive, simple, compiled and ours; time, memory, error and scaling.

`naive` is the published computation: for every draw the utilities of both items of every pair
(expand, concatenate, matmul), the log-probabilities of both outcomes, then the observed one.
`simple` is what a good engineer writes: first layer split, one log-sigmoid of the signed margin.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, slope, spread
from fssa_bayes import HeterogeneousBTL, ImportanceWeightedELBO, NeuralProcessGuide, kernels
from fssa_bayes.datasets import two_mode
from fssa_bayes.model import BilinearUtility, MLPUtility

__all__ = ["run"]

LATENT = 8


@dataclass(frozen=True)
class Case:
    """Names a problem: the operation and draws, users, comparisons, width and items."""

    operation: str
    draws: int
    users: int
    comparisons: int
    width: int
    items: int

    def __str__(self) -> str:
        width = "" if self.operation == "gather" else f" H{self.width}"
        return f"{self.operation} S{self.draws} U{self.users} N{self.comparisons}{width}"


def cases(quick: bool, device: str) -> list[Case]:
    """Lists the sizes: large ones, and one of each operation where calls and not work count."""
    if quick:
        return [Case("mlp", 4, 16, 5, 32, 160), Case("gather", 4, 16, 5, 0, 10)]
    users = 512 if device == "cpu" else 4096
    wide = 1024 if device == "cpu" else 4096
    return [
        Case("mlp", 64, users, 20 if device == "cpu" else 50, 256, 2 * users * 20),
        Case("mlp", 16, 64, 20, 256, 2 * 64 * 20),
        Case("bilinear", 256, wide, 50, 32, 2 * wide * 50),
        Case("gather", 256, wide, 50, 0, 50),
        *(Case(operation, 1, 8, 4, 32, 64) for operation in ("mlp", "bilinear", "gather")),
    ]


@dataclass
class Problem:
    """Holds the inputs of a case: those with gradients, and the comparisons."""

    inputs: list[Tensor]
    left: Tensor
    right: Tensor
    choice: Tensor
    mask: Tensor

    @classmethod
    def draw(cls, case: Case, device: str, dtype: torch.dtype = torch.float32) -> Problem:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            value = torch.randn(*shape, generator=generator).to(device, dtype)
            return value.requires_grad_()

        size = (case.users, case.comparisons)
        left = torch.randint(case.items, size, generator=generator)
        shift = torch.randint(1, case.items, size, generator=generator)
        choice = torch.randint(2, size, generator=generator)
        if case.operation == "mlp":
            inputs = [normal(case.items, case.width), normal(case.draws, case.users, LATENT)]
            inputs += [normal(case.width, case.width + LATENT), normal(case.width)]
            scale = torch.tensor([(case.width + LATENT) ** -0.5, case.width**-0.5])
            inputs[2:] = [
                (t * s.to(t)).detach().requires_grad_()
                for t, s in zip(inputs[2:], scale, strict=True)
            ]
        elif case.operation == "bilinear":
            inputs = [normal(case.items, case.width), normal(case.draws, case.users, case.width)]
        else:
            inputs = [normal(case.draws, case.users, case.items)]
        mask = torch.ones(size, dtype=torch.bool)
        rest = (left, (left + shift) % case.items, choice.to(dtype), mask)
        return cls(inputs, *(tensor.to(device) for tensor in rest))


def naive(p: Problem) -> Tensor:
    """Evaluates (S, U) as published."""
    index = torch.stack([p.left, p.right], -1)
    if len(p.inputs) == 1:
        draws = len(p.inputs[0])
        flat = index.flatten(1).expand(draws, -1, -1)
        utility = p.inputs[0].gather(-1, flat).unflatten(-1, (-1, 2))
    else:
        items, user = p.inputs[0][index], p.inputs[1][:, :, None, None]
        shape = (*user.shape[:2], *index.shape[1:])
        items, user = items.expand(*shape, -1), user.expand(*shape, -1)
        if len(p.inputs) == 2:
            utility = (items * user).sum(-1)
        else:
            utility = F.linear(torch.cat([items, user], -1), p.inputs[2], *p.inputs[4:])
            utility = F.relu(utility) @ p.inputs[3]
    return _pick(utility, p)


def _pick(utility: Tensor, p: Problem) -> Tensor:
    """Evaluates both outcomes' log-probabilities for utilities (S, U, N, 2), and picks one."""
    both = utility.log_softmax(-1)
    observed = (1 - p.choice).long().expand(both.shape[:-1]).unsqueeze(-1)
    return (both.gather(-1, observed).squeeze(-1) * p.mask).sum(-1)


def simple(p: Problem) -> Tensor:
    """Evaluates (S, U) in the simple eager form."""
    if len(p.inputs) == 1:
        draws = len(p.inputs[0])
        left, right = (p.inputs[0].gather(-1, i.expand(draws, -1, -1)) for i in (p.left, p.right))
        margin = left - right
    elif len(p.inputs) == 2:
        difference = p.inputs[0][p.left] - p.inputs[0][p.right]
        margin = torch.einsum("unk,suk->sun", difference, p.inputs[1])
    else:
        items, user, weight = _first_layer(p)
        user = user.unsqueeze(-2)
        left, right = (F.relu(items[i] + user) @ weight for i in (p.left, p.right))
        margin = left - right
    return (F.logsigmoid((2 * p.choice - 1) * margin) * p.mask).sum(-1)


def ours(p: Problem) -> Tensor:
    """Evaluates (S, U) by the kernels."""
    rest = (p.left, p.right, p.choice, p.mask)
    if len(p.inputs) == 1:
        return kernels.pairwise_gather(*p.inputs, *rest)
    if len(p.inputs) == 2:
        return kernels.pairwise_bilinear(*p.inputs, *rest)
    return kernels.pairwise_mlp(*_first_layer(p), *rest)


def _first_layer(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    if len(p.inputs) == 3:
        return tuple(p.inputs)
    items, z, first, weight = p.inputs
    width = items.shape[-1]
    return items @ first[:, :width].T, z @ first[:, width:].T, weight


IMPLEMENTATIONS: dict[str, Callable[[Problem], Tensor]] = {
    "naive": naive,
    "simple": simple,
    "ours": ours,
}


def run(args: argparse.Namespace) -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for case in cases(args.quick, args.device):
        yield from _times(case, args)
        if args.device == "cpu" and not args.quick and case.users > 8:
            yield from _memory(case, args)
        yield from _errors(case, args.device)
    yield from _training(args)
    if args.device == "cpu":
        yield from _busy(args)
        yield from _posterior(args)
    yield from _scaling(args)


def _compiled(case: Case) -> dict[str, Callable[[Problem], Tensor]]:
    """Compiles the two eager forms, once for each case."""
    torch._dynamo.reset()
    return {
        f"compiled {name}": torch.compile(IMPLEMENTATIONS[name], dynamic=False)
        for name in ("naive", "simple")
    }


def _times(case: Case, args: argparse.Namespace) -> Iterator[Row]:
    p = Problem.draw(case, args.device)
    grad = torch.randn(case.draws, case.users, generator=torch.Generator().manual_seed(1))
    grad = grad.to(args.device)
    functions = dict(IMPLEMENTATIONS)
    if not args.quick:
        functions |= _compiled(case)
    work = case.draws * case.users * case.comparisons
    repeats = 3 if args.quick or work > 10**5 else (15 if work > 1000 else 200)
    for metric in ("forward", "forward and backward"):

        def step(function: Callable[[Problem], Tensor], metric: str = metric) -> None:
            if metric == "forward":
                with torch.no_grad():
                    function(p)
            else:
                torch.autograd.grad(function(p), p.inputs, grad)

        steps = {n: lambda f=f: step(f) for n, f in functions.items()}
        if not args.quick:
            yield from _first_calls(case, metric, steps)
        times = measure(steps, repeats, args)
        for name, values in times.items():
            for other in ("naive", "simple") if name == "ours" else ("naive",):
                ratio = statistics.median(times[other]) / statistics.median(values)
                milliseconds = [1e3 * value for value in values]
                yield spread(
                    "kernels",
                    str(case),
                    name,
                    metric,
                    "ms",
                    milliseconds,
                    f"faster: {other}",
                    ratio,
                )


def _first_calls(case: Case, metric: str, steps: dict[str, Callable[[], None]]) -> Iterator[Row]:
    """Seconds of the first call of all, in which programs are compiled."""
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        if name.startswith("compiled"):
            seconds = time.perf_counter() - start
            yield spread("kernels", str(case), name, f"first {metric}", "s", [seconds])


def measure(
    functions: dict[str, Callable[[], None]], repeats: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Times functions in turn, so that a busy machine is busy for all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            _wait(args.device)
            start = time.perf_counter()
            function()
            _wait(args.device)
            times[name].append(time.perf_counter() - start)
    return times


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _memory(case: Case, args: argparse.Namespace) -> Iterator[Row]:
    """Peak memory beyond the inputs, each implementation in a process of its own."""
    peaks = {}
    for name in IMPLEMENTATIONS:
        code = (
            f"import torch; torch.set_num_threads({args.threads})\n"
            "from benchmarks.kernels import Case, IMPLEMENTATIONS, Problem\n"
            f"small = Problem.draw(Case({case.operation!r}, 2, 2, 2, 4, 4), 'cpu')\n"
            f"torch.autograd.grad(IMPLEMENTATIONS[{name!r}](small).sum(), small.inputs)\n"
            f"p = Problem.draw({case!r}, 'cpu')\n"
            "before = peak()\n"
            f"torch.autograd.grad(IMPLEMENTATIONS[{name!r}](p).sum(), p.inputs)\n"
            "print(peak() - before)\n"
        )
        peaks[name] = _in_a_process(code)
    for name, value in peaks.items():
        ratio = peaks["naive"] / max(value, 1.0)
        yield spread(
            "kernels", str(case), name, "extra memory", "MB", [value], "less: naive", ratio
        )


def _errors(case: Case, device: str) -> Iterator[Row]:
    """Largest error relative to the largest value, against the simple form in float64."""
    few = Case(
        case.operation,
        min(case.draws, 16),
        min(case.users, 64),
        case.comparisons,
        case.width,
        min(case.items, 2 * 64 * case.comparisons),
    )
    single, double = Problem.draw(few, device), Problem.draw(few, device)
    double.inputs = [t.detach().double().requires_grad_() for t in single.inputs]
    double.choice = double.choice.double()

    def evaluate(function: Callable[[Problem], Tensor], p: Problem) -> list[Tensor]:
        value = function(p)
        return [value, *torch.autograd.grad(value.sum(), p.inputs)]

    truth = evaluate(simple, double)
    for name, function in IMPLEMENTATIONS.items():
        errors = [
            ((found - true).abs().max() / true.abs().max()).item()
            for found, true in zip(evaluate(function, single), truth, strict=True)
        ]
        yield spread("kernels", str(few), name, "relative error, value", "", errors[:1])
        yield spread("kernels", str(few), name, "relative error, gradients", "", errors[1:])


class NaiveBilinear(BilinearUtility):
    """Evaluates the bilinear utility as published: h(x) once an item, all else pair by pair.

    The published decoder repeats z for both items of every pair, and every layer that sees z works
    on the rows so repeated. Here these layers are ψ.
    """

    def pairwise(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        def log_prob(*comparisons: Tensor, **_: object) -> Tensor:
            p = Problem([factors, z], *comparisons)
            index = torch.stack([p.left, p.right], -1)
            rows = z[:, :, None, None].expand(*z.shape[:2], *index.shape[1:], -1)
            user = self.user_tower(rows.reshape(-1, z.shape[-1])).view(*rows.shape[:-1], -1)
            return _pick((factors[index].expand_as(user) * user).sum(-1), p)

        return log_prob


class NaiveProduct(BilinearUtility):
    """Evaluates ψ once a draw, as ours does; naive is the product with φ alone."""

    def pairwise(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        inputs = [factors, self.user_tower(z)]
        return lambda *comparisons, **_: naive(Problem(inputs, *comparisons))


class NaiveMLP(MLPUtility):
    """Evaluates the network on every draw's [h(x), z], without splitting its first layer."""

    def pairwise(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        first, activation, rest = self.item_tower
        *lower, last = rest
        hidden = nn.Sequential(first, activation, *lower)(items)
        both = torch.cat([last.weight, self.user_layer], -1)
        inputs = [hidden, z, both, self.weight, last.bias]
        return lambda *comparisons, **_: naive(Problem(inputs, *comparisons))


def _training(args: argparse.Namespace) -> Iterator[Row]:
    """A training step of a model, end to end, with the naive decoder and with ours."""
    users, comparisons, width = (8, 4, 16) if args.quick else (64, 20, 256)
    data = two_mode.simulate(users, comparisons, seed=0).data
    batch = data.batch().to(args.device)
    objective = ImportanceWeightedELBO(num_particles=16)
    for name, decoders in (
        ("mlp", {"naive": NaiveMLP, "ours": MLPUtility}),
        (
            "bilinear",
            {"naive": NaiveBilinear, "naive product": NaiveProduct, "ours": BilinearUtility},
        ),
    ):
        model = HeterogeneousBTL(1, 2, utility=name, hidden_dim=width, num_factors=64)
        guide = NeuralProcessGuide(model)
        model, guide = model.to(args.device), guide.to(args.device)
        # So slow that the model, and with it what is timed, stays the same.
        optimiser = torch.optim.Adam(objective.trained(model, guide), lr=1e-5, fused=True)

        def step(
            utility: type[nn.Module],
            model: HeterogeneousBTL = model,
            guide: NeuralProcessGuide = guide,
            optimiser: torch.optim.Optimizer = optimiser,
        ) -> None:
            model.utility.__class__ = utility
            optimiser.zero_grad()
            objective.backward(model, guide, batch)
            optimiser.step()

        functions = {n: lambda d=d, f=step: f(d) for n, d in decoders.items()}
        with pyro.validation_enabled(False):  # As in a fit.
            times = measure(functions, 3 if args.quick else 15, args)
        case = f"{name} S16 U{users} N{comparisons} H{width}"
        yield from _compared(case, "training step", times)


def _compared(case: str, metric: str, times: dict[str, list[float]]) -> Iterator[Row]:
    """Rows of times in ms, ours compared with every other and the others with the first."""
    first, *others = (name for name in times if name != "ours")
    for name, values in times.items():
        for other in (first, *others) if name == "ours" else (first,):
            ratio = statistics.median(times[other]) / statistics.median(values)
            milliseconds = [1e3 * value for value in values]
            yield spread(
                *("kernels", case, name, metric, "ms"), milliseconds, f"faster: {other}", ratio
            )


def _busy(args: argparse.Namespace) -> Iterator[Row]:
    """Forward and backward while another process keeps a core busy."""
    large = Case("mlp", 16, 64, 20, 256, 2560), Case("bilinear", 64, 256, 50, 32, 25600)
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for case in cases(True, args.device)[:1] if args.quick else large:
            p = Problem.draw(case, args.device)
            functions = {
                name: lambda f=function, p=p: torch.autograd.grad(f(p).sum(), p.inputs)
                for name, function in IMPLEMENTATIONS.items()
            }
            times = measure(functions, 3 if args.quick else 15, args)
            yield from _compared(str(case), "forward and backward, busy", times)
    finally:
        burner.kill()
        burner.wait()


def _posterior(args: argparse.Namespace) -> Iterator[Row]:
    """Peak memory of the importance weights of many draws."""
    draws, people = (64, 20) if args.quick else (4096, 1000)
    code = (
        f"import torch; torch.set_num_threads({args.threads})\n"
        "from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior\n"
        "from fssa_bayes.datasets import two_mode\n"
        f"data = two_mode.simulate({people}, 10, seed=0).data\n"
        "model = HeterogeneousBTL(1, 2)\n"
        "guide = NeuralProcessGuide(model)\n"
        "few = two_mode.simulate(2, 10, seed=0).data\n"
        "Posterior(model, guide, few, num_samples=32, seed=0)\n"
        "before = peak()\n"
        f"Posterior(model, guide, data, num_samples={draws}, seed=0)\n"
        "print(peak() - before)\n"
    )
    case = f"Posterior S{draws} U{people} N10"
    yield spread("kernels", case, "ours", "extra memory", "MB", [_in_a_process(code)])


def _in_a_process(code: str) -> float:
    """Runs a program that may ask for its `peak` memory in MB, and returns what it prints."""
    # Not ru_maxrss, which starts at the peak of the process that started this one.
    peak = (
        "def peak():\n"
        "    with open('/proc/self/status') as file:\n"
        "        line, = (line for line in file if line.startswith('VmHWM'))\n"
        "    return int(line.split()[1]) / 1024\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", peak + code]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _scaling(args: argparse.Namespace) -> Iterator[Row]:
    """Forward and backward of the mlp, with one of S, U and N over two orders of magnitude.

    Without the first layer, whose cost is that of items and draws one by one.
    """
    start = Case("mlp", 8, 64, 16, 128, 4096)
    factors = (1, 4) if args.quick else (1, 3, 10, 30, 100)
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for axis in ("draws", "users", "comparisons"):
        for factor in factors:
            size = dict(vars(start)) | {axis: factor * getattr(start, axis)}
            p = Problem.draw(Case(**size), args.device)
            p.inputs = [tensor.detach().requires_grad_() for tensor in _first_layer(p)]
            functions = {
                name: lambda f=IMPLEMENTATIONS[name], p=p: torch.autograd.grad(f(p).sum(), p.inputs)
                for name in ("simple", "ours")
                if name == "ours" or factor < 100  # The simple form takes 3 GB there.
            }
            for name, times in measure(functions, 5, args).items():
                case, metric = f"mlp, {axis} x {factor}", "forward and backward"
                milliseconds = [1e3 * value for value in times]
                yield spread("kernels", case, name, metric, "ms", milliseconds)
                curve = curves.setdefault(axis, {}).setdefault(name, {})
                curve[size[axis]] = statistics.median(milliseconds)
    for axis, lines in curves.items():
        for name, curve in lines.items():
            yield slope("kernels", f"mlp, {axis}", name, "slope of log time", curve)
    figure = args.figure or (args.json and args.json.with_suffix(".png"))
    if figure:
        _draw(curves, start, figure)


def _draw(curves: dict[str, dict[str, dict[int, float]]], start: Case, path: Path) -> None:
    """Plots time against S, U and N on logarithmic axes, with a line of slope 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    symbols = {"draws": "S", "users": "U", "comparisons": "N"}
    for axes, (axis, lines) in zip(panels, curves.items(), strict=True):
        for (name, curve), style in zip(lines.items(), ("s--", "o-"), strict=True):
            axes.loglog(list(curve), list(curve.values()), style, label=name)
        sizes = np.array(list(curve))
        last = curve[sizes[-1]] / sizes[-1]
        axes.loglog(sizes, last * sizes, ":", color="black", label="slope 1")
        fixed = [f"{s} = {getattr(start, n)}" for n, s in symbols.items() if n != axis]
        axes.set(xlabel=f"{axis} {symbols[axis]}", title=", ".join(fixed))
    panels[0].set_ylabel("forward and backward [ms]")
    panels[0].legend(frameon=False)
    figure.suptitle(f"mlp, H = {start.width}: time against size")
    figure.savefig(path, dpi=150)
