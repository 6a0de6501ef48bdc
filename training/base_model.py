"""The frozen GPT: a `transformers` model that takes a packed line and gives losses where asked.

In: a Hugging Face folder. Out: `FrozenBase`, which knows nothing of tasks or methods. It embeds
real tokens, puts given rows at virtual positions and given keys and values before the first token,
and computes logits only where a token is predicted.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import BaseModelError, PlcError
from pl_compile.families.registry import FAMILIES
from pl_compile.training.data.packing import PackedBatch
from pl_compile.training.frozen import attention
from pl_compile.training.frozen.layers import replace_layers
from pl_compile.training.frozen.loss import frozen_cross_entropy
from pl_compile.training.frozen.workspace import Workspace
from pl_compile.training.parallel import (
    Sharded,
    all_heads,
    dtype_of_files,
    loader_in_parts,
    local_part,
    own_heads,
)
from pl_compile.training.precision import DTYPES
from pl_compile.training.soft_prompt import SoftPrompt
from pl_compile.training.team import ALONE, Team
from pl_compile.weights.open_base import open_base

T = TypeVar("T")

# The attention function for everything except the packed line.
_PLAIN = "sdpa"
# Bits of a processor's vectors, by torch's name of the instruction set it uses.
_VECTOR_BITS = {"AVX2": 256, "AVX512": 512}


class FrozenBase:
    """A base whose parameters never change.

    Args:
        folder: a Hugging Face folder with safetensors weights.
        config: of the folder, where it was opened before.
        precision: a key of `DTYPES` (see `precision.py`).
        device: where the base computes.
        trainable: train the base's weights too (`lm_finetune`). Then it is not frozen, and keeps
            the modules that a frozen base would replace by faster ones.
        as_is: leave every module as transformers has it: for a reference.
        activation_checkpointing: save only each layer's input, and compute the layer again in the
            backward pass.
        compile: let `torch.compile` fuse norms and MLPs.
        team: its tensor parallel processes divide the base among them.
        shard: let its data parallel processes keep a part of each weight.

    Raises:
        BaseModelError: the folder does not hold a model that `transformers` can load.
    """

    def __init__(
        self,
        folder: Path,
        precision: str = "fp32",
        *,
        config: DecoderConfig | None = None,
        device: str = "cpu",
        trainable: bool = False,
        as_is: bool = False,
        activation_checkpointing: bool = False,
        compile: bool = False,
        team: Team = ALONE,
        shard: bool = False,
    ) -> None:
        self.config: DecoderConfig = config or open_base(folder)[1]
        self.device = torch.device(device)
        dtype = DTYPES[precision]
        if shard:
            model = _load(folder, dtype_of_files(folder) or dtype)
        elif team.tensor_size > 1:
            model = _load(folder, dtype, *loader_in_parts(self.config.family, team, self.device))
        else:
            model = _load(folder, dtype, options=_straight_to(self.device))
        self.model = model.eval().requires_grad_(trainable)
        self.trainable = trainable
        self.divided = shard or team.tensor_size > 1
        self.team = team
        # The network below the LM head. The LM head is only computed where a token is predicted.
        self._body = self.model.base_model
        self._embedding = self.model.get_input_embeddings()
        self._head = self.model.get_output_embeddings()
        recomputes = activation_checkpointing or trainable or compile
        self._workspace = None if recomputes else Workspace()
        if compile:
            _compile_layers(self.model)
        elif not (trainable or as_is):
            fast_layers = FAMILIES[self.config.family].fast_layers
            replace_layers(self.model, fast_layers, self._workspace)
        layers = _decoder_layers(self.model)
        if activation_checkpointing:
            _checkpoint_layers(self.model)
        self._sharded = Sharded(model, layers, team, self.device, dtype) if shard else None

    @property
    def hidden(self) -> int:
        """Width of a prompt row."""
        return self.config.hidden

    @property
    def parameters(self) -> int:
        """How many numbers the base has; a tied LM head counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def embeddings_of(self, token_ids: Tensor) -> Tensor:
        """float32 `[..., hidden]` of int64 `[...]`, detached, on the CPU."""
        rows: Tensor = self.inside(lambda: self._embedding(token_ids.to(self.device)))
        return rows.detach().float().cpu()

    def keys_and_values(self, token_ids: Tensor) -> Tensor:
        """The keys and values of each layer for a sequence that begins with these tokens.

        Args:
            token_ids: int64 `[seq]`.

        Returns:
            float32 `[layers, 2, kv_heads, seq, head_dim]`, on the CPU.
        """
        from transformers import DynamicCache

        line, cache = token_ids.to(self.device)[None], DynamicCache()
        with torch.no_grad():
            self.inside(lambda: self._body(input_ids=line, cache=cache, use_cache=True))
        layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        return all_heads(torch.stack(layers), self.team).float().cpu()

    def own_heads(self, prefix_kv: Tensor) -> Tensor:
        """This process's heads of a prefix `[layers, 2, kv_heads, prefix, head_dim]`."""
        return own_heads(prefix_kv, self.team)

    def inside(self, step: Callable[[], T]) -> T:
        """Does a step while all weights outside the layers are present in this process."""
        if self._sharded is None:
            return step()
        result: T = self._sharded(step)
        return result

    def token_losses(self, batch: PackedBatch, prompts: Mapping[int, SoftPrompt]) -> Tensor:
        """Cross-entropy of each target, float32 `[targets]`, in the order of the batch.

        This call drops what an earlier call saved for its backward pass.

        Args:
            batch: the micro-batch.
            prompts: by task number.
        """
        return self.inside(lambda: self._token_losses(batch, prompts))

    def _token_losses(self, batch: PackedBatch, prompts: Mapping[int, SoftPrompt]) -> Tensor:
        if self._workspace is not None:
            self._workspace.reset()
        prefixes = {
            task: None if prompt.prefix_kv is None else self.own_heads(prompt.prefix_kv)
            for task, prompt in prompts.items()
        }
        layout = attention.lay_out_attention(batch, prefixes, self._workspace)
        with _packed_attention(self.model.config):
            output = self._body(
                inputs_embeds=self._embed(batch, prompts)[None],
                position_ids=batch.positions[None],
                use_cache=False,
                layout=layout,
            )
        hidden = output.last_hidden_state[0].index_select(0, batch.loss_at)
        if self.config.logits_scale != 1:
            hidden = hidden * self.config.logits_scale  # as good as the logits, and fewer numbers
        divided_head, cap = self.team.tensor_size > 1, self.config.logits_cap
        if not (self.trainable or divided_head or cap) and self._head.bias is None:
            return frozen_cross_entropy(hidden, self._head.weight, batch.targets)
        logits = self._head(hidden).float()
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")

    def _embed(self, batch: PackedBatch, prompts: Mapping[int, SoftPrompt]) -> Tensor:
        """The input of the first layer: `[tokens, hidden]` in the base's dtype."""
        embedded: Tensor = self._embedding(batch.token_ids)
        places = torch.nonzero(batch.virtual_rows >= 0)[:, 0]
        if not len(places):
            return embedded
        rows: list[Tensor] = []
        starts: dict[int, int] = {}
        for task, prompt in prompts.items():
            if prompt.rows is not None:
                starts[task] = sum(len(before) for before in rows)
                rows.append(prompt.rows)
        # Plain indexing would give the same, but its gradient is an order of magnitude slower.
        first = torch.tensor([starts.get(t, 0) for t in batch.tasks[places].tolist()])
        index = (first + batch.virtual_rows[places]).to(self.device)
        virtual = torch.cat(rows).index_select(0, index).to(embedded.dtype)
        return embedded.index_copy(0, places.to(self.device), virtual)

    def digest(self) -> str:
        """sha256 over all parameters in this process; a frozen base has the same after a run."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(name.encode())
            data = local_part(parameter.detach()).cpu().contiguous().view(torch.uint8)
            digest.update(data.numpy().data)
        return digest.hexdigest()


def _load(
    folder: Path, dtype: torch.dtype, loader: Any = None, options: Mapping[str, Any] | None = None
) -> Any:
    """The model, loaded by the class that transformers chooses, or by `loader` with its options."""
    import transformers

    transformers.AttentionInterface.register(attention.NAME, attention.packed_attention)
    transformers.utils.logging.disable_progress_bar()
    doing = f"loading the base {folder}"
    try:
        model, loading = (loader or transformers.AutoModelForCausalLM).from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=_PLAIN,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **(options or {}),
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise BaseModelError(
            doing,
            found=f"there is not enough memory for it in {dtype}",
            fix="End other programs, or choose a trainer.precision with fewer bits.",
        ) from error
    # Any exception: transformers has its own classes for wrong configs, may ask for packages, and
    # fails at some wrong settings only where it uses them (TypeError, AssertionError).
    except Exception as error:
        if isinstance(error, PlcError) or _is_of_our_code(error):
            raise
        raise BaseModelError(
            doing,
            found=f"transformers {transformers.__version__} refuses it: "
            + (" ".join(str(error).split()) or type(error).__name__),
            fix="Correct the file that it names, or save the base again with save_pretrained.",
        ) from error
    # transformers fills missing tensors with random numbers, and says so only in its log.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise BaseModelError(
            doing,
            found=f"{len(missing)} missing tensors: {', '.join(missing[:5])}",
            fix="Copy the base again, or fetch it anew.",
        )
    return model


def _straight_to(device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` that load each tensor to the device, not through the host."""
    return {} if device.type == "cpu" else {"device_map": {"": device}}


def _is_of_our_code(error: Exception) -> bool:
    """Whether an error comes from our own call or code, and so is our mistake."""
    _, *inside = (str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__))
    return not inside or any(name.startswith("pl_compile.") for name in inside)


def _decoder_layers(model: Any) -> list[Any]:
    kinds = set(model._no_split_modules)
    return [module for module in model.modules() if type(module).__name__ in kinds]


@contextmanager
def _packed_attention(config: Any) -> Iterator[None]:
    config._attn_implementation = attention.NAME
    try:
        yield
    finally:
        config._attn_implementation = _PLAIN


def _checkpoint_layers(model: Any) -> None:
    for layer in _decoder_layers(model):
        layer.forward = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            # The backward pass computes the layer again long after `token_losses` has returned.
            context_fn=lambda: (nullcontext(), _packed_attention(model.config)),
        )


def _compile_layers(model: Any) -> None:
    # torch keeps compiled code on disk, under a key that depends on settings but not on the
    # processor. Where machines share that folder, one with AVX2 would take code for AVX-512 and
    # compute wrong numbers. So the width of vectors is made a setting.
    bits = _VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    options = {} if bits is None else {"cpp.simdlen": bits}
    for layer in _decoder_layers(model):
        for module in layer.children():
            if "Attention" not in type(module).__name__:
                module.compile(dynamic=True, options=options)
