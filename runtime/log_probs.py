"""Log probabilities of tokens, by the base's own logits."""

import math
from typing import Annotated

import numpy as np

from pl_compile.runtime.requests import TokenLogProbs
from pl_compile.runtime.sampling import likeliest
from pl_compile.shapes import Float32, Shape
from pl_compile.text.tokenizer import Tokenizer


def log_total(logits: Annotated[Float32, Shape("vocab")]) -> float:
    """The logarithm of the sum of e to each logit: a logit less this is a log probability.

    The exponentials are float32 and their sum is float64: the result is right to about 1e-7.

    Args:
        logits: float32 `[vocab]`; the largest is a finite number.
    """
    most = logits.max()
    return float(most) + math.log(np.exp(logits - most).sum(dtype=np.float64))


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
    total = log_total(logits)
    ids = likeliest(logits, count).tolist() if count else []
    top = tuple((key, tokenizer.token_text(key), float(logits[key]) - total) for key in ids)
    log_prob = float(logits[token_id]) - total
    return TokenLogProbs(token_id, tokenizer.token_text(token_id), log_prob, top)
