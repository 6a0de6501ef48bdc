"""The state of a run in one safetensors file: a kill leaves the old one or the new one.

Holds what the loop cannot recompute: the method's parameters, the optimiser's moments, the step and
the best loss. Data order and dropout follow from seed and step, so they need no state. No pickle.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pl_compile.artifact.files import write_atomically
from pl_compile.errors import TrainingError, list_problems
from pl_compile.training.methods.prompt_method import PromptMethod

_FORMAT = "plc.training-checkpoint"


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        best_loss: lowest validation loss so far; None before the first validation.
        best_step: when it was reached.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0


def save_checkpoint(
    path: Path,
    state: RunState,
    method: PromptMethod,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> None:
    """Writes the state of a run.

    Args:
        path: the file; replaced at once.
        state: step and best loss.
        method: its parameters are stored.
        optimizer: its moments are stored.
        identity: plain data that a resumed run must share (config, data, base).
    """
    tensors: dict[str, Tensor] = {
        f"method/{name}": value.contiguous() for name, value in method.state_dict().items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{index}/{name}": value.contiguous() for name, value in moments.items()
        }
    metadata = {
        "format": _FORMAT,
        "state": json.dumps(asdict(state)),
        "identity": json.dumps(identity),
    }
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(
    path: Path,
    method: PromptMethod,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> RunState:
    """Puts a stored state into `method` and `optimizer` and returns where the run stands.

    Raises:
        TrainingError: no readable checkpoint, or it belongs to a run with another identity: the
            differences are listed.
    """
    doing = f"resuming from {path}"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            doing, found=str(error), fix="Start the run anew, without --resume."
        ) from error
    if metadata.get("format") != _FORMAT:
        raise TrainingError(doing, found=f"format {metadata.get('format')!r}", expected=_FORMAT)
    stored = json.loads(metadata.get("identity", "null"))
    differences = _differences(stored, json.loads(json.dumps(identity)))
    if differences:
        raise TrainingError(
            doing,
            found=list_problems(differences),
            expected="the run that is resumed, unchanged",
            fix="Start a new run in another --output.",
        )
    method.load_state_dict(
        {name.removeprefix("method/"): t for name, t in tensors.items() if name[:7] == "method/"}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, moment = name.split("/")
            moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return RunState(**json.loads(metadata["state"]))


def _differences(stored: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*stored, *now})
            for line in _differences(
                stored.get(key), now.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if stored == now else [f"'{path}' was {stored!r}, now {now!r}"]
