"""A frozen base in several processes: what can be divided, and how a process gets its part.

Tensor parallel: transformers' own plan cuts each layer, so a process computes some of the heads.
Sharded (FSDP): each data parallel process keeps a part of every weight, and gathers the weights of
a layer while it computes. Neither changes losses or gradients, up to rounding.
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
        base: its base; only the config has been read.
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
    """A class that loads this process's part of a base, and options of its `from_pretrained`.

    Each process reads only its own part of the files.

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
    # transformers' names of the dimensions; one is that of data parallel processes.
    mesh = init_device_mesh(
        device.type,
        (1, team.data_size, 1, team.tensor_size),
        mesh_dim_names=("pp", "data", "fsdp", "tp"),
    )

    class OnOurMesh(kind):  # type: ignore[misc, valid-type]
        """The model on our mesh: the mesh of transformers has no data parallel dimension."""

        @classmethod
        def prepare_distribute_model(cls, config: Any, device_map: Any = None) -> Any:
            return config, device, TransformersDeviceMesh(mesh, mesh)

    OnOurMesh.__name__ = kind.__name__
    return OnOurMesh, {"distributed_config": DistributedConfig(tp_size=team.tensor_size)}


class Sharded(nn.Module):
    """A model where each data parallel process keeps a part of every weight.

    All processes must do the same passes in the same order. The weights outside the layers are
    present only during a call of this module, those of a layer only while it computes.

    Args:
        model: of transformers, on the CPU, without gradients.
        layers: its layers; one is gathered at a time.
        team: the processes that keep the parts.
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
        # One layer after the other, so that at most one is ever present whole. Buffers keep their
        # dtype: rotary frequencies are always float32.
        for module in (*layers, self):
            for parameter in module.parameters():
                if not isinstance(parameter, DTensor):
                    parameter.data = parameter.data.to(device, dtype)
            fully_shard(module, mesh=team.mesh["data"], reshard_after_forward=True)

    def forward(self, step: Callable[[], T]) -> T:
        """Does a step while the weights are present; its result must hold what has a gradient."""
        return step()


def dtype_of_files(folder: Path) -> torch.dtype | None:
    """The dtype of a folder's weights; None unless all have the same one.

    Loaded in this dtype, weights stay in the files, and a process reads only what it keeps.
    """
    kinds = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return _STORED.get(kinds.pop()) if len(kinds) == 1 else None


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_heads(prefix: Tensor, team: Team) -> Tensor:
    """This process's heads of a learned prefix. The gradient is that of all heads, in each process.

    Args:
        prefix: `[layers, 2, kv_heads, prefix, head_dim]`.
        team: the processes that divide the heads.
    """
    if team.tensor_size == 1:
        return prefix
    own: Tensor = _OwnHeads.apply(prefix, team)  # type: ignore[no-untyped-call]
    return own


def all_heads(own: Tensor, team: Team) -> Tensor:
    """`[layers, 2, kv_heads, seq, head_dim]` from the heads of each process; no gradient."""
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
