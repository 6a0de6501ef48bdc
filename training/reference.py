"""The reference: `transformers` itself, one row at a time.

Each row has its own cache and is never padded, so its result is that of the row alone. There are
two ways to use it. It has the methods of the runtime's engines, where ids from `vocab` on stand for
rows of a prompt, so a session can run on it. And it has `greedy`, with which every compiled bundle
is compared. There no id stands for a row: it makes embeddings of a rendered prompt, so the
comparison finds a bundle that takes an id for a row, or one row for another. It is slow on purpose.
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

from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import DataError
from pl_compile.text.render import Rendered
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.parallel import all_heads


def reference_name() -> str:
    """The name of the reference in reports."""
    return f"transformers {version('transformers')}, torch {torch.__version__}"


class _Prompt(Protocol):
    @property
    def rows(self) -> NDArray[np.float32]: ...

    @property
    def prefix_kv(self) -> NDArray[np.float32] | None: ...


class _Step(Protocol):
    @property
    def first(self) -> int: ...

    @property
    def input_ids(self) -> NDArray[np.int64]: ...

    @property
    def past_lengths(self) -> NDArray[np.int64]: ...

    @property
    def last_index(self) -> NDArray[np.int64]: ...

    @property
    def prompts(self) -> Sequence[_Prompt]: ...


class TorchEngine:
    """An engine (see `runtime.engines.engine.Engine`) on torch.

    Args:
        base: a Hugging Face folder, or a base that is loaded already, in any precision.
        config: of a folder that was opened before; else it is opened and checked here.
        capacity: that of the compared bundle; if None, the base's own limit.
        max_batch: how many rows a session may give at once.
        device: of torch, for a folder.

    Raises:
        BaseModelError: the folder does not hold a model that `transformers` can load.
    """

    def __init__(
        self,
        base: FrozenBase | Path,
        *,
        config: DecoderConfig | None = None,
        capacity: int | None = None,
        max_batch: int = 16,
        device: str = "cpu",
    ) -> None:
        if isinstance(base, Path):
            base = FrozenBase(base, config=config, as_is=True, device=device)
        self._base = base
        self._model: Any = base.model
        self.capacity = capacity or base.config.positions
        self.vocab = base.config.vocab
        self.max_batch = max_batch
        self.candidates = 0
        self.sampling_inputs: tuple[str, ...] = ()
        self._caches: dict[int, Any] = {}

    def admit(self, slot: int, prompt: _Prompt) -> int:
        """Gives a slot a new cache, filled with its prefix; see `Engine.admit`."""
        self._caches[slot] = self._cache(prompt.prefix_kv)
        return self._held(slot)

    def step(self, step: _Step) -> tuple[NDArray[np.float32], None]:
        """One step, row by row; see `Engine.step`."""
        logits = []
        for index, prompt in enumerate(step.prompts):
            row = step.first + index
            assert self._held(row) == step.past_lengths[index]
            ids = step.input_ids[index, : step.last_index[index] + 1]
            virtual = ids >= self.vocab
            token_ids, rows_at = np.where(virtual, 0, ids), np.where(virtual, ids - self.vocab, -1)
            logits.append(self._logits(self._caches[row], token_ids, rows_at, prompt.rows))
        return np.stack(logits), None

    def greedy(
        self, rendered: Rendered, prompt: _Prompt, steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The likeliest tokens after a prompt.

        Args:
            rendered: the prompt, all of it.
            prompt: of its task, as it was learned: a prefix stands for all its virtual tokens.
            steps: how many tokens follow.

        Returns:
            Logits after the prompt and after each token, float32 `[steps + 1, vocab]`, and the
            likeliest token of each, int64 `[steps + 1]`.

        Raises:
            DataError: the base has no embedding of a token.
        """
        if rendered.token_ids.max(initial=0) >= self.vocab:
            raise DataError(
                "embedding a prompt for the reference",
                found=f"token id {rendered.token_ids.max()}",
                expected=f"ids below {self.vocab}, which the base has embeddings of",
                fix="Use a tokenizer that belongs to the base.",
            )
        if prompt.prefix_kv is not None:
            rendered = rendered.without_virtual()
        cache = self._cache(prompt.prefix_kv)
        logits = [self._logits(cache, rendered.token_ids, rendered.virtual_rows, prompt.rows)]
        for _ in range(steps):
            token = np.asarray([logits[-1].argmax()])
            logits.append(self._logits(cache, token, np.full_like(token, -1), prompt.rows))
        every = np.stack(logits)
        return every, every.argmax(axis=-1)

    def keep(self, slots: Sequence[int], entries: int) -> None:
        """Keeps and copies caches, and drops the others; see `Engine.keep`."""
        self._caches = {
            place: copy.deepcopy(self._caches[slot])
            if slot in slots[:place]
            else self._caches[slot]
            for place, slot in enumerate(slots)
        }
        for slot, cache in self._caches.items():
            if self._held(slot) > entries:
                cache.crop(entries - self._held(slot))  # a negative number: how many to drop

    def clear(self, slots: Sequence[int]) -> None:
        """Does nothing: each slot has its own cache, which ends with the slot."""

    def cached(self, slot: int, length: int) -> NDArray[np.float32]:
        """Reads the start of a slot; see `Engine.cached`."""
        layers = self._caches[slot].layers
        held = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in layers])
        own = held[:, :, :, :length]
        entries: NDArray[np.float32] = all_heads(own, self._base.team).float().cpu().numpy()
        return entries

    def close(self) -> None:
        """Does nothing: it holds only memory, which is freed with the object."""

    def _held(self, slot: int) -> int:
        length: int = self._caches[slot].get_seq_length()
        return length

    def _cache(self, prefix_kv: NDArray[np.float32] | None) -> Any:
        """A cache that grows in place, holding the prefix if there is one."""
        from transformers import DynamicCache

        # Told of the config, it would forget what no window sees any more.
        cache = DynamicCache()
        if prefix_kv is not None:
            own = self._base.own_heads(torch.from_numpy(prefix_kv))
            layers = own.to(self._model.device, self._model.dtype)
            for index, (keys, values) in enumerate(layers):
                cache.update(keys[None], values[None], index)
        return cache

    @torch.no_grad()
    def _logits(
        self,
        cache: Any,
        token_ids: NDArray[np.int64],
        virtual_rows: NDArray[np.int64],
        rows: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Runs tokens, in the form of `Rendered`, after a cache: float32 `[vocab]` of the last."""
        output = self._base.inside(
            lambda: self._model(
                inputs_embeds=self._embed(token_ids, virtual_rows, rows)[None],
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        )
        logits: NDArray[np.float32] = output.logits[0, -1].float().cpu().numpy()
        return logits

    def _embed(
        self,
        token_ids: NDArray[np.int64],
        virtual_rows: NDArray[np.int64],
        rows: NDArray[np.float32],
    ) -> Tensor:
        """The input of the first layer: `[seq, hidden]` in the base's dtype."""
        real = torch.from_numpy(token_ids).to(self._model.device)
        embedded: Tensor = self._model.get_input_embeddings()(real)
        virtual = virtual_rows >= 0
        embedded[torch.from_numpy(virtual)] = torch.from_numpy(rows[virtual_rows[virtual]]).to(
            embedded
        )
        return embedded
