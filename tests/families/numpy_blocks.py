"""A family's definition computed in numpy, and the same steps by transformers."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks, Frequencies
from pl_compile.families.registry import FAMILIES
from pl_compile.testing import assert_close
from pl_compile.weights.load import load_weights
from pl_compile.weights.open_base import open_base

Array = NDArray[np.float64]


@dataclass
class Line:
    """A row's tokens of one step, and what earlier steps left.

    Attributes:
        ids: int64 `[seq]`; -1 at virtual tokens.
        virtual: `[seq, hidden]`; not used at tokens of the vocabulary.
        past: tokens of earlier steps.
        caches: keys and values of each layer, `[kv_heads, seen, head_dim]`.
    """

    ids: NDArray[np.int64]
    virtual: Array
    past: int = 0
    caches: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    @property
    def positions(self) -> NDArray[np.int64]:
        return self.past + np.arange(len(self.ids))


@dataclass(frozen=True)
class NumpyBlocks:
    """`Blocks` of one row, in float64: activations are `[seq, hidden]`."""

    config: DecoderConfig
    weights: dict[str, Array]
    line: Line
    used: set[str]
    index: int = -1

    def layer(self, index: int) -> "NumpyBlocks":
        return replace(self, index=index)

    def _weight(self, name: str) -> Array:
        full = name if self.index < 0 else f"layers.{self.index}.{name}"
        self.used.add(full)
        return self.weights[full]

    def _bias(self, name: str) -> Array | float:
        full = f"layers.{self.index}.{name}.bias"
        return self._weight(f"{name}.bias") if full in self.weights else 0.0

    def embedding(self) -> Array:
        return self._weight("embedding.weight")[self.line.ids]

    def with_virtual_rows(self, x: Array) -> Array:
        return np.where(self.line.ids[:, None] < 0, self.line.virtual, x)

    def learned_positions(self) -> Array:
        return self._weight("positions.weight")[self.line.positions]

    def linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self._weight(f"{name}.weight") + self._bias(name))

    row_parallel = linear

    def rms_norm(self, x: Array, name: str) -> Array:
        mean = np.square(x).mean(-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + self.config.norm_eps) * self._weight(f"{name}.weight"))

    def layer_norm(self, x: Array, name: str) -> Array:
        x = x - x.mean(-1, keepdims=True)
        normed = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.config.norm_eps)
        return np.asarray(normed * self._weight(f"{name}.weight") + self._weight(f"{name}.bias"))

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        *,
        rotary: Frequencies | None = None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        head_norms: tuple[str, str] | None = None,
    ) -> Array:
        q, k, v = (self._heads(x) for x in (query, key, value))
        if head_norms is not None:
            q, k = (self.rms_norm(x, name) for x, name in zip((q, k), head_norms, strict=True))
        if rotary is not None:
            q, k = self._rotated(q, rotary), self._rotated(k, rotary)
        if self.index in self.line.caches:
            before_k, before_v = self.line.caches[self.index]
            k, v = np.concatenate([before_k, k], 1), np.concatenate([before_v, v], 1)
        self.line.caches[self.index] = k, v
        k, v = (np.repeat(x, self.config.heads // self.config.kv_heads, 0) for x in (k, v))
        scores = q @ k.transpose(0, 2, 1) * (scale or self.config.head_dim**-0.5)
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        before = self.line.positions[:, None] - np.arange(k.shape[1])
        scores[:, (before < 0) | (before >= (window or np.inf))] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ v
        return np.asarray(y.transpose(1, 0, 2).reshape(len(query), -1))

    def _heads(self, x: Array) -> Array:
        return x.reshape(len(x), -1, self.config.head_dim).transpose(1, 0, 2)

    def _rotated(self, x: Array, rotary: Frequencies) -> Array:
        angles = np.outer(self.line.positions, rotary)
        one, other, rest = np.split(x, [len(rotary), 2 * len(rotary)], -1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([one * cos - other * sin, other * cos + one * sin, rest], -1)

    def swiglu(self, gate: Array, up: Array) -> Array:
        return np.asarray(gate / (1 + np.exp(-gate)) * up)

    def geglu(self, gate: Array, up: Array) -> Array:
        return self.gelu(gate) * up

    def gelu(self, x: Array) -> Array:
        return np.asarray(x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def scale(self, x: Array, factor: float) -> Array:
        return x * factor

    def last_token(self, x: Array) -> Array:
        return np.asarray(x[-1])

    def head(self, x: Array) -> Array:
        table = self._weight(f"{'embedding' if self.config.tied else 'head'}.weight")
        logits, cap = table @ x * self.config.logits_scale, self.config.logits_cap
        return np.asarray(cap * np.tanh(logits / cap) if cap else logits)


class Numpy:
    """A base as its family defines it: a row's steps, one after the other."""

    def __init__(self, folder: Path) -> None:
        checkpoint, self.config = open_base(folder)
        weights = load_weights(checkpoint, self.config)
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.used: set[str] = set()
        self._line = Line(np.zeros(0, np.int64), np.zeros((0, self.config.hidden)))

    def step(self, ids: list[int], virtual: Array) -> Array:
        past = self._line.past + len(self._line.ids)
        self._line = Line(np.asarray(ids), virtual, past, self._line.caches)
        b: Blocks[Array] = NumpyBlocks(self.config, self.weights, self._line, self.used)
        return FAMILIES[self.config.family].definition(b)


class Transformers:
    """The same steps by transformers, in float64."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self._cache = DynamicCache(config=self._model.config)

    def step(self, ids: list[int], virtual: Array) -> Array:
        with torch.no_grad():
            known = torch.tensor(ids)
            rows = self._model.get_input_embeddings()(known.clamp(min=0))
            rows = torch.where(known[:, None] < 0, torch.from_numpy(virtual), rows)
            output = self._model(inputs_embeds=rows[None], cache=self._cache)
        return np.asarray(output.logits[0, -1].numpy())


# A prompt with virtual tokens at its beginning and inside, single tokens, and several at once.
STEPS = [[-1, -1, 5, 3, -1, 88, 41], [0], [7, 9, 11], [12], [396]]


def randomise_norms(folder: Path) -> None:
    """Gives a base's norms random weights: those of a new model are alike, so none is missed."""
    path = folder / "model.safetensors"
    tensors, noise = load_file(path), np.random.default_rng(2)
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            tensors[name] = tensor + noise.normal(0, 0.3, tensor.shape).astype(np.float32)
    save_file(tensors, path, {"format": "pt"})


def compare_steps(folder: Path) -> Numpy:
    """Raises AssertionError unless the logits of each step of a base are those of transformers."""
    randomise_norms(folder)
    ours, theirs = Numpy(folder), Transformers(folder)
    generator = np.random.default_rng(3)
    for ids in STEPS:
        virtual = generator.normal(0, 0.5, (len(ids), ours.config.hidden))
        expected = theirs.step(ids, virtual)
        assert_close(ours.step(ids, virtual), expected, relative=1e-6)
    return ours
