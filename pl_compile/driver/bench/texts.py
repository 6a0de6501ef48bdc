"""Texts for measurements: the same words for the same seed, on every machine and in every release.

What a text says does not change how fast it is answered; how many tokens it has does.
"""

import random
from collections.abc import Callable

# Short and common: a tokenizer of English has one token for each, with the blank before it.
_TEXT = """
the of and to in is that for it was on are as with they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then
she many some so these would other into has more her two like him see time could no make than first
been its who now people my made over did down only way find use may water long little very after
words called just where most know
"""


def words(count: int, seed: int) -> str:
    """A text of `count` words.

    Args:
        count: how many; for most tokenizers of English about as many tokens.
        seed: another one gives other words.
    """
    return " ".join(random.Random(seed).choices(_TEXT.split(), k=count))


def most_words(tokens: int, count_tokens: Callable[[int], int]) -> int:
    """The most words that have at most so many tokens; 1 at least.

    Args:
        tokens: that are wanted.
        count_tokens: how many tokens a number of words has.
    """
    low, high = 1, 2
    while count_tokens(high) <= tokens and high <= tokens:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if count_tokens(middle) <= tokens:
            low = middle
        else:
            high = middle
    return low
