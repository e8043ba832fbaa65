r"""Simulated answers in four styles, and people of four types who prefer one of them.

Prompts ask for advice ("how do i clean my old bike?"). An answer has two traits, independent of
each other and of its content: *length*, terse (one sentence) or long (three or four), and
*register*, formal or casual. A person prefers one end of each, so there are four types. In every
pair the answers differ in one trait or in both. The utility of an answer to a person is

.. math:: u = s_L\,(\pm\tfrac12) + s_R\,(\pm\tfrac12), \qquad s_L = 8, \; s_R = 5 \text{ nats},

plus where the answer has the end that the person prefers, minus where it has the other; choices
are Bradley–Terry–Luce. As the strengths differ, nobody is indifferent between any two styles, and
every pair divides the four types two against two: a policy that does not know the type is right
half of the time.

The texts are small enough for a language model of a quarter of a million parameters to learn in a
minute.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from fssa_bayes.datasets._simulation import check_sizes

__all__ = [
    "LONG",
    "TYPES",
    "StyledChoices",
    "formality",
    "is_long",
    "margin",
    "prompts",
    "simulate",
    "style_of",
    "write",
]

TYPES = ("terse formal", "terse casual", "long formal", "long casual")
LONG = 15  # Words: one sentence of any style has fewer, three have more.
_STRENGTH = np.array([8.0, 5.0])  # Nats from one end of length, and of register, to the other.
# Ends of length (long: 1) and register (casual: 1) of each type, and of each style of answer.
_ENDS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])

_QUESTIONS = (
    "how do i {verb} my {adjective} {thing}?",
    "can you help me {verb} my {adjective} {thing}?",
)
_TOOLS = {
    "clean": ("a damp cloth", "warm water", "a soft brush"),
    "repair": ("strong glue", "a small screwdriver", "a new part"),
    "paint": ("a wide brush", "a foam roller", "a spray can"),
    "move": ("a flat trolley", "two thick straps", "a long ramp"),
    "store": ("a dry box", "a cotton cover", "a plastic sheet"),
    "polish": ("fine wax", "a felt pad", "a little oil"),
    "measure": ("a steel tape", "a long ruler", "a piece of string"),
    "pack": ("bubble wrap", "a sturdy crate", "old newspaper"),
}
_ADJECTIVES = ("old", "small", "heavy", "wooden", "favourite", "dusty")
_THINGS = (
    *("bike", "desk", "lamp", "chair", "mirror", "guitar", "clock", "shelf", "table", "radio"),
    *("heater", "door", "window", "drum", "vase", "bench", "sofa", "oven", "cabinet", "piano"),
)
_ANSWERS = {
    "formal": (
        "please {verb} the {thing} using {tool}.",
        "one should {verb} the {thing} by means of {tool}.",
        "i would recommend {tool} for the {thing}.",
    ),
    "casual": (
        "hey, just {verb} that {thing} with {tool}.",
        "yeah, grab {tool} and {verb} that {thing}.",
        "easy, get {tool} for that {thing}!",
    ),
}
_DETAILS = {
    "formal": (
        "kindly proceed without haste.",
        "this method is generally reliable.",
        "the procedure requires approximately {minutes} minutes.",
        "the {thing} will subsequently be in excellent condition.",
        "it is advisable to verify the result.",
    ),
    "casual": (
        "don't rush it, buddy.",
        "works like a charm, trust me.",
        "it's gonna take like {minutes} minutes, tops.",
        "your {thing} is gonna look awesome!",
        "no worries if it gets messy, haha.",
    ),
}
_MINUTES = ("five", "ten", "twenty", "thirty")


class StyledChoices(NamedTuple):
    """Holds simulated choices between answers, and the people's types.

    Attributes:
        table: One row a choice: `user`, `prompt`, `chosen`, `rejected`.
        type: Position in :data:`TYPES` of the type of each person, in order of appearance, (U,).
    """

    table: pd.DataFrame
    type: np.ndarray


def prompts() -> list[str]:
    """Lists every prompt, in a fixed order that mixes their content."""
    parts = itertools.product(_QUESTIONS, _TOOLS, _ADJECTIVES, _THINGS)
    every = [q.format(verb=v, adjective=a, thing=t) for q, v, a, t in parts]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def write(prompt: str, style: int, rng: np.random.Generator) -> str:
    """Writes an answer to one of :func:`prompts` in a style, a position in :data:`TYPES`."""
    words = prompt.rstrip("?").split()
    verb, thing = words[-4], words[-1]
    is_long, is_casual = _ENDS[style]
    register = "casual" if is_casual else "formal"
    sentences = [rng.choice(_ANSWERS[register])]
    if is_long:
        sentences += list(rng.permutation(_DETAILS[register])[: rng.integers(2, 4)])
    slots = {"verb": verb, "thing": thing, "tool": rng.choice(_TOOLS[verb])}
    return " ".join(sentences).format(**slots, minutes=rng.choice(_MINUTES))


def margin(person_type: np.ndarray | int, style: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Evaluates the utility of one style less that of another to a type, in nats, broadcast."""
    sign = 2 * _ENDS[person_type] - 1
    return (sign * _STRENGTH * (_ENDS[style] - _ENDS[other])).sum(-1)


def simulate(
    num_users: int,
    num_comparisons: int,
    *,
    prompts: list[str],
    noise: bool = True,
    seed: int = 0,
) -> StyledChoices:
    """Draws people, pairs of answers and choices.

    Args:
        num_users: Number of people; the types take turns, so that their numbers differ by one at
            most.
        num_comparisons: Number of choices of each person, every one on another prompt.
        prompts: The prompts to draw from, at least `num_comparisons` of :func:`prompts`.
        noise: Whether choices are Bradley–Terry–Luce; without noise the preferred answer is chosen.
        seed: Seed of the draws.

    Returns:
        The choices and the people's types.

    Raises:
        ValueError: If a number is below 1 or there are too few prompts.
    """
    check_sizes(num_users, num_comparisons)
    if len(prompts) < num_comparisons:
        raise ValueError(
            f"prompts must be at least num_comparisons={num_comparisons}, got {len(prompts)}"
        )
    rng = np.random.default_rng(seed)
    types = np.arange(num_users) % len(TYPES)
    rows = []
    for user, person_type in enumerate(types):
        for position in rng.choice(len(prompts), num_comparisons, replace=False):
            styles = rng.permutation(len(TYPES))[:2]
            utility = margin(person_type, styles[0], styles[1])
            first = rng.random() < 1 / (1 + np.exp(-utility)) if noise else utility > 0
            answers = [write(prompts[position], style, rng) for style in styles]
            chosen, rejected = answers if first else answers[::-1]
            rows.append((f"person {user}", prompts[position], chosen, rejected))
    return StyledChoices(
        pd.DataFrame(rows, columns=["user", "prompt", "chosen", "rejected"]), types
    )


def is_long(text: str) -> float:
    """Tells whether a text is long: 1 with more than :data:`LONG` words, else 0."""
    return float(len(_words(text)) > LONG)


def formality(text: str) -> float:
    """Measures the share of formal words among the words that mark a register; ½ without any."""
    formal, casual = (sum(w in _MARKERS[r] for w in _words(text)) for r in ("formal", "casual"))
    return formal / (formal + casual) if formal + casual else 0.5


def style_of(text: str) -> int:
    """Names the style of an answer by its traits, as a position in :data:`TYPES`."""
    return int(2 * is_long(text) + (formality(text) < 0.5))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _register_words(register: str) -> set[str]:
    templates = " ".join(_ANSWERS[register] + _DETAILS[register])
    return set(_words(re.sub(r"\{\w+\}", " ", templates)))


_NEUTRAL = set(_words(" ".join(itertools.chain(*_TOOLS.values()))))
_MARKERS = {
    "formal": _register_words("formal") - _register_words("casual") - _NEUTRAL,
    "casual": _register_words("casual") - _register_words("formal") - _NEUTRAL,
}
