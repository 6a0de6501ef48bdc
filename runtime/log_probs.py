"""Log probabilities: of all tokens of a step, and those that an answer is given with."""

from typing import Annotated

import numpy as np

from pl_compile.runtime.requests import TokenLogProbs
from pl_compile.runtime.sampling import likeliest
from pl_compile.shapes import Float32, Float64, Shape
from pl_compile.text.tokenizer import Tokenizer


def log_softmax(
    logits: Annotated[Float32, Shape("vocab")],
) -> Annotated[Float64, Shape("vocab")]:
    """The logarithms of the softmax, in float64; no logit is too large for it.

    Args:
        logits: float32 `[vocab]`; the largest is a finite number.

    Returns:
        float64 `[vocab]`.
    """
    wide = logits.astype(np.float64)
    log: Float64 = wide - (wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    return log


def token_log_probs(
    logits: Annotated[Float32, Shape("vocab")], token_id: int, count: int, tokenizer: Tokenizer
) -> TokenLogProbs:
    """What a token of an answer is given with.

    Args:
        logits: float32 `[vocab]`: the base's own, of the step that the token was chosen after.
        token_id: the token that was written.
        count: how many of the likeliest tokens are noted.
        tokenizer: the base's.
    """
    log = log_softmax(logits)
    ids = likeliest(logits, count).tolist() if count else []
    top = tuple((key, tokenizer.token_text(key), float(log[key])) for key in ids)
    return TokenLogProbs(token_id, tokenizer.token_text(token_id), float(log[token_id]), top)
