"""What the server counts, in the form that Prometheus reads."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Each label has its own time series: the tasks after this many share the label "other".
MOST_TASK_LABELS = 100
OTHER = "other"

_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """All metrics of a server, in a registry of their own.

    Args:
        gauges: gives names, descriptions and values of what is measured when it is asked for. What
            only grows has a name that ends with `_total`.
    """

    def __init__(self, gauges: Callable[[], Iterator[tuple[str, str, float]]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(gauges))
        self._labels: set[str] = set()
        by_task = {"labelnames": ["task"], "registry": self.registry}
        self.first_token = Histogram(
            "plc_time_to_first_token_seconds",
            "From a request to its first token.",
            buckets=_FIRST,
            **by_task,  # type: ignore[arg-type]
        )
        self.between_tokens = Histogram(
            "plc_inter_token_latency_seconds",
            "From a token to the next one of the same answer.",
            buckets=_BETWEEN,
            **by_task,  # type: ignore[arg-type]
        )
        self.request = Histogram(
            "plc_request_latency_seconds",
            "From a request to its end.",
            buckets=_WHOLE,
            **by_task,  # type: ignore[arg-type]
        )
        self.tokens_in = Counter(
            "plc_prompt_tokens",
            "Tokens of prompts, virtual ones included.",
            ["task"],
            registry=self.registry,
        )
        self.tokens_out = Counter(
            "plc_generation_tokens", "Tokens of answers.", ["task"], registry=self.registry
        )
        self.finished = Counter(
            "plc_requests",
            "Requests that were answered, by how they ended.",
            ["task", "finish_reason"],
            registry=self.registry,
        )
        self.refused = Counter(
            "plc_refusals",
            "Requests that got an error, by its code; and clients that left.",
            ["reason"],
            registry=self.registry,
        )

    def label(self, task: str) -> str:
        """The label of a task that exists: its name, or "other"."""
        if task not in self._labels and len(self._labels) >= MOST_TASK_LABELS:
            return OTHER
        self._labels.add(task)
        return task

    def page(self) -> bytes:
        """What `/metrics` gives."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, gauges: Callable[[], Iterator[tuple[str, str, float]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for name, about, value in self._gauges():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, about, value=value)
