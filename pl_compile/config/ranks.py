"""How a base is cut for several ranks: whole groups of heads, and parts of the feed-forward width.

Products whose columns are cut (q, k, v, gate, up) need nothing from other ranks. Products whose
rows are cut (o, down) give each rank one term of a sum over all ranks (Megatron, arXiv:1909.08053).
Parts need not be equal: 2 ranks get 2 and 1 of 3 groups of heads.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.kernel_layout import TILE
from pl_compile.errors import ExportError

# The dimensions that ranks divide: the outputs of all query heads, the outputs of all key or value
# heads, and the feed-forward width.
Divided = Literal["queries", "keys", "ffn"]


@dataclass(frozen=True)
class Shard:
    """One rank's part of what is divided. It holds all of the rest of the base.

    Attributes:
        rank: its number.
        ranks: how many there are.
        kv_heads: its key and value heads; it also has the query heads that use them.
        ffn: its part of the feed-forward width.
    """

    rank: int
    ranks: int
    kv_heads: range
    ffn: range

    def of(self, config: DecoderConfig) -> DecoderConfig:
        """The config of this rank's part."""
        group = config.heads // config.kv_heads
        kv_heads = len(self.kv_heads)
        return replace(config, heads=group * kv_heads, kv_heads=kv_heads, ffn=len(self.ffn))

    def slice_of(self, divided: Divided, config: DecoderConfig) -> slice:
        """The rows or columns of a weight that this rank has.

        Args:
            divided: the dimension that lies along them.
            config: of the whole base.
        """
        if divided == "ffn":
            return slice(self.ffn.start, self.ffn.stop)
        group = config.heads // config.kv_heads if divided == "queries" else 1
        width = group * config.head_dim
        return slice(self.kv_heads.start * width, self.kv_heads.stop * width)


def shards(config: DecoderConfig, ranks: int, *, block: int = 0) -> tuple[Shard, ...]:
    """The parts of all ranks.

    Args:
        config: of the whole base.
        ranks: how many.
        block: how many inputs of a weight share a scale, and so stay together; 0 if none do.

    Raises:
        ExportError: a rank would get no heads, or no part of the feed-forward width.
    """
    unit = math.lcm(block or 1, TILE)
    if config.ffn % unit:
        unit = block if block and config.ffn % block == 0 else 1
    units = config.ffn // unit
    most = min(config.kv_heads, units)
    if not 1 <= ranks <= most:
        raise ExportError(
            f"dividing the base among {ranks} ranks",
            found=f"{config.kv_heads} groups of heads, and a feed-forward width of {units} "
            f"times {unit}",
            expected=f"1 to {most} ranks, so that each gets some of both",
            fix="Choose another --tp-size.",
        )
    heads = kv_heads_of_ranks(config.kv_heads, ranks)
    widths = [range(part.start * unit, part.stop * unit) for part in _parts(units, ranks)]
    return tuple(Shard(r, ranks, heads[r], widths[r]) for r in range(ranks))


def kv_heads_of_ranks(kv_heads: int, ranks: int) -> tuple[range, ...]:
    """The key and value heads of each rank, by which a prefix is divided."""
    return _parts(kv_heads, ranks)


def _parts(count: int, ranks: int) -> tuple[range, ...]:
    """Nearly equal parts, longer ones first."""
    ends = [(rank * count + ranks - 1) // ranks for rank in range(ranks + 1)]
    return tuple(range(a, b) for a, b in itertools.pairwise(ends))
