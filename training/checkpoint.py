"""The state of a run in one safetensors file. A kill leaves either the old file or the new one.

    method/<name>            the method's parameters
    base/<name>              the base's parameters, where it is trained too
    optimizer/<i>/<name>     the moments of parameter i
    table/<taskname>         the prompts as in a table (`importers/run_checkpoint.py`)
    metadata "format"        "plc.training-checkpoint"
    metadata "state"         JSON: `RunState`
    metadata "scaler"        JSON: state of the loss scaler
    metadata "identity"      JSON: what must be the same in a resumed run
    metadata "entries", "base"   JSON: what a table records of its tasks and its base

Data order and dropout follow from seed and step, so they need no state. No pickle.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pl_compile.artifact.files import write_atomically
from pl_compile.artifact.prompt_table import PromptTable
from pl_compile.config.damage import damage_of
from pl_compile.config.read import plain_from_config
from pl_compile.config.train import PromptTuningConfig
from pl_compile.errors import TrainingError, list_problems, reason_of
from pl_compile.importers.run_checkpoint import FORMAT
from pl_compile.training.loop import Job
from pl_compile.training.precision import Dtype
from pl_compile.training.run_state import RunState


def save_checkpoint(
    path: Path, state: RunState, job: Job, table: PromptTable, identity: dict[str, Any]
) -> None:
    """Writes the state of a run.

    Args:
        path: the file; it is replaced whole.
        state: where the run stands.
        job: its method's parameters and its optimiser's moments are stored, and the base's
            weights where they are trained.
        table: the prompts as they are now.
        identity: plain data that must be the same in a resumed run (config, data, base).

    Raises:
        ArtifactError: it cannot be written; the old file is still there.
    """
    tensors = _parameters(job)
    for index, moments in job.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    for name, entry in table.entries.items():
        tensors[f"table/{name}"] = torch.from_numpy(
            entry.learned.copy()
        )  # pages of a file are read-only
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
    """Puts a stored state into the job's method, optimiser and scaler; returns the run's state.

    Raises:
        TrainingError: the checkpoint cannot be read, is damaged, or belongs to a run with another
            identity (the differences are listed). The job is not changed then.
    """
    doing = f"resuming from {path}"
    with _opened(path) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        differences = _differences(_recorded(metadata, "identity"), _as_stored(identity))
        if differences:
            raise TrainingError(
                doing,
                found=list_problems(differences),
                expected="the run that is resumed, unchanged",
                fix="Start a new run in another --output.",
            )
        problems = _damage(job, tensors)
        if problems:
            raise ValueError(list_problems(problems))
        scaler = _scaler_state(job, _recorded(metadata, "scaler"))
        state = _run_state(job, _recorded(metadata, "state"))
    job.method.load_state_dict(_under("method/", tensors))
    if job.base.trainable:
        job.base.model.load_state_dict(_under("base/", tensors), strict=False)  # a tied LM head
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        index, moment = name.split("/")
        moments.setdefault(int(index), {})[moment] = tensor
    job.optimizer.load_state_dict({**job.optimizer.state_dict(), "state": moments})
    if scaler:
        job.scaler.load_state_dict(scaler)
    return state


def recorded_precision(path: Path) -> Dtype:
    """The precision of a stored run's base.

    Raises:
        TrainingError: the checkpoint cannot be read.
    """
    precision: Dtype
    with _opened(path) as (_, metadata):
        precision = _recorded_setting(metadata, "trainer", "precision")
        if precision not in get_args(Dtype):
            raise ValueError(f"a run with the precision {precision!r}")
    return precision


def recorded_start(path: Path) -> PromptTuningConfig:
    """How the prompts of a stored run of prompt tuning started.

    Raises:
        TrainingError: the checkpoint cannot be read.
    """
    with _opened(path) as (_, metadata):
        init = _recorded_setting(metadata, "prompt_tuning", "init")
        if init not in get_args(get_type_hints(PromptTuningConfig)["init"]):
            raise ValueError(f"a run whose prompts start from {init!r}")
    return PromptTuningConfig(init)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A checkpoint's tensors and metadata, for the time of a `with` block.

    A `ValueError` in the block says what is wrong with them; it becomes a `TrainingError`.
    """
    doing = f"resuming from {path}"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = f"format {metadata.get('format')!r}"
                raise TrainingError(doing, found=found, expected=FORMAT)
            yield file, metadata
    except (OSError, SafetensorError, ValueError) as error:
        found, fix = damage_of(path) if isinstance(error, SafetensorError) else ("", "")
        raise TrainingError(
            doing, found=found or reason_of(error), fix=f"{fix} {_what_is_left(path)}".lstrip()
        ) from error


def _what_is_left(path: Path) -> str:
    """What to do where a run's last checkpoint is damaged."""
    best = path.with_name("best.safetensors")
    kept = f" 'plc import checkpoint {best} --output TABLE' takes the best prompts out of this one."
    return "Start a new run in another --output." + (kept if best.is_file() else "")


def _recorded(metadata: Mapping[str, str], key: str) -> Any:
    """The value of `key` in a checkpoint's metadata. The loss of a skipped step may be NaN."""
    try:
        return json.loads(metadata[key])
    except KeyError:
        raise ValueError(f"a checkpoint without '{key}'") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata '{key}' that is not JSON: {reason_of(error)}") from error


def _recorded_setting(metadata: Mapping[str, str], group: str, name: str) -> Any:
    """A setting of the config of the run that a checkpoint belongs to."""
    try:
        return _recorded(metadata, "identity")["config"][group][name]
    except (TypeError, KeyError):
        raise ValueError("a checkpoint that does not say which run it belongs to") from None


def _as_stored(value: Any) -> Any:
    """Plain data as it is read back from the file: tuples are lists, keys are texts."""
    return json.loads(json.dumps(value))


def _parameters(job: Job) -> dict[str, Tensor]:
    """All trained tensors, by their names in the file."""
    tensors: dict[str, Tensor] = {f"method/{n}": t for n, t in job.method.state_dict().items()}
    if job.base.trainable:
        tensors |= {f"base/{n}": t for n, t in job.base.model.named_parameters()}
    return tensors


def _damage(job: Job, tensors: Mapping[str, Tensor]) -> list[str]:
    """How a file's tensors differ from those of a checkpoint of this job."""
    parameters = _parameters(job)
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in parameters.items()}
    if any(
        name.startswith("optimizer/") for name in tensors
    ):  # there are none where each step was skipped
        for index, parameter in enumerate(job.parameters):
            expected[f"optimizer/{index}/step"] = (torch.Size(), torch.float32)
            for moment in ("exp_avg", "exp_avg_sq"):
                expected[f"optimizer/{index}/{moment}"] = (parameter.shape, parameter.dtype)
    found = {
        name: (tensor.shape, tensor.dtype)
        for name, tensor in tensors.items()
        if not name.startswith("table/")
    }
    problems = [f"no tensor '{name}'" for name in expected.keys() - found.keys()]
    problems += [f"a tensor '{name}' too many" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        (shape, dtype), (own, own_dtype) = found[name], expected[name]
        if (shape, dtype) != (own, own_dtype):
            problems.append(
                f"'{name}' is {list(shape)} of {dtype}, expected {list(own)} of {own_dtype}"
            )
        elif name in parameters and not tensors[name].isfinite().all():
            problems.append(f"'{name}' holds numbers that are not finite")
        elif tensors[name].isnan().any():  # the square of a large gradient may be infinite
            problems.append(f"'{name}' holds NaN")
    return sorted(problems)


def _scaler_state(job: Job, stored: Any) -> dict[str, Any]:
    """The state of the job's scaler; empty where it does nothing."""
    own = job.scaler.state_dict()
    problem = ValueError(f"a loss scaler of {stored!r}, expected numbers for {', '.join(own)}")
    if not isinstance(stored, dict) or stored.keys() != own.keys():
        raise problem
    for key, value in stored.items():
        if type(value) is not type(own[key]) or not 0 <= value < math.inf:
            raise problem
    if stored and not stored["scale"]:
        raise problem
    return stored


def _run_state(job: Job, stored: Any) -> RunState:
    """The state of the run; a file of an older release may lack keys that have a default."""
    kinds = get_type_hints(RunState)
    if not isinstance(stored, dict) or "step" not in stored:
        raise ValueError(f"a state of {stored!r}, expected the steps that are done")
    wrong = [
        f"'{key}' of {value!r}"
        for key, value in stored.items()
        if key not in kinds or not isinstance(value, kinds[key]) or isinstance(value, bool)
    ]
    if wrong:
        raise ValueError(f"a state with {', '.join(wrong)}")
    state = RunState(**stored)
    counts = (state.best_step, state.skipped, state.skipped_in_row, state.waited)
    measured = [m for m in (state.best_loss, state.stop_loss, state.seconds) if m is not None]
    holds = (
        0 <= state.step <= job.schedule.max_steps
        and all(0 <= count <= state.step for count in counts)
        and all(map(math.isfinite, measured))
        and state.seconds >= 0
        and state.ended in ("", "max_time", "early_stopping")
    )
    if not holds:
        raise ValueError(f"a state that no run of {job.schedule.max_steps} steps has: {stored}")
    return state


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
