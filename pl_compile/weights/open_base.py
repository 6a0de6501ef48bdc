"""Opens a base's folder and checks it before anything is built from it."""

from pathlib import Path

from pl_compile.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import BaseModelError
from pl_compile.families.read import read_decoder_config
from pl_compile.weights.check import check_tensors


def open_base(folder: Path) -> tuple[Checkpoint, DecoderConfig]:
    """The tensors of a Hugging Face folder and its config, which fit each other.

    Raises:
        BaseModelError: config or tensors that cannot be read, that do not fit each other, or that
            hold something that changes the numbers and is not computed.
    """
    config = read_decoder_config(folder)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        # transformers would apply it to the base, but only where PEFT is installed.
        raise BaseModelError(
            f"reading the base {folder}",
            found=f"an adapter beside it, {adapter.name}",
            expected="a base alone",
            fix="Move the adapter's files to a folder of their own, or merge it into the base.",
        )
    checkpoint = open_checkpoint(folder)
    check_tensors(checkpoint, config)
    return checkpoint, config
