"""P-tuning: an encoder, shared by the tasks of a run, makes the rows (arXiv:2103.10385).

The encoder reads a learned embedding `[virtual, hidden]` whose first rows are replaced by the
base's embeddings of the taskname: that is what lets one encoder serve several tasks (NeMo's form).
After training only the rows it made are kept.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import PTuningConfig, TrainConfig
from pl_compile.errors import ConfigError
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.prompt_method import PromptMethod


class PTuning(PromptMethod):
    """A shared encoder conditioned on the taskname.

    Args:
        virtual: rows per task, equal for all tasks.
        encoder: maps float32 `[1, virtual, hidden]` to the same shape.
        names: float32 `[tokens, hidden]` for each task: the base's embeddings of its name.
    """

    def __init__(self, virtual: int, encoder: nn.Module, names: Sequence[Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(virtual, names[0].shape[-1]))
        self.encoder = encoder
        # Each name replaces exactly as many rows as it has tokens. (NeMo pads the names of a batch
        # to one length, so padding replaced rows in training that the export then kept.)
        self._names = [name[:virtual] for name in names]

    def rows(self, task: int) -> Tensor:
        """The encoder's output for the task."""
        name = self._names[task]
        inputs = torch.cat([name, self.embedding[len(name) :]])
        rows: Tensor = self.encoder(inputs[None])[0]
        return rows


class LstmEncoder(nn.Module):
    """A bidirectional LSTM and two linear layers.

    Args:
        hidden: width in and out.
        inner: width per direction.
        layers: LSTM layers.
        dropout: between them.
    """

    def __init__(self, hidden: int, inner: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            hidden,
            inner,
            num_layers=layers,
            dropout=dropout if layers > 1 else 0.0,
            bidirectional=True,
            batch_first=True,
        )
        self.head = nn.Sequential(
            nn.Linear(2 * inner, 2 * inner), nn.ReLU(), nn.Linear(2 * inner, hidden)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """float32 `[1, virtual, hidden]` to the same shape."""
        rows: Tensor = self.head(self.lstm(inputs)[0])
        return rows


def build_p_tuning(
    config: TrainConfig, tasks: Sequence[TaskConfig], base: FrozenBase, tokenizer: Tokenizer
) -> PTuning:
    """P-tuning with the encoder that `config.p_tuning` names.

    Raises:
        ConfigError: tasks of different virtual-token counts, or too few layers.
    """
    counts = {task.taskname: task.total_virtual_tokens for task in tasks}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            "building the p-tuning encoder",
            found=f"total_virtual_tokens {counts}",
            expected="one number for all tasks tuned together",
            fix="Make them equal, or train the tasks one after another with existing_table.",
        )
    torch.manual_seed(config.seed)
    names = [
        base.embeddings_of(torch.tensor(tokenizer.encode(task.taskname, opens=True, markup=False)))
        for task in tasks
    ]
    virtual = tasks[0].total_virtual_tokens
    for index, name in enumerate(names):
        for other in range(index):
            if torch.equal(name[:virtual], names[other][:virtual]):
                raise ConfigError(
                    "building the p-tuning encoder",
                    found=f"tasks '{tasks[other].taskname}' and '{tasks[index].taskname}' have "
                    f"names with the same first {virtual} tokens",
                    expected="names that differ there: they are what tells the tasks apart",
                    fix="Rename one, or give more virtual tokens.",
                )
    encoder = _ENCODERS[config.p_tuning.encoder_type](config.p_tuning, base.hidden)
    return PTuning(virtual, encoder, names)


def _mlp(config: PTuningConfig, hidden: int) -> nn.Module:
    if config.num_layers < 2:
        raise ConfigError(
            "building the p-tuning encoder",
            found=f"num_layers {config.num_layers}",
            expected="at least 2 for 'mlp' (2 is recommended)",
        )
    inner = config.encoder_hidden or hidden
    layers: list[nn.Module] = [nn.Linear(hidden, inner), nn.ReLU()]
    for _ in range(config.num_layers - 2):
        layers += [nn.Linear(inner, inner), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(inner, hidden))


def _lstm(config: PTuningConfig, hidden: int) -> nn.Module:
    inner = config.encoder_hidden or hidden // 2
    return LstmEncoder(hidden, inner, config.num_layers, config.dropout)


_ENCODERS: dict[str, Callable[[PTuningConfig, int], nn.Module]] = {"mlp": _mlp, "lstm": _lstm}
