"""Logits to the next token, one row at a time, in numpy.

Order: repetition penalty, minimum length, allowed tokens, then greedy or temperature, top-k, top-p.
A draw is the largest of logit plus Gumbel noise, the noise indexed by rank: a graph that is handed
the same noise makes the same draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.plain_values import finite, shown, whole
from pl_compile.errors import RequestError, check_all

Float32 = NDArray[np.float32]

# Beyond these a penalty makes logits that are no numbers.
PENALTIES = (0.001, 1000)

# What the number of a graph can hold without rounding it to 0 or to infinity.
_TEMPERATURES_IN_GRAPH = (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max))


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its logits.

    Attributes:
        temperature: 0 takes the likeliest token; above 0 logits are divided by it and drawn from.
        top_k: only the `top_k` likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together reach this probability; 1 for all.
        repetition_penalty: 0.001 to 1000, 1 for none; above 1 makes tokens of prompt and answer
            less likely (positive logits are divided by it, negative ones multiplied;
            arXiv:1909.05858).
        seed: of the draws. A result depends on its request only, not on what ran beside it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what is no number, and numbers outside their ranges."""
        numbers = {
            "temperature": finite(self.temperature),
            "top_k": whole(self.top_k),
            "top_p": finite(self.top_p),
            "repetition_penalty": finite(self.repetition_penalty),
            "seed": whole(self.seed),
        }
        least, most = PENALTIES
        expected = {
            "temperature": ("a finite number, 0 or more", 0, math.inf),
            "top_k": ("a whole number, 0 or more", 0, math.inf),
            "top_p": ("a number above 0, at most 1", math.ulp(0), 1),
            "repetition_penalty": (f"a number from {least} to {most}", least, most),
            "seed": ("a whole number, 0 or more", 0, math.inf),
        }
        checks = {}
        for name, (what, low, high) in expected.items():
            number = numbers[name]
            problem = f"{name} {shown(getattr(self, name))}, expected {what}"
            checks[problem] = number is not None and low <= number <= high
        check_all(RequestError, "reading the sampling options", checks)
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # of numpy's types, Python's


@dataclass(frozen=True)
class Draw:
    """One row's draw as a graph with `--sampling graph` takes it.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: only as many of the likeliest tokens, at least 1.
        top_p: as in `Sampling`.
        noise: float32 `[top_k]`: Gumbel noise of the likeliest token, the next one, …
    """

    temperature: float
    top_k: int
    top_p: float
    noise: Float32


GREEDY = Draw(0.0, 1, 1.0, np.zeros(1, np.float32))


def draw_in_graph(
    sampling: Sampling, generator: "np.random.Generator", candidates: int
) -> Draw | None:
    """What a graph needs to choose as `next_token` would; None where it cannot.

    Args:
        sampling: how to choose.
        generator: the row's own source of noise; as far along afterwards as after `next_token`.
        candidates: the likeliest tokens that the graph looks at.
    """
    if sampling.repetition_penalty != 1.0:
        return None
    if sampling.temperature == 0.0:
        return GREEDY
    least, most = _TEMPERATURES_IN_GRAPH
    if not (0 < sampling.top_k <= candidates and least <= sampling.temperature <= most):
        return None
    noise = _gumbel(generator, sampling.top_k).astype(np.float32)
    return Draw(sampling.temperature, sampling.top_k, sampling.top_p, noise)


@np.errstate(all="ignore")
def next_token(
    logits: Float32,
    sampling: Sampling,
    generator: "np.random.Generator",
    *,
    seen: Sequence[int] = (),
    blocked: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
) -> int:
    """The next token of a row.

    Args:
        logits: float32 `[vocab]`; not changed.
        sampling: how to choose.
        generator: the row's own source of noise.
        seen: real tokens of the row so far, for the repetition penalty.
        blocked: tokens that may not come yet (those that end an answer, before its minimum length).
        allowed: if given, the only tokens that may come; it overrides `blocked`.
    """
    scores = logits.astype(np.float32, copy=True)
    if sampling.repetition_penalty != 1.0 and len(seen):
        ids = np.unique(np.asarray(seen))
        penalty = np.float32(sampling.repetition_penalty)
        scores[ids] = np.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
    if allowed is not None:
        ids = np.asarray(sorted(allowed))
        return int(ids[_choose(scores[ids], sampling, generator)])
    if blocked:
        scores[list(blocked)] = -np.inf
    return _choose(scores, sampling, generator)


def _choose(scores: Float32, sampling: Sampling, generator: "np.random.Generator") -> int:
    if sampling.temperature == 0.0:
        return int(np.argmax(scores))
    ranked = _ranked(scores, sampling.top_k)
    # From the highest down, in float64: with a tiny temperature all others end at 0, or at -inf.
    scaled = (scores[ranked].astype(np.float64) - scores[ranked[0]]) / sampling.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    # A token stays if those before it have not reached top_p yet: the first always does.
    stays = np.cumsum(probabilities) - probabilities < sampling.top_p
    noisy = np.where(stays, scaled + _gumbel(generator, len(ranked)), -np.inf)
    return int(ranked[np.argmax(noisy)])


def _gumbel(generator: "np.random.Generator", count: int) -> NDArray[np.float64]:
    """The largest of logits plus this noise is a draw from their softmax (arXiv:1611.00712)."""
    uniform = np.clip(generator.random(count), 1e-12, 1 - 1e-12)
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _ranked(scores: Float32, top_k: int) -> NDArray[np.int64]:
    """Indices of the `top_k` highest scores (0 for all), highest first; ties by index."""
    if 0 < top_k < len(scores):
        candidates = np.sort(np.argpartition(-scores, top_k - 1)[:top_k])
    else:
        candidates = np.arange(len(scores))
    order: NDArray[np.int64] = candidates[np.argsort(-scores[candidates], kind="stable")]
    return order
