"""The reference: `transformers` itself, behind the runtime's engine face, one row at a time.

Each row has a cache of its own and is never padded, so what comes out is the row alone: what every
compiled bundle is compared with. Slow on purpose.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pl_compile.training.base_model import FrozenBase


def reference_name() -> str:
    """What a report calls the reference."""
    return f"transformers {version('transformers')}, torch {torch.__version__}"


class _Prompt(Protocol):
    @property
    def rows(self) -> NDArray[np.float32]: ...


class TorchEngine:
    """An engine (see `runtime.engines.engine.Engine`) on a Hugging Face folder.

    Args:
        folder: the base.
        capacity: as the bundle that is compared; the base's own limit if None.
        max_batch: rows a session may give at once.

    Raises:
        BaseModelError: the folder holds no model that `transformers` can load.
    """

    def __init__(self, folder: Path, *, capacity: int | None = None, max_batch: int = 16) -> None:
        self._base = FrozenBase(folder)
        self.capacity = capacity or self._base.config.positions
        self.vocab = self._base.config.vocab
        self.max_batch = max_batch
        self._caches: list[Any] = []

    def step(
        self,
        input_ids: NDArray[np.int64],
        past_lengths: NDArray[np.int64],
        last_index: NDArray[np.int64],
        prompts: Sequence[_Prompt],
    ) -> NDArray[np.float32]:
        """One step, row by row; see `Engine.step`."""
        if not past_lengths.any():
            self._caches = [None] * len(input_ids)
        rows = [
            self._row(index, input_ids[index, : last_index[index] + 1], prompt.rows)
            for index, prompt in enumerate(prompts)
        ]
        return np.stack(rows)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops the caches of all other rows; see `Engine.keep`."""
        self._caches = [self._caches[row] for row in rows]

    def _row(
        self, index: int, ids: NDArray[np.int64], prompt: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        token_ids = torch.from_numpy(ids.copy())[None]
        virtual = torch.where(token_ids >= self.vocab, token_ids - self.vocab, -1)
        with torch.no_grad():
            inputs = self._base.embed(
                torch.where(virtual >= 0, 0, token_ids), virtual, torch.from_numpy(prompt)[None]
            )
            output = self._base.model(
                inputs_embeds=inputs,
                past_key_values=self._caches[index],
                use_cache=True,
                logits_to_keep=1,
            )
        self._caches[index] = output.past_key_values
        logits: NDArray[np.float32] = output.logits[0, -1].float().numpy()
        return logits
