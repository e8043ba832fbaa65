"""A step of preference optimisation the published way and ours, part by part; and generation.

The published way: a second full model as the reference, run beside the policy; every sequence
padded to the maximum; logits of every position and token. Ours, one change after the other: the
policy's own weights as the reference; its log-probabilities kept from an earlier epoch;
log-probabilities of response positions in chunks of the vocabulary; batches of similar length;
prompts encoded once for both responses. All compute the same gradient of the same pairs. Where TRL
is installed, its current trainer is a column too, on our micro-batches and with a plain adapter.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.harness import Row, seeded, spread
from benchmarks.memory import held_gigabytes, in_fresh_process, peak_gigabytes
from benchmarks.trl_step import TrlStep, has_trl
from fssa_bayes.policy import (
    LengthBuckets,
    ReferenceCache,
    ResponseBatch,
    SteerablePolicy,
    fingerprint,
    pair_log_prob,
    steered,
)
from fssa_bayes.policy.generation import generate_tokens

__all__ = ["run"]

BETA = 0.1
LATENT = 8


@dataclass(frozen=True)
class Case:
    """Names a problem: a Qwen2 model (layers x width, vocabulary V) and P pairs of up to T tokens.

    `prompt` and `response` are medians of log-normal lengths with standard deviation `sigma` of
    the logarithm, drawn again where prompt and response exceed `maximum`, which is what the
    published way pads to.
    """

    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocabulary: int
    pairs: int
    micro_batch: int
    maximum: int
    prompt: int
    response: int
    sigma: float = 0.6
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False

    def __str__(self) -> str:
        return f"{self.layers}x{self.hidden} V{self.vocabulary} P{self.pairs} T{self.maximum}"

    def model(self) -> PreTrainedModel:
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=max(1, self.heads // 6),
            max_position_embeddings=4 * self.maximum,
            tie_word_embeddings=True,
        )
        with seeded(0):
            return Qwen2ForCausalLM._from_config(config, dtype=self.dtype)


# The head is two fifths of the work, as in a Qwen2.5 of half a billion parameters. Sequences fill
# about two fifths of the maximum, as prompts and responses of UltraFeedback do of 1,024 tokens.
TINY = Case(192, 12, 1024, 6, 32_000, 4, 2, 256, 45, 55)
QUICK = Case(32, 2, 64, 2, 500, 4, 2, 48, 8, 10)
# 2 users x 9 targets x 2 responses x 512 tokens.
LARGE = Case(
    1536, 28, 8960, 12, 151_936, 18, 18, 512, 256, 256, 0.0, torch.bfloat16, checkpointing=True
)


@dataclass(frozen=True)
class Way:
    """Says which parts of a step are ours and not the published ones."""

    copied_reference: bool = True
    cached: bool = False
    chunked: bool = False
    buckets: bool = False
    shared_prompt: bool = False


WAYS = {
    "published": Way(),
    "one model": (one := Way(copied_reference=False)),
    "cached reference": (cached := replace(one, cached=True)),
    "chunked": (chunked := replace(cached, chunked=True)),
    "buckets": (buckets := replace(chunked, buckets=True)),
    "ours": replace(buckets, shared_prompt=True),
}


class Problem:
    """Holds a policy away from its initial weights, pairs with a z each, and a reference cache."""

    def __init__(self, case: Case, device: str, folder: str) -> None:
        self.case, self.device = case, device
        model = case.model().to(device)
        self.policy = SteerablePolicy.from_model(model, None, latent_dim=LATENT)
        if case.checkpointing:
            self.policy.enable_gradient_checkpointing()
        with seeded(1), torch.no_grad():
            for parameter in self.policy.trainable_parameters():
                noise = torch.randn(parameter.shape, dtype=torch.float32) / 50
                parameter.add_(noise.to(parameter))
            self.z = torch.randn(case.pairs, LATENT).to(device)
        self.policy.train()
        self.rows = _draw(case)
        self.cache = ReferenceCache(folder, fingerprint(self.policy))

    @cached_property
    def copy(self) -> PreTrainedModel:
        """The second model of the published way: the base model before training."""
        return self.case.model().to(self.device)

    def forget_copy(self) -> None:
        """Frees the second model."""
        vars(self).pop("copy", None)

    def batches(self, way: Way) -> list[np.ndarray]:
        """Divides the pairs into micro-batches: as they come, or by length."""
        if way.buckets:
            lengths = [max(len(p) + len(r) for p, r in pair) for pair in self.rows]
            return LengthBuckets(lengths, self.case.micro_batch).batches()
        return np.split(np.arange(len(self.rows)), len(self.rows) // self.case.micro_batch)

    def batch(self, way: Way, pairs: np.ndarray) -> ResponseBatch:
        """Pads sequences, the chosen ones first: to the longest, or to the maximum."""
        rows = [self.rows[pair][side] for side in (0, 1) for pair in pairs]
        longest = max(len(prompt) + len(response) for prompt, response in rows)
        return _pad(rows, longest if way.buckets else self.case.maximum).to(self.device)

    def step(self, way: Way) -> float:
        """Accumulates the gradient of the mean loss of all pairs, and returns the loss."""
        self.policy.zero_grad(set_to_none=True)
        total = 0.0
        for pairs in self.batches(way):
            batch = self.batch(way, pairs)
            ratio = self.score(way, batch, self.z[pairs]) - self.reference(way, batch)
            chosen, rejected = ratio.chunk(2)
            loss = -F.logsigmoid(BETA * (chosen - rejected)).sum() / self.case.pairs
            loss.backward()
            total += loss.item()
        return total

    def switch_off_z(self) -> None:
        """Opens all gates, whatever z is: the policy is then a plain adapter."""
        with torch.no_grad():
            self.policy.conditioning.weight.zero_()
            self.policy.conditioning.bias.fill_(1.0)

    def adapter_gradient(self) -> Tensor:
        """Returns the gradients of the adapter alone, in the order of :class:`TrlStep`'s."""
        named = sorted(self.policy.model.named_parameters())
        return torch.cat([p.grad.flatten().float() for name, p in named if "lora_" in name])

    def gradient(self) -> Tensor:
        """Returns the gradients of the last step, one after the other."""
        parts = [p.grad.flatten().float().cpu() for p in self.policy.trainable_parameters()]
        return torch.cat(parts)

    def score(self, way: Way, batch: ResponseBatch, z: Tensor | None) -> Tensor:
        """Computes the log-probabilities of the responses under the policy, one way."""
        if way.shared_prompt:
            return pair_log_prob(self.policy, batch, z)
        z = None if z is None else z.repeat(2, 1)
        if way.chunked:
            return self.policy.sequence_log_prob(batch, z)
        return published_log_prob(self.policy(batch.input_ids, batch.attention_mask, z=z), batch)

    @torch.no_grad()
    def reference(self, way: Way, batch: ResponseBatch) -> Tensor:
        """Computes the log-probabilities of the responses under the reference policy, one way."""
        if way.copied_reference:
            output = self.copy(batch.input_ids, attention_mask=batch.attention_mask)
            return published_log_prob(output.logits, batch)

        def compute(batch: ResponseBatch) -> Tensor:
            with self.policy.reference():
                return self.score(way, batch, None)

        return self.cache.log_prob(batch, compute) if way.cached else compute(batch)


def published_log_prob(logits: Tensor, batch: ResponseBatch) -> Tensor:
    """Sums log-probabilities of responses from the logits (R, T, V) of all positions."""
    targets = batch.input_ids[:, 1:].clone()
    scored = batch.response_mask[:, 1:]
    targets[~scored] = 0
    token = logits[:, :-1].float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (token * scored).sum(-1)


def _draw(case: Case) -> list[list[tuple[list[int], list[int]]]]:
    """Draws pairs of (prompt, response), the two of a pair with the same prompt."""
    rng = np.random.default_rng(0)

    def length(median: int) -> int:
        return max(1, round(median * math.exp(case.sigma * rng.standard_normal())))

    pairs = []
    while len(pairs) < case.pairs:
        prompt, *responses = (length(m) for m in (case.prompt, case.response, case.response))
        if prompt + max(responses) > case.maximum:
            continue
        tokens = rng.integers(case.vocabulary, size=prompt).tolist()
        pairs.append([(tokens, rng.integers(case.vocabulary, size=n).tolist()) for n in responses])
    return pairs


def _pad(rows: list[tuple[list[int], list[int]]], width: int) -> ResponseBatch:
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    prompt = torch.tensor([len(p) for p, _ in rows])[:, None]
    total = torch.tensor([len(p) + len(r) for p, r in rows])[:, None]
    for row, (p, r) in enumerate(rows):
        ids[row, : len(p) + len(r)] = torch.tensor(p + r)
    place = torch.arange(width)
    present = place < total
    return ResponseBatch(ids, present.long(), present & (place >= prompt))


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures a step and its memory each way, and tokens written per second."""
    case = QUICK if args.quick else (TINY if args.device == "cpu" else LARGE)
    with tempfile.TemporaryDirectory() as folder:
        problem = Problem(case, args.device, folder)
        yield from _sizes(problem)
        if args.device == "cpu":
            yield from _differences(problem)
            yield from _times(problem, args)
            yield from _memory(case, args)
        else:
            yield from on_device(problem, args)
        yield from _generation(problem, args)


def _sizes(problem: Problem) -> Iterator[Row]:
    """Yields the share of the published batches that is not padding, which bounds buckets' gain."""
    sizes = [len(p) + len(r) for pair in problem.rows for p, r in pair]
    fill = [size / problem.case.maximum for size in sizes]
    yield spread("policy", str(problem.case), "published", "share that is not padding", "", fill)


def _differences(problem: Problem) -> Iterator[Row]:
    """The distance of each way's gradient from the published one, relative to its norm."""
    problem.step(WAYS["published"])
    truth = problem.gradient()
    for name, way in WAYS.items():
        if name != "published":
            problem.step(way)
            error = ((problem.gradient() - truth).norm() / truth.norm()).item()
            yield spread("policy", str(problem.case), name, "gradient, difference", "", [error])
    if has_trl():
        yield spread(
            "policy", str(problem.case), "TRL", "gradient, difference", "", [_of_trl(problem)]
        )


def _of_trl(problem: Problem) -> float:
    """The distance of TRL's gradient of the adapter from ours, where z is switched off."""
    gates = {k: v.clone() for k, v in problem.policy.conditioning.state_dict().items()}
    problem.switch_off_z()
    step = TrlStep(problem, BETA)
    step()
    problem.step(WAYS["ours"])
    truth = problem.adapter_gradient()
    problem.policy.conditioning.load_state_dict(gates)
    return ((step.gradient() - truth).norm() / truth.norm()).item()


def _times(problem: Problem, args: argparse.Namespace) -> Iterator[Row]:
    """Times a step of each way in turn, after a first one of each that fills the cache."""
    clock, unit = _clock(args)
    steps = {name: partial(problem.step, way) for name, way in WAYS.items()}
    if has_trl():
        steps["TRL"] = TrlStep(problem, BETA)
    times = _in_turn(steps, clock, 1 if args.quick else 5)
    published = statistics.median(times["published"])
    for name, values in times.items():
        ratio = published / statistics.median(values)
        yield spread(
            "policy", str(problem.case), name, "step", unit, values, "faster: published", ratio
        )
    for rival in ("published", "TRL"):
        ratios = [a / b for a, b in zip(times.get(rival, []), times["ours"], strict=False)]
        if ratios:
            metric = f"step, times faster than {rival} in turn"
            yield spread("policy", str(problem.case), "ours", metric, "", ratios)


def _clock(args: argparse.Namespace) -> tuple[Callable[[], float], str]:
    """Chooses processor time on one CPU thread, which other programs hardly change."""
    if args.device == "cpu" and args.threads == 1:
        return time.process_time, "CPU s"
    if args.device == "cpu":
        return time.perf_counter, "s"

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock, "s"


def _in_turn(
    steps: dict[str, Callable[[], float]], clock: Callable[[], float], repeats: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return times


def _memory(case: Case, args: argparse.Namespace) -> Iterator[Row]:
    """Peak memory of a step beyond the policy itself, and in all, in a process of its own."""
    names = ("published", "ours") if args.quick else ("published", "chunked", "ours")
    names += ("TRL",) if has_trl() else ()
    with _freed_at_once():
        peaks = {name: in_fresh_process(_peak, args.threads, case, name) for name in names}
    for index, metric in enumerate(("extra memory", "memory of the process")):
        for name, values in peaks.items():
            ratio = values[index] / peaks["published"][index]
            value = 1024 * values[index]
            yield spread("policy", str(case), name, metric, "MB", [value], "published", ratio)


@contextmanager
def _freed_at_once() -> Iterator[None]:
    """Makes glibc give freed blocks back, in processes that start inside the block.

    It otherwise keeps blocks of up to 32 MB for later, twice what a step has in use.
    """
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = str(2**17)
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _peak(case: Case, name: str) -> tuple[float, float]:
    """Returns what steps take, in GB: beyond the policy and its data, and in all."""
    with tempfile.TemporaryDirectory() as folder:
        small = replace(case, hidden=48, layers=1, intermediate=32, vocabulary=100)
        step_of(Problem(small, "cpu", folder + "/small"), name)()  # Loads modules at first use.
        step = step_of(Problem(case, "cpu", folder + "/case"), name)
        gc.collect()
        before = held_gigabytes()
        for _ in range(2):  # The first step fills the cache, and needs no more than the second.
            step()
        return peak_gigabytes() - before, peak_gigabytes()


def step_of(problem: Problem, name: str) -> Callable[[], float]:
    """Returns the step of one of :data:`WAYS`, or of TRL, as a function."""
    return TrlStep(problem, BETA) if name == "TRL" else partial(problem.step, WAYS[name])


def on_device(problem: Problem, args: argparse.Namespace) -> Iterator[Row]:
    """Time, tokens a second and peak memory with the weights on a GPU, ours and published."""
    case = problem.case
    tokens = sum(len(p) + len(r) for pair in problem.rows for p, r in pair)
    clock, _ = _clock(args)
    for name in ("ours", "published"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = {name: partial(problem.step, WAYS[name])}
            times = _in_turn(step, clock, 2 if args.quick else 5)[name]
        except torch.OutOfMemoryError:
            metric = "step: out of memory"
            yield spread("policy", str(case), name, metric, "s", [math.nan])
            times = None
        peak = torch.cuda.max_memory_allocated() / 2**30
        reached = "peak memory" if times else "memory when there was no more"
        yield spread("policy", str(case), name, reached, "GB", [peak])
        if times:
            yield spread("policy", str(case), name, "step", "s", times)
            rates = [tokens / value for value in times]
            yield spread("policy", str(case), name, "tokens a second", "1/s", rates)
        problem.policy.zero_grad(set_to_none=True)
    problem.forget_copy()
    torch.cuda.empty_cache()


def _generation(problem: Problem, args: argparse.Namespace) -> Iterator[Row]:
    """Tokens written per second: by the base model, the adapted one, and the steered one."""
    policy, case = problem.policy, problem.case
    clock, unit = _clock(args)
    count = 4 if args.quick else 32
    prompts = [pair[0][0] for pair in problem.rows] * (1 if args.quick else 4)
    uniform = torch.rand(len(prompts), count, generator=torch.Generator().manual_seed(0))
    z = torch.randn(len(prompts), LATENT, generator=torch.Generator().manual_seed(1))
    contexts = {
        "base": policy.reference,
        "adapter": nullcontext,
        "adapter and gates": lambda: steered(z.to(problem.device)),
    }
    rates: dict[str, list[float]] = {name: [] for name in contexts}
    policy.eval()
    for turn in range(2 if args.quick else 6):
        for name, context in contexts.items():
            start = clock()
            with context(), torch.no_grad():
                tokens = generate_tokens(
                    policy.base,
                    prompts,
                    uniform.to(problem.device),
                    temperature=1.0,
                    filler=0,
                    end=[],
                )
            seconds = clock() - start
            if turn:  # The first warms up.
                rates[name].append(sum(map(len, tokens)) / seconds)
    for name, values in rates.items():
        ratio = statistics.median(values) / statistics.median(rates["adapter"])
        yield spread(
            *("policy", str(case), name, "tokens written", f"1/{unit}", values, "adapter", ratio)
        )
