"""What a bundle costs and what folding saves, worked out from sizes alone.

The model is simple on purpose, and the report shows its numbers. What becomes of a folded opening
depends on the rows of the target:

ragged    the kernels hold it in memory once, and every row of the task reads it there: beginning
          with it costs a row nothing. So all openings are folded, as long as their prefixes fit
          into a budget of memory.
padded    it is copied into each row's cache. For each token, copying costs bytes and computing
          costs arithmetic. Only their ratio decides, and it is far from 1: on 2 cores a token of a
          GPT of 135 million weights takes some milliseconds to compute and some microseconds to
          copy. The copies are beside the prefixes, whose budget is a part of the weights' memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.config.build import WEIGHT_BITS, BuildOptions, Choice, FoldMode
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.families.names import TABLES, is_product_of_layer
from pl_compile.report.model import BaseCost, TaskCost
from pl_compile.runtime.served_task import ServedTask
from pl_compile.weights.listed import weight_shapes

# A small machine: its operations and copied bytes a second, and its seconds to begin with a prefix.
_OPERATIONS_PER_SECOND = 1e11
_BYTES_PER_SECOND = 5e9
_SECONDS_PER_PREFIX = 2e-4

# All folded prefixes together may take at most so many MiB where they are held, and this part of
# the weights' memory where they are copied.
MIB_OF_HELD = 1024
_COPIED_OF_WEIGHTS = 0.5

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class FoldPolicy:
    """By what openings are folded.

    Attributes:
        mode: what was asked for.
        most_bytes: of all folded prefixes, where `mode` is "auto".
        of_what: what `most_bytes` is, for a message.
        is_held: whether a prefix is in memory once, for all rows that begin with it.
    """

    mode: FoldMode
    most_bytes: int
    of_what: str
    is_held: bool

    @classmethod
    def of(
        cls, mode: FoldMode, mib: int | None, base: BaseCost, contract: GraphContract
    ) -> "FoldPolicy":
        """The policy of an export.

        Args:
            mode: what was asked for.
            mib: most MiB of all folded prefixes; by default the target's.
            base: its cost.
            contract: of the graph.
        """
        is_held = contract.rows == "ragged"
        if mib is None and not is_held:
            most = int(_COPIED_OF_WEIGHTS * base.weight_bytes)
            return cls(mode, most, f"{_COPIED_OF_WEIGHTS:.0%} of the weights", is_held)
        mib = MIB_OF_HELD if mib is None else mib
        return cls(mode, mib * _MIB, f"{mib} MiB", is_held)

    def summary(self, costs: Sequence[TaskCost]) -> Choice:
        """What was decided for all tasks, and why."""
        folded = [cost.folded_bytes for cost in costs if cost.folded]
        chosen = f"{len(folded)} of {len(costs)}"
        if self.mode != "auto":
            return Choice(self.mode, chosen)
        memory = "in memory once for all rows" if self.is_held else "copied into each row"
        return Choice(
            self.mode,
            chosen,
            f"{sum(folded) / 1e6:.1f} MB of prefixes, {memory}; most {self.of_what} (--fold-mib)",
        )


def base_cost(
    config: DecoderConfig,
    contract: GraphContract,
    options: BuildOptions,
    *,
    has_plans: bool = False,
) -> BaseCost:
    """The cost of a base as it is to be compiled, with TensorRT's plans or without."""
    shapes = weight_shapes(config)
    products = tables = parameters = operations = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        parameters += size
        if name in TABLES:
            tables += size
        elif is_product_of_layer(name, shape):
            products += size
            operations += 2 * size
    rest = parameters - products - tables
    bits = WEIGHT_BITS.get(options.quantization, 0)
    table_bits = options.table_bits_or_default
    block = options.block_or_default
    wide = 4 if options.dtype == "float32" else 2
    per_token = 2 * contract.layers * contract.kv_heads * contract.head_dim * wide
    # Every rank has all of what is not divided.
    whole = _bytes(tables, bits and table_bits, block, wide) + wide * rest
    weight_bytes = _bytes(products, bits, block, wide) + contract.ranks * whole
    return BaseCost(
        parameters,
        weight_bytes,
        weight_bytes * (2 if has_plans else 1),
        operations,
        per_token,
        per_token * contract.capacity,
    )


def _bytes(count: int, bits: int, block: int, wide: int) -> int:
    if bits == 0:
        return wide * count
    return count * bits // 8 + (wide * count // block if block else 0)


def task_costs(
    base: BaseCost,
    entries: Sequence[TaskEntry],
    prompts: Mapping[str, ServedTask],
    contract: GraphContract,
    policy: FoldPolicy,
) -> list[TaskCost]:
    """The cost of each task, and whether its opening is folded: the first ones that fit.

    Raises:
        ExportError: an opening that does not fit into the cache.
    """
    per_token = base.operations_per_token / _OPERATIONS_PER_SECOND
    copied = base.kv_bytes_per_token / _BYTES_PER_SECOND
    break_even = math.ceil(_SECONDS_PER_PREFIX / max(1e-12, per_token - copied))
    if policy.is_held:
        break_even = 1
    left = policy.most_bytes
    costs = []
    for entry in entries:
        name = entry.task.taskname
        prompt = prompts[name]
        opening = prompt.renderer.opening()
        if len(opening) + 1 >= contract.capacity:
            raise ExportError(
                f"sizing the cache for task '{name}'",
                found=f"capacity {contract.capacity}, and an opening of {len(opening)} tokens",
                expected=f"at least {len(opening) + 2}",
                fix="Raise --capacity, or shorten the template.",
            )
        computed = len(prompt.to_feed(opening))
        size = len(opening) * base.kv_bytes_per_token
        folded, reason = _decide(computed, size, break_even, left, policy)
        left -= size if folded else 0
        costs.append(
            TaskCost(
                task=name,
                virtual_tokens=entry.task.total_virtual_tokens,
                prompt_bytes=entry.learned.nbytes,
                head_tokens=len(opening),
                saved_tokens=computed if folded else 0,
                folded_bytes=size if folded else 0,
                break_even_tokens=break_even,
                tasks_per_gib=_GIB // size if folded else None,
                folded=folded,
                reason=reason,
            )
        )
    return costs


def _decide(
    computed: int, size: int, break_even: int, left: int, policy: FoldPolicy
) -> tuple[bool, str]:
    if policy.mode == "never":
        return False, "--fold never"
    if not computed:
        return False, "nothing is computed before its first field"
    saving = f"{computed} tokens fewer in each prefill, for {size / 1e6:.1f} MB"
    if policy.mode == "always":
        return True, f"--fold always: {saving}"
    if computed < break_even:
        return False, f"{computed} tokens are faster to compute than to copy as a prefix"
    if size > left:
        return False, (
            f"{size / 1e6:.1f} MB would be more than {policy.of_what} for all prefixes together; "
            "--fold-mib raises it, --fold always folds it anyway"
        )
    return True, saving
