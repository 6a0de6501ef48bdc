"""`docs/artifact-format.md`, "Choosing a token" and "Noise": whole numbers and lists alone."""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_32, _64, _128 = (1 << 32) - 1, (1 << 64) - 1, (1 << 128) - 1
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def words_of(seed: int) -> list[int]:
    """The four words of 64 bits that a seed becomes."""
    e = [seed >> shift & _32 for shift in range(0, max(seed.bit_length(), 1), 32)]
    h = 0x43B0D7E5

    def hashed(x: int) -> int:
        nonlocal h
        x ^= h
        h = h * 0x931E8875 & _32
        x = x * h & _32
        return x ^ x >> 16

    def mixed(x: int, y: int) -> int:
        z = 0xCA01F9DD * x - 0x4973F715 * y & _32
        return z ^ z >> 16

    pool = [hashed(e[i] if i < len(e) else 0) for i in range(4)]
    for i in range(4):
        for j in range(4):
            if j != i:
                pool[j] = mixed(pool[j], hashed(pool[i]))
    for word in e[4:]:
        for j in range(4):
            pool[j] = mixed(pool[j], hashed(word))
    h = 0x8B51F9DD
    out = []
    for i in range(8):
        x = pool[i % 4] ^ h
        h = h * 0x58F38DED & _32
        x = x * h & _32
        out.append(x ^ x >> 16)
    return [out[2 * i] | out[2 * i + 1] << 32 for i in range(4)]


class Generator:
    """The noise of a request."""

    def __init__(self, seed: int) -> None:
        w = words_of(seed)
        self._increment = 2 * (w[2] << 64 | w[3]) + 1 & _128
        self._state = 0
        self._step()
        self._state = self._state + (w[0] << 64 | w[1]) & _128
        self._step()

    def _step(self) -> None:
        self._state = self._state * _MULTIPLIER + self._increment & _128

    def uniform(self) -> float:
        """The next `u`, not bounded."""
        self._step()
        x = self._state >> 64 ^ self._state & _64
        turn = self._state >> 122
        x = (x >> turn | x << 64 - turn) & _64
        return (x >> 11) * 2.0**-53

    def noise(self) -> float:
        """The next number of Gumbel noise."""
        u = min(max(self.uniform(), 1e-12), 1 - 1e-12)
        return -math.log(-math.log(u))


def total(numbers: Sequence[float]) -> float:
    """The sum in the page's order."""
    n = len(numbers)
    if n < 8:
        return _one_by_one(-0.0, numbers)
    if n <= 128:
        whole = n - n % 8
        r = list(numbers[:8])
        for i in range(8, whole):
            r[i % 8] += numbers[i]
        eight = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
        return _one_by_one(eight, numbers[whole:])
    h = n // 2
    h -= h % 8
    return total(numbers[:h]) + total(numbers[h:])


def _one_by_one(start: float, numbers: Sequence[float]) -> float:
    for number in numbers:
        start += number
    return start


def float32(number: float) -> float:
    """A number rounded to float32."""
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


@dataclass(frozen=True)
class Options:
    """How a request wants its tokens chosen."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    no_repeat_ngram: int = 0


GREEDY = Options()


def repeated(tokens: Sequence[int], k: int) -> list[int]:
    """The tokens that would end a sequence of `k` tokens once more."""
    if k == 0:
        return []
    there = {tuple(tokens[place : place + k]) for place in range(len(tokens) - k + 1)}
    last = tuple(tokens[len(tokens) - k + 1 :])
    return [each[-1] for each in there if each[:-1] == last]


def choose(
    logits: Sequence[float],
    options: Options,
    generator: Generator,
    *,
    seen: Sequence[int] = (),
    blocked: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
    left_out: Callable[[int], bool] = lambda token: False,
) -> int | None:
    """A row's next token; None where no token may follow."""
    x = list(logits)
    r = float32(options.repetition_penalty)
    if options.repetition_penalty != 1:
        for token in set(seen):
            x[token] = float32(x[token] / r if x[token] > 0 else x[token] * r)
    left = range(len(x)) if allowed is None else sorted(allowed)
    if allowed is None:
        for token in blocked:
            x[token] = -math.inf
    if max(x) == -math.inf:
        return None

    def first_of(tokens: Sequence[int]) -> int | None:
        others = sorted(left, key=lambda token: (-x[token], token))
        fitting = (each for each in [*tokens, *others] if x[each] > -math.inf)
        return next((each for each in fitting if not left_out(each)), None)

    if options.temperature == 0:
        return first_of([])
    order = sorted(left, key=lambda token: (-x[token], token))
    order = order[: options.top_k] if options.top_k else order
    s = [(x[token] - x[order[0]]) / options.temperature for token in order]
    p = [math.exp(each) for each in s]
    whole = total(p)
    p = [each / whole for each in p]
    sums: dict[int, float] = {}
    c = 0.0
    for i, token in enumerate(order):
        g = generator.noise()
        c = p[0] if i == 0 else c + p[i]
        stays = c - p[i] < options.top_p and math.exp(s[i]) >= options.min_p
        if stays:
            sums[token] = s[i] + g
    return first_of(sorted(sums, key=lambda token: -sums[token]))
