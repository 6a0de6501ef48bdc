"""The frozen GPT: a `transformers` model that takes embeddings and gives logits where asked.

In: a Hugging Face folder. Out: `FrozenBase`, which knows nothing of tasks or methods: it embeds
real tokens, puts given rows at virtual positions, and computes logits at chosen positions only.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pl_compile.config.decoder import DecoderConfig, read_decoder_config
from pl_compile.errors import BaseModelError
from pl_compile.training.data.batches import MicroBatch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class FrozenBase:
    """A base whose parameters never change.

    Args:
        folder: a Hugging Face folder with safetensors weights.
        precision: a key of `DTYPES`.

    Raises:
        BaseModelError: the folder holds no model that `transformers` can load.
    """

    def __init__(self, folder: Path, precision: str = "fp32") -> None:
        import transformers

        self.config: DecoderConfig = read_decoder_config(folder)
        transformers.utils.logging.disable_progress_bar()
        try:
            model: Any
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[precision],
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise BaseModelError(f"loading the base {folder}", found=str(error)) from error
        # transformers fills what is missing with random numbers, and says so in a log at most.
        missing = sorted(loading["missing_keys"])
        if missing:
            raise BaseModelError(
                f"loading the base {folder}",
                found=f"{len(missing)} missing tensors: {', '.join(missing[:5])}",
                fix="Copy the base again, or fetch it anew.",
            )
        self.model = model.eval().requires_grad_(False)
        # The network below the head: its output is needed at few positions, the head's at fewer.
        self._body = self.model.base_model
        self._embedding = self.model.get_input_embeddings()
        self._head = self.model.get_output_embeddings()

    @property
    def hidden(self) -> int:
        """Width of a prompt row."""
        return self.config.hidden

    @property
    def parameters(self) -> int:
        """How many numbers are frozen; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def embeddings_of(self, token_ids: Tensor) -> Tensor:
        """float32 `[..., hidden]` of int64 `[...]`, detached."""
        rows: Tensor = self._embedding(token_ids).detach().float()
        return rows

    def embed(self, token_ids: Tensor, virtual_rows: Tensor, rows: Tensor) -> Tensor:
        """What the first layer sees: `[batch, seq, hidden]` in the base's dtype.

        Args:
            token_ids: int64 `[batch, seq]`.
            virtual_rows: int64 `[batch, seq]`, -1 where the token is real.
            rows: float `[batch, virtual, hidden]`, the prompt of each row's task.
        """
        real: Tensor = self._embedding(token_ids)
        is_virtual = (virtual_rows >= 0)[..., None]
        index = virtual_rows.clamp(min=0)[..., None].expand(-1, -1, rows.shape[-1])
        return torch.where(is_virtual, rows.gather(1, index).to(real.dtype), real)

    def loss(self, batch: MicroBatch, rows: Tensor) -> Tensor:
        """Mean cross-entropy over the batch's target tokens: a float32 scalar.

        Args:
            batch: the micro-batch.
            rows: float `[batch, virtual, hidden]`, the prompt of each row's task.
        """
        return self.token_losses(batch, rows).mean()

    def token_losses(self, batch: MicroBatch, rows: Tensor) -> Tensor:
        """Cross-entropy of each target token, float32 `[tokens]`, row by row in order."""
        inputs = self.embed(batch.token_ids, batch.virtual_rows, rows)
        hidden = self._body(inputs_embeds=inputs, use_cache=False).last_hidden_state
        wanted = batch.targets >= 0
        logits = self._head(hidden[wanted]).float()
        return torch.nn.functional.cross_entropy(logits, batch.targets[wanted], reduction="none")

    def digest(self) -> str:
        """sha256 over all parameters: equal before and after a run, or the base was not frozen."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(name.encode())
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()
