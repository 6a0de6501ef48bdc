"""The base that joint tuning (`lm_finetune`) leaves: a Hugging Face folder of its own."""

import shutil
from pathlib import Path

from pl_compile.artifact.files import folder_written_whole
from pl_compile.training.base_model import FrozenBase
from pl_compile.weights.checkpoint import fingerprint_base
from pl_compile.weights.open_base import open_base

# What the old folder holds beside weights: tokenizer, templates, generation settings.
_WEIGHTS = (".safetensors", ".index.json", ".bin", ".gguf")


def write_new_base(base: FrozenBase, old: Path, new: Path) -> str:
    """Writes the trained base and returns its fingerprint.

    Args:
        base: as trained.
        old: the folder it was read from.
        new: the folder; one that is there is replaced.

    Raises:
        ArtifactError: the disk refuses.
    """
    with folder_written_whole(new, is_ours=lambda folder: (folder / "config.json").is_file()) as at:
        for file in old.iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, at / file.name)
        base.model.save_pretrained(at)
        return fingerprint_base(*open_base(at))
