"""The reference: `transformers` itself, one row at a time.

Each row has its own cache and is never padded, so its result is that of the row alone. There are
two ways to use it. It has the methods of the runtime's engines, where ids from `vocab` on stand for
rows of a prompt, so a session can run on it. And it has `greedy`, with which every compiled bundle
is compared. There no id stands for a row: it makes embeddings of a rendered prompt, so the
comparison finds a bundle that takes an id for a row, or one row for another. It is slow on purpose.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, Self

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


class _Feed(Protocol):
    @property
    def slot(self) -> int: ...

    @property
    def ids(self) -> NDArray[np.int64]: ...

    @property
    def past(self) -> int: ...

    @property
    def prompt(self) -> _Prompt: ...

    @property
    def wanted(self) -> NDArray[np.int64] | None: ...

    @property
    def parents(self) -> NDArray[np.int64] | None: ...


class TorchEngine:
    """An engine on torch, and its own rows (see `Engine` and `Rows` in `runtime.engines.engine`).

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
        self.piece = self.capacity
        self.branches = False
        self._caches: dict[int, Any] = {}

    def rows(self) -> Self:
        """See `Engine.rows`."""
        self._caches.clear()
        return self

    def admit(self, slot: int, prompt: _Prompt) -> int:
        """Gives a slot a new cache, filled with its prefix; see `Rows.admit`."""
        self._caches[slot] = self._cache(prompt.prefix_kv)
        return self._held(slot)

    shared = None

    def share(self, slot: int, ids: NDArray[np.int64]) -> int:
        """See `Rows.share`: nothing."""
        return 0

    def alike(self, slot: int, other: int) -> bool:
        """See `Rows.alike`: they share nothing."""
        return False

    def step(self, feeds: Sequence[_Feed]) -> list[tuple[NDArray[np.float32], int | None]]:
        """One step, row by row; see `Rows.step`."""
        return [(self._fed(feed), None) for feed in feeds]

    def _fed(self, feed: _Feed) -> NDArray[np.float32]:
        """The logits that a feed asks for."""
        assert feed.parents is None
        self._crop(feed.slot, feed.past)
        virtual = feed.ids >= self.vocab
        token_ids = np.where(virtual, 0, feed.ids)
        rows_at = np.where(virtual, feed.ids - self.vocab, -1)
        wanted = [len(feed.ids) - 1] if feed.wanted is None else feed.wanted.tolist()
        logits, begin = [], 0
        for end in sorted({*(place + 1 for place in wanted), len(feed.ids)}):
            part = slice(begin, end)
            cache, rows = self._caches[feed.slot], feed.prompt.rows
            found = self._logits(cache, token_ids[part], rows_at[part], rows)
            if end - 1 in wanted:
                logits.append(found)
            begin = end
        return np.stack(logits)

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

    def _crop(self, slot: int, entries: int) -> None:
        """Drops what follows the first entries of a slot."""
        if self._held(slot) > entries:
            self._caches[slot].crop(entries - self._held(slot))  # a negative number: how many

    def retire(self, slots: Sequence[int]) -> None:
        """Drops caches; see `Rows.retire`."""
        for slot in slots:
            del self._caches[slot]

    def clear(self, slots: Sequence[int]) -> None:
        """Does nothing: each slot has its own cache, which ends with the slot."""

    def cached(self, slot: int, length: int) -> NDArray[np.float32]:
        """Reads the start of a slot; see `Rows.cached`."""
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
            # A copy: pages of a file are read-only, which torch's tensors are not.
            own = self._base.own_heads(torch.from_numpy(prefix_kv.copy()))
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
