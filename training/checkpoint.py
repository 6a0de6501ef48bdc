"""The state of a run in one safetensors file: a kill leaves the old one or the new one.

    method/<name>            the method's parameters
    base/<name>              the base's, where it is trained too
    optimizer/<i>/<name>     the moments of parameter i
    table/<taskname>         the prompts as a table would hold them (`artifact/from_checkpoint.py`)
    metadata "format"        "plc.training-checkpoint"
    metadata "state"         JSON: `RunState`
    metadata "scaler"        JSON: state of the loss scaler
    metadata "identity"      JSON: what a resumed run must share
    metadata "entries", "base"   JSON: what a table records of its tasks and its base

Data order and dropout follow from seed and step, so they need no state. No pickle.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pl_compile.artifact.files import write_atomically
from pl_compile.artifact.from_checkpoint import FORMAT
from pl_compile.artifact.prompt_table import PromptTable
from pl_compile.config.read import plain_from_config
from pl_compile.errors import TrainingError, list_problems
from pl_compile.training.loop import Job
from pl_compile.training.precision import Dtype
from pl_compile.training.run_state import RunState


def save_checkpoint(
    path: Path, state: RunState, job: Job, table: PromptTable, identity: dict[str, Any]
) -> None:
    """Writes the state of a run.

    Args:
        path: the file; replaced at once.
        state: where the run stands.
        job: its method's parameters and its optimiser's moments are stored, and the base's
            weights where they are trained.
        table: the prompts as they are now.
        identity: plain data that a resumed run must share (config, data, base).

    Raises:
        ArtifactError: the disk refuses; what the file held before is still there.
    """
    tensors: dict[str, Tensor] = {f"method/{n}": t for n, t in job.method.state_dict().items()}
    if job.base.trainable:
        tensors |= {f"base/{n}": t for n, t in job.base.model.named_parameters()}
    for index, moments in job.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    for name, entry in table.entries.items():
        tensors[f"table/{name}"] = torch.from_numpy(entry.learned)
    metadata = {
        "format": FORMAT,
        "state": json.dumps(asdict(state)),
        "scaler": json.dumps(job.scaler.state_dict()),
        "identity": json.dumps(identity),
        "entries": json.dumps({name: entry.record() for name, entry in table.entries.items()}),
        "base": json.dumps(plain_from_config(table.base)),
    }
    write_atomically(path, save({n: t.detach().contiguous() for n, t in tensors.items()}, metadata))


def load_checkpoint(path: Path, job: Job, identity: dict[str, Any]) -> RunState:
    """Puts a stored state into the job's method, optimiser and scaler; says where the run stands.

    Raises:
        TrainingError: no readable checkpoint, or it belongs to a run with another identity: the
            differences are listed.
    """
    with _opened(path) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = json.loads(metadata.get("identity", "null"))
    differences = _differences(stored, json.loads(json.dumps(identity)))
    if differences:
        raise TrainingError(
            f"resuming from {path}",
            found=list_problems(differences),
            expected="the run that is resumed, unchanged",
            fix="Start a new run in another --output.",
        )
    job.method.load_state_dict(_under("method/", tensors))
    if job.base.trainable:
        job.base.model.load_state_dict(_under("base/", tensors), strict=False)  # a tied head
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        index, moment = name.split("/")
        moments.setdefault(int(index), {})[moment] = tensor
    job.optimizer.load_state_dict({**job.optimizer.state_dict(), "state": moments})
    scaler = json.loads(metadata["scaler"])
    if scaler:
        job.scaler.load_state_dict(scaler)
    return RunState(**json.loads(metadata["state"]))


def recorded_precision(path: Path) -> Dtype:
    """What the base of a stored run computes in.

    Raises:
        TrainingError: no readable checkpoint.
    """
    with _opened(path) as (_, metadata):
        identity = json.loads(metadata.get("identity", "null"))
    try:
        precision: Dtype = identity["config"]["trainer"]["precision"]
    except (TypeError, KeyError) as error:
        raise TrainingError(
            f"resuming from {path}",
            found="a checkpoint that does not say which run it belongs to",
            fix="Start the run anew, without --resume.",
        ) from error
    return precision


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A checkpoint's tensors and metadata, for the time of a `with` block."""
    doing = f"resuming from {path}"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = f"format {metadata.get('format')!r}"
                raise TrainingError(doing, found=found, expected=FORMAT)
            yield file, metadata
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            doing, found=str(error), fix="Start the run anew, without --resume."
        ) from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _differences(stored: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        stored, now = dict(enumerate(stored)), dict(enumerate(now))
    if isinstance(stored, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*stored, *now})
            for line in _differences(
                stored.get(key), now.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if stored == now else [f"'{path}' was {stored!r}, now {now!r}"]
