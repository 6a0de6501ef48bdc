"""Logits to the next token, one row at a time, in numpy.

Order: bias, repetition penalty, blocked or allowed tokens, then greedy or temperature, top-k,
top-p, min-p: that of transformers. Of these the first token comes that the answer's text allows.
A draw is the largest of logit plus Gumbel noise, the noise indexed by rank: a graph that is handed
the same noise makes the same draw.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from pl_compile.config.sampling import Sampling
from pl_compile.shapes import Float32, Float64, Int64, Shape

# What the number of a graph can hold without rounding it to 0 or to infinity.
_TEMPERATURES_IN_GRAPH = (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max))


@dataclass(frozen=True)
class Draw:
    """One row's draw as a graph with `--sampling graph` takes it.

    Attributes:
        sampling: how it chooses; `top_k` is at least 1.
        noise: float32 `[top_k]`: Gumbel noise of the likeliest token, the next one, …
    """

    sampling: Sampling
    noise: Annotated[Float32, Shape("top_k")]


GREEDY = Draw(Sampling(top_k=1), np.zeros(1, np.float32))


def draw_in_graph(
    sampling: Sampling,
    generator: "np.random.Generator",
    candidates: int,
    inputs: Collection[str],
) -> Draw | None:
    """What a graph needs to choose as `next_token` would; None where it cannot.

    Args:
        sampling: how to choose.
        generator: the row's own source of noise; as far along afterwards as after `next_token`.
        candidates: the likeliest tokens that the graph looks at; 0 where it chooses none.
        inputs: the numbers of `Sampling` that it takes.
    """
    if not candidates or not sampling.changed <= set(inputs):
        return None
    if sampling.temperature == 0.0:
        return GREEDY
    least, most = _TEMPERATURES_IN_GRAPH
    if not (0 < sampling.top_k <= candidates and least <= sampling.temperature <= most):
        return None
    noise = _gumbel(generator, sampling.top_k).astype(np.float32)
    return Draw(sampling, noise)


@np.errstate(all="ignore")
def next_token(
    logits: Annotated[Float32, Shape("vocab")],
    sampling: Sampling,
    generator: "np.random.Generator",
    *,
    bias: Mapping[int, float] | None = None,
    seen: Sequence[int] = (),
    blocked: Collection[int] = (),
    allowed: Sequence[int] | None = None,
    fits: Callable[[int], bool] | None = None,
) -> int | None:
    """The next token of a row.

    Args:
        logits: float32 `[vocab]`; not changed.
        sampling: how to choose.
        generator: the row's own source of noise.
        bias: what is added to the logits, by token.
        seen: real tokens of the row so far, for the repetition penalty.
        blocked: tokens that may not come (those that end an answer, before its minimum length;
            those that repeat a sequence).
        allowed: if given, the only tokens that may come; it overrides `blocked` and `fits`.
        fits: whether a token may come; None where all may. In place of a token that may not, the
            next one of the draw comes; after all of these, the likeliest of the others.

    Returns:
        None where no token may come.
    """
    if allowed is not None and len(allowed) == 1:
        pass_over(sampling, generator)
        return allowed[0]
    is_changed = bool(bias or blocked) or sampling.repetition_penalty != 1.0
    scores = logits.astype(np.float32, copy=is_changed)
    if bias:
        scores[list(bias)] += np.asarray(list(bias.values()), np.float32)
    if sampling.repetition_penalty != 1.0 and len(seen):
        ids = np.unique(np.asarray(seen))
        penalty = np.float32(sampling.repetition_penalty)
        scores[ids] = np.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
    if allowed is not None:
        ids = np.asarray(sorted(allowed))
        return int(ids[_choose(scores[ids], sampling, generator)[0]])
    if blocked:
        scores[list(blocked)] = -np.inf
        if scores[scores.argmax()] == -np.inf:
            return None
    token_id, in_order = _choose(scores, sampling, generator)
    if fits is None or fits(token_id):
        return token_id
    left = (token_id for token_id in in_order() if scores[token_id] > -np.inf)
    return next(filter(fits, left), None)


def pass_over(sampling: Sampling, generator: "np.random.Generator") -> None:
    """Leaves a row's source of noise as far along as choosing the only token that may come."""
    if sampling.temperature != 0.0:
        _gumbel(generator, 1)


def _choose(
    scores: Float32, sampling: Sampling, generator: "np.random.Generator"
) -> tuple[int, Callable[[], list[int]]]:
    """The next token, and what gives all tokens in the order in which they would be taken."""
    if sampling.temperature == 0.0:
        return int(np.argmax(scores)), lambda: likeliest(scores).tolist()
    ids, logs = ranked(scores, sampling)
    drawn = logs + _gumbel(generator, len(ids))
    return int(ids[np.argmax(drawn)]), lambda: [
        *ids[np.argsort(-drawn, kind="stable")].tolist(),
        *likeliest(scores).tolist(),  # each of `ids` once more, which changes nothing
    ]


def ranked(
    scores: Annotated[Float32, Shape("tokens")], sampling: Sampling
) -> tuple[Annotated[Int64, Shape("top_k")], Annotated[Float64, Shape("top_k")]]:
    """The tokens among which a draw chooses, at a temperature above 0.

    Args:
        scores: float32 `[tokens]`.
        sampling: how to choose.

    Returns:
        int64 `[top_k]`, the likeliest token first; and float64 `[top_k]`, the logarithm of how
        much less likely each is than the first, minus infinity where it cannot be drawn.
    """
    ids = likeliest(scores, sampling.top_k)
    # From the highest down, in float64: with a tiny temperature all others end at 0, or at -inf.
    logs = (scores[ids].astype(np.float64) - scores[ids[0]]) / sampling.temperature
    of_first = np.exp(logs)
    probabilities = of_first / of_first.sum()
    # A token stays if those before it have not reached top_p yet: the first always does.
    stays = np.cumsum(probabilities) - probabilities < sampling.top_p
    stays &= of_first >= sampling.min_p
    return ids, np.where(stays, logs, -np.inf)


def _gumbel(generator: "np.random.Generator", count: int) -> Float64:
    """The largest of logits plus this noise is a draw from their softmax (arXiv:1611.00712)."""
    uniform = np.clip(generator.random(count), 1e-12, 1 - 1e-12)
    noise: Float64 = -np.log(-np.log(uniform))
    return noise


def likeliest(
    scores: Annotated[Float32, Shape("tokens")], top_k: int = 0
) -> Annotated[Int64, Shape("top_k")]:
    """The tokens of the `top_k` highest scores (0 for all), highest first; ties by index.

    Args:
        scores: float32 `[tokens]`.
        top_k: how many; all where there are fewer.

    Returns:
        int64 `[top_k]`.
    """
    count = min(top_k, len(scores)) or len(scores)
    least = np.partition(scores, -count)[-count]
    # With all that equal the least: of these, `np.argpartition` keeps others on other processors.
    candidates = np.flatnonzero(scores >= least)
    order: Int64 = candidates[np.argsort(-scores[candidates], kind="stable")]
    return order[:count]
