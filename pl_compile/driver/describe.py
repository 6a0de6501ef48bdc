"""What a path holds, as plain data: a bundle, plan, table, checkpoint, run, base or adapter."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pl_compile.artifact.bundle import MANIFEST, read_bundle
from pl_compile.artifact.plan_record import PLAN_NAME, read_plan_record
from pl_compile.artifact.prompt_table import FORMAT, TABLE_NAME, TaskEntry, read_prompt_table
from pl_compile.artifact.tensors import read_tensor_file
from pl_compile.errors import ArtifactError
from pl_compile.families.read import read_decoder_config
from pl_compile.importers.peft import CONFIG_NAME as ADAPTER
from pl_compile.importers.peft import read_peft_adapter
from pl_compile.importers.run_checkpoint import FORMAT as CHECKPOINT
from pl_compile.text.template import parse_template
from pl_compile.weights.bases import cached_base_folder


def describe(path: Path) -> dict[str, Any]:
    """A description with a "kind", ready for JSON.

    Args:
        path: what to look into; also the name of a fetched base, if nothing has that path.

    Raises:
        ArtifactError: nothing is there, or it is of no kind that we know.
        BaseModelError: a Hugging Face folder of an unsupported family.
    """
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return _bundle(path)
        if (path / TABLE_NAME).is_file():
            return {
                "kind": "run",
                "path": str(path),
                "table": describe(path / TABLE_NAME),
            }
        if (path / "config.json").is_file():
            return {"kind": "base", "path": str(path), **asdict(read_decoder_config(path))}
        if (path / ADAPTER).is_file():
            return _adapter(path)
    elif path.is_file():
        return _file(path)
    elif (cached_base_folder(str(path)) / "config.json").is_file():
        return describe(cached_base_folder(str(path)))
    raise ArtifactError(
        f"looking into {path}",
        found="nothing that plc knows" if path.exists() else "no such file, folder or base",
        expected="a bundle, a plan, a prompt table, a checkpoint, a run folder, an adapter of "
        "PEFT's or a Hugging Face folder",
    )


def _adapter(path: Path) -> dict[str, Any]:
    adapter = read_peft_adapter(path)
    return {
        "kind": "adapter",
        "path": str(path),
        "method": adapter.method,
        "virtual_tokens": adapter.virtual,
        "base": adapter.base,
        "sizes_of_base": dict(adapter.sizes),
        "next": f"plc import peft {path} --task NAME --template TEXT --output TABLE",
    }


def _bundle(path: Path) -> dict[str, Any]:
    bundle = read_bundle(path)
    manifest = asdict(bundle.manifest)
    files = {name: record.size_bytes for name, record in bundle.files.items()}
    return {
        "kind": "bundle",
        "path": str(path),
        **manifest,
        "tasks": [_task(entry) for entry in bundle.entries.values()],
        "plans": [_plan(path / name) for name in sorted(files) if name.endswith(f"/{PLAN_NAME}")],
        "files": files,
        "size_bytes": sum(files.values()),
    }


def _plan(path: Path) -> dict[str, Any]:
    return {"kind": "plan", "path": str(path), **asdict(read_plan_record(path.parent))}


def _file(path: Path) -> dict[str, Any]:
    if path.name == PLAN_NAME:
        return _plan(path)
    try:
        file = read_tensor_file(path, doing=f"looking into {path}")
    except ArtifactError as error:
        bundle = next((p for p in path.absolute().parents if (p / MANIFEST).is_file()), None)
        if bundle is None:
            raise
        fix = f"Look into the whole bundle: plc inspect {bundle}"
        raise ArtifactError(
            error.doing, found=error.found, expected=error.expected, fix=fix
        ) from error
    metadata = file.metadata
    shapes = {name: list(tensor.shape) for name, tensor in file.tensors.items()}
    if metadata.get("format") == FORMAT:
        table = read_prompt_table(path)
        return {
            "kind": "prompt table",
            "path": str(path),
            "base": asdict(table.base),
            "tasks": [_task(entry) for entry in table.entries.values()],
        }
    kind = "checkpoint" if metadata.get("format") == CHECKPOINT else "tensors"
    return {"kind": kind, "path": str(path), "metadata": metadata, "tensors": shapes}


def _task(entry: TaskEntry) -> dict[str, Any]:
    template = parse_template(entry.task)
    # A row of a prefix is all that one virtual token has in all layers.
    by_token = entry.rows if entry.prefix_kv is None else np.moveaxis(entry.prefix_kv, 3, 0)
    # In float64: the square of a float32 may be beyond its range.
    norms = np.linalg.norm(by_token.reshape(len(by_token), -1).astype(np.float64), axis=1)
    return {
        "taskname": entry.task.taskname,
        "method": entry.method,
        "prompt": "rows" if entry.prefix_kv is None else "prefix",
        "virtual_tokens": entry.task.total_virtual_tokens,
        "splits": list(entry.task.virtual_token_splits) or [entry.task.total_virtual_tokens],
        "fields": list(template.input_fields),
        "answer_field": template.answer_field,
        "choices": list(entry.task.choices),
        "copied_from": entry.task.answer.span if entry.task.answer else None,
        "template": entry.task.prompt_template,
        "bos_id": entry.rules.bos_id,
        "eos_id": entry.rules.eos_id,
        "end_ids": list(entry.rules.end_ids),
        "row_norms": {
            "smallest": float(norms.min()),
            "largest": float(norms.max()),
        },
    }
