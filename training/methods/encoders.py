"""The encoders of p-tuning: from a taskname's embeddings to rows.

Bodies and parameter counts are NeMo's (v1.12 to v1.16). `biglstm`, which never ran there, is built
as its documentation describes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pl_compile.config.train import PTuningConfig
from pl_compile.errors import ConfigError


class PromptEncoder(nn.Module, ABC):
    """A learned embedding, and a body that turns it into rows.

    Args:
        virtual: rows to make.
        width: of the embedding.
    """

    def __init__(self, virtual: int, width: int) -> None:
        super().__init__()
        self.virtual = virtual
        self.embedding = nn.Parameter(torch.randn(virtual, width))

    def forward(self, name: Tensor) -> Tensor:
        """float32 `[tokens, hidden]`, at most `virtual` tokens, to `[virtual, hidden]`."""
        name = self.narrowed(name.to(self.embedding.device))
        return self.body(torch.cat([name, self.embedding[len(name) :]]))

    def narrowed(self, name: Tensor) -> Tensor:
        """The name's embeddings, made as wide as the learned ones."""
        return name

    @abstractmethod
    def body(self, inputs: Tensor) -> Tensor:
        """float32 `[virtual, width]` to `[virtual, hidden]`."""


class MlpEncoder(PromptEncoder):
    """Linear layers with an activation between them.

    Args:
        virtual: rows to make.
        hidden: width in and out.
        layers: the linear layers and activations.
    """

    def __init__(self, virtual: int, hidden: int, layers: nn.Sequential) -> None:
        super().__init__(virtual, hidden)
        self.layers = layers

    def body(self, inputs: Tensor) -> Tensor:
        """The layers in order."""
        rows: Tensor = self.layers(inputs)
        return rows


class LstmEncoder(PromptEncoder):
    """A bidirectional LSTM and two linear layers.

    Args:
        virtual: rows to make.
        hidden: width out.
        width: of the embedding.
        inner: LSTM width per direction.
        config: layers and dropout.
    """

    def __init__(
        self, virtual: int, hidden: int, width: int, inner: int, config: PTuningConfig
    ) -> None:
        super().__init__(virtual, width)
        self.lstm = nn.LSTM(
            width,
            inner,
            num_layers=config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            bidirectional=True,
            batch_first=True,
        )
        self.head = nn.Sequential(
            nn.Linear(2 * inner, 2 * inner), nn.ReLU(), nn.Linear(2 * inner, hidden)
        )

    def body(self, inputs: Tensor) -> Tensor:
        """LSTM, then the linear layers."""
        rows: Tensor = self.head(self.lstm(inputs[None])[0][0])
        return rows


class BigLstmEncoder(LstmEncoder):
    """An LSTM with an embedding as narrow as itself; the last layer's weight narrows the names."""

    def narrowed(self, name: Tensor) -> Tensor:
        """`[tokens, hidden]` times the last layer's weight `[hidden, width]`."""
        last: nn.Linear = self.head[-1]  # type: ignore[assignment]
        return name @ last.weight


def _mlp(config: PTuningConfig, virtual: int, hidden: int) -> PromptEncoder:
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
    return MlpEncoder(virtual, hidden, nn.Sequential(*layers, nn.Linear(inner, hidden)))


def _tpmlp(config: PTuningConfig, virtual: int, hidden: int) -> PromptEncoder:
    inner = config.encoder_hidden or hidden
    first, second = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
    for linear in (first, second):
        nn.init.normal_(linear.weight, std=config.init_std)
        nn.init.zeros_(linear.bias)
    layers = nn.Sequential(first, nn.GELU(approximate="tanh"), second)
    return MlpEncoder(virtual, hidden, layers)


def _lstm(config: PTuningConfig, virtual: int, hidden: int) -> PromptEncoder:
    inner = config.encoder_hidden or hidden // 2
    return LstmEncoder(virtual, hidden, hidden, inner, config)


def _biglstm(config: PTuningConfig, virtual: int, hidden: int) -> PromptEncoder:
    width = config.encoder_hidden or hidden
    if width % 2:
        raise ConfigError(
            "building the p-tuning encoder",
            found=f"encoder_hidden {width}",
            expected="an even number for 'biglstm': half of it for each direction",
        )
    return BigLstmEncoder(virtual, hidden, width, width // 2, config)


ENCODERS: dict[str, Callable[[PTuningConfig, int, int], PromptEncoder]] = {
    "mlp": _mlp,
    "tpmlp": _tpmlp,
    "lstm": _lstm,
    "biglstm": _biglstm,
}
