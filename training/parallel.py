"""A frozen base in several processes: what can be divided, and how a process gets its part.

Tensor parallel: transformers' own plan cuts each layer, so a process computes some of the heads.
Sharded (FSDP): the data parallel processes keep a part of every weight each and gather a layer's
for the time it computes. Both leave losses and gradients as they are, up to rounding.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.train import TrainConfig
from pl_compile.errors import BaseModelError, ConfigError, check_all
from pl_compile.training.team import Team

T = TypeVar("T")

_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def check_parallel(config: TrainConfig, base: DecoderConfig, processes: int) -> None:
    """Raises `ConfigError` unless so many processes can share the work of a run.

    Args:
        config: the run.
        base: its base, of which nothing but this is read yet.
        processes: how many were started together.
    """
    parallel, trainer = config.parallel, config.trainer
    tensor, shards = parallel.tensor_parallel_size, parallel.shard_base
    start = "start the run with torchrun --nproc-per-node N -m pl_compile.cli train …"
    if processes == 1:
        checks = {
            f"parallel.tensor_parallel_size {tensor} in one process; {start}": tensor == 1,
            f"parallel.shard_base in one process; {start}": not shards,
        }
        check_all(ConfigError, "sharing the work", checks)
        return
    data = processes // tensor
    together = trainer.micro_batch_size * data
    checks = {
        f"{processes} processes, expected a multiple of parallel.tensor_parallel_size {tensor}": (
            processes % tensor == 0
        ),
        f"trainer.global_batch_size {trainer.global_batch_size}, expected a multiple of "
        f"{together}: micro_batch_size {trainer.micro_batch_size} for each of {data} data "
        "parallel processes": data > 0 and trainer.global_batch_size % together == 0,
        f"{base.heads} heads and {base.kv_heads} key heads of the base, expected multiples of "
        f"parallel.tensor_parallel_size {tensor}": (
            base.heads % tensor == 0 and base.kv_heads % tensor == 0
        ),
        f"a base of the family '{base.family}', for which transformers has no tensor parallel "
        "plan; set parallel.tensor_parallel_size: 1": tensor == 1 or _has_tensor_plan(base.family),
    }
    divided = tensor > 1 or shards
    key = "parallel.shard_base" if shards else "parallel.tensor_parallel_size"
    for other, on in (("lm_finetune", config.lm_finetune), ("trainer.compile", trainer.compile)):
        checks[f"{other} with {key}, expected one of the two"] = not (divided and on)
    check_all(ConfigError, f"sharing the work among {processes} processes", checks)


def _has_tensor_plan(family: str) -> bool:
    from transformers import CONFIG_MAPPING

    return bool(CONFIG_MAPPING[family].base_model_tp_plan)


def loader_in_parts(family: str, team: Team, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """What loads this process's part of a base: a class, and options of its `from_pretrained`.

    Each process reads its own part of the files only.

    Raises:
        BaseModelError: the installed transformers divides models in another way.
    """
    import transformers

    try:
        from transformers.distributed import DistributedConfig
        from transformers.distributed.utils import TransformersDeviceMesh

        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[transformers.CONFIG_MAPPING[family]]
        kind.prepare_distribute_model  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise BaseModelError(
            f"dividing the base among {team.tensor_size} processes",
            found=f"transformers {transformers.__version__}: {error}",
            expected="a version that divides models as 5.23 does",
        ) from error
    # transformers' names of the dimensions, data parallel processes among them.
    mesh = init_device_mesh(
        device.type,
        (1, team.data_size, 1, team.tensor_size),
        mesh_dim_names=("pp", "data", "fsdp", "tp"),
    )

    class OnOurMesh(kind):  # type: ignore[misc, valid-type]
        """The model on our mesh: transformers would make one that has no room for copies."""

        @classmethod
        def prepare_distribute_model(cls, config: Any, device_map: Any = None) -> Any:
            return config, device, TransformersDeviceMesh(mesh, mesh)

    OnOurMesh.__name__ = kind.__name__
    return OnOurMesh, {"distributed_config": DistributedConfig(tp_size=team.tensor_size)}


class Sharded(nn.Module):
    """A model of which each data parallel process keeps a part of every weight.

    All processes must do the same passes in the same order. Only inside a call of this module are
    the weights outside the layers there, and those of a layer while it computes.

    Args:
        model: of transformers, on the CPU, without gradients.
        layers: its layers: what is gathered at a time.
        team: who keeps the parts.
        device: where they are kept.
        dtype: of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        team: Team,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        from torch.distributed.fsdp import fully_shard

        super().__init__()
        self.model = model
        # One layer after the other, so that no more than one is ever there whole. Buffers keep
        # their dtype: rotary frequencies are float32 whatever the weights are.
        for module in (*layers, self):
            for parameter in module.parameters():
                if not isinstance(parameter, DTensor):
                    parameter.data = parameter.data.to(device, dtype)
            fully_shard(module, mesh=team.mesh["data"], reshard_after_forward=True)

    def forward(self, step: Callable[[], T]) -> T:
        """Does a step with the weights at hand; its result must hold what has a gradient."""
        return step()


def dtype_of_files(folder: Path) -> torch.dtype | None:
    """In what a folder's weights are stored; None unless all are alike.

    Loaded in that, they stay in the files, and a process takes of them what it keeps.
    """
    kinds = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return _STORED.get(kinds.pop()) if len(kinds) == 1 else None


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_heads(prefix: Tensor, team: Team) -> Tensor:
    """This process's heads of a learned prefix; the gradient is that of all heads, everywhere.

    Args:
        prefix: `[layers, 2, kv_heads, prefix, head_dim]`.
        team: who computes which heads.
    """
    if team.tensor_size == 1:
        return prefix
    own: Tensor = _OwnHeads.apply(prefix, team)  # type: ignore[no-untyped-call]
    return own


def all_heads(own: Tensor, team: Team) -> Tensor:
    """`[layers, 2, kv_heads, seq, head_dim]` from each process's own heads of it; no gradient."""
    if team.tensor_size == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(team.tensor_size)]
    distributed.all_gather(parts, own.contiguous(), group=team.mesh.get_group("tensor"))
    return torch.cat(parts, dim=2)


class _OwnHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prefix: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return prefix.chunk(team.tensor_size, dim=2)[team.tensor_rank].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_heads(grad, ctx.team), None
