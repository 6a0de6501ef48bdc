"""The largest sizes that are accepted; no base, task or machine has larger ones.

Files may come from anywhere: the sizes in them are checked before anything of that size is made.
"""

from collections.abc import Mapping

MOST = {
    "layers": 1 << 14,
    "heads": 1 << 16,
    "kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden": 1 << 20,
    "ffn": 1 << 22,
    "vocab": 1 << 24,
    "positions": 1 << 26,
    "capacity": 1 << 26,
    "virtual tokens": 1_000_000,
    "ranks": 1 << 10,
    "max_batch": 1 << 12,
    "log_probs": 20,
    "context_mib": 1 << 20,
}


def size_checks(sizes: Mapping[str, int]) -> dict[str, bool]:
    """Checks for `check_all` that refuse sizes which no base could have.

    Args:
        sizes: by their names in `MOST`.
    """
    return {
        f"{name} {size}, expected 1 to {MOST[name]}": 1 <= size <= MOST[name]
        for name, size in sizes.items()
    }
