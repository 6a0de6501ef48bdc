"""Which base a table or a bundle belongs to."""

from pl_compile.artifact.prompt_table import BaseIdentity
from pl_compile.config.decoder import DecoderConfig
from pl_compile.weights.checkpoint import Checkpoint, fingerprint_base


def identify_base(name: str, checkpoint: Checkpoint, config: DecoderConfig) -> BaseIdentity:
    """The identity of what `open_base` gave; all of its tensors are read.

    Args:
        name: what the user calls it.
        checkpoint: its tensors.
        config: its config.

    Raises:
        BaseModelError: as for `fingerprint_base`.
    """
    fingerprint = fingerprint_base(checkpoint, config)
    return BaseIdentity(name, fingerprint, config.hidden, config.vocab)
