"""The reference: `transformers` itself, behind the runtime's engine face, one row at a time.

Each row has a cache of its own and is never padded, so what comes out is the row alone: what every
compiled bundle is compared with. Slow on purpose.
"""

import copy
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pl_compile.training.base_model import FrozenBase
from pl_compile.training.parallel import all_heads


def reference_name() -> str:
    """What a report calls the reference."""
    return f"transformers {version('transformers')}, torch {torch.__version__}"


class _Prompt(Protocol):
    @property
    def rows(self) -> NDArray[np.float32]: ...

    @property
    def prefix_kv(self) -> NDArray[np.float32] | None: ...


class TorchEngine:
    """An engine (see `runtime.engines.engine.Engine`) on torch.

    Args:
        base: a Hugging Face folder, or a base that is loaded already, in any precision.
        capacity: as the bundle that is compared; the base's own limit if None.
        max_batch: rows a session may give at once.

    Raises:
        BaseModelError: the folder holds no model that `transformers` can load.
    """

    def __init__(
        self, base: FrozenBase | Path, *, capacity: int | None = None, max_batch: int = 16
    ) -> None:
        loaded = FrozenBase(base, as_is=True) if isinstance(base, Path) else base
        self._base = loaded
        self._model: Any = loaded.model
        self.capacity = capacity or loaded.config.positions
        self.vocab = loaded.config.vocab
        self.max_batch = max_batch
        self._caches: list[Any] = []

    def start(self, prompts: Sequence[_Prompt]) -> NDArray[np.int64]:
        """Gives each row a new cache, filled with its prefix; see `Engine.start`."""
        self._caches = [self._cache(prompt.prefix_kv) for prompt in prompts]
        return np.asarray([cache.get_seq_length() for cache in self._caches], np.int64)

    def step(
        self,
        input_ids: NDArray[np.int64],
        past_lengths: NDArray[np.int64],
        last_index: NDArray[np.int64],
        prompts: Sequence[_Prompt],
    ) -> NDArray[np.float32]:
        """One step, row by row; see `Engine.step`."""
        assert past_lengths.tolist() == [cache.get_seq_length() for cache in self._caches]
        rows = [
            self._row(cache, input_ids[index, : last_index[index] + 1], prompt.rows)
            for index, (cache, prompt) in enumerate(zip(self._caches, prompts, strict=True))
        ]
        return np.stack(rows)

    def keep(self, rows: Sequence[int], entries: int) -> None:
        """Keeps and copies caches, and drops the others; see `Engine.keep`."""
        self._caches = [
            copy.deepcopy(self._caches[row]) if row in rows[:place] else self._caches[row]
            for place, row in enumerate(rows)
        ]
        for cache in self._caches:
            if cache.get_seq_length() > entries:
                cache.crop(entries - cache.get_seq_length())  # takes how many go, negative

    def cached(self, length: int) -> NDArray[np.float32]:
        """Reads the head of row 0; see `Engine.cached`."""
        layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in self._caches[0].layers]
        held = torch.stack(layers)[:, :, :, :length]
        entries: NDArray[np.float32] = all_heads(held, self._base.team).float().cpu().numpy()
        return entries

    def _cache(self, prefix_kv: NDArray[np.float32] | None) -> Any:
        """A cache that grows in place, holding the prefix if there is one."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        if prefix_kv is not None:
            own = self._base.own_heads(torch.from_numpy(prefix_kv))
            layers = own.to(self._model.device, self._model.dtype)
            for index, (keys, values) in enumerate(layers):
                cache.update(keys[None], values[None], index)
        return cache

    @torch.no_grad()
    def _row(
        self, cache: Any, ids: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        output = self._base.inside(
            lambda: self._model(
                inputs_embeds=self._embed(torch.from_numpy(ids), torch.from_numpy(rows))[None],
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        )
        logits: NDArray[np.float32] = output.logits[0, -1].float().cpu().numpy()
        return logits

    def _embed(self, ids: Tensor, rows: Tensor) -> Tensor:
        """What the first layer sees of ids `[seq]`: `[seq, hidden]` in the base's dtype."""
        virtual = ids >= self.vocab
        real = ids.masked_fill(virtual, 0).to(self._model.device)
        embedded: Tensor = self._model.get_input_embeddings()(real)
        embedded[virtual] = rows[ids[virtual] - self.vocab].to(embedded)
        return embedded
