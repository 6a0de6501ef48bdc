"""Target `openvino`: near torch in mixed batches, and its engine's errors.

Every test runs twice: on OpenVINO where it is installed, and on a stand-in with the few names that
the engine uses, which runs the same graphs on ONNX Runtime.
"""

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.checks.parity import Parity
from pl_compile.config.build import BuildOptions
from pl_compile.driver.doctor import Finding, examine
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import ArtifactError, ExportError, MissingExtraError, RequestError
from pl_compile.families.registry import FAMILIES
from pl_compile.runtime import Provider, Request, Session
from pl_compile.runtime.engines.openvino.engine import OpenVinoEngine, openvino_module
from pl_compile.runtime.engines.padded import Step
from pl_compile.testing import PREFIX_TASK, random_table, sign_bundle, write_tiny_base

REQUESTS = [
    Request("tone", {"sentence": "who was there at all?"}, max_tokens=6),
    Request("ask", {"question": "the lazy dog " * 9, "place": "a field"}, max_tokens=30),
    Request("order", {"request": "lights off"}, max_tokens=6),
    Request("ask", {"question": "who?", "place": "here"}, max_tokens=30),
]


class StandIn:
    """A compiled model and its request: an ONNX file on ONNX Runtime."""

    def __init__(self, model: Path) -> None:
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(str(model))
        except Exception as error:
            raise RuntimeError(f"Exception from a place:\n{error}\n") from error
        self._given: dict[str, Any] = {}
        self._results: Mapping[str, Any] = {}
        self.inputs = [value_of(value) for value in self._session.get_inputs()]
        self.outputs = [value_of(value) for value in self._session.get_outputs()]

    def get_ops(self) -> list[Any]:
        return []  # its `TopK` has the order of ONNX

    def create_infer_request(self) -> "StandIn":
        return self

    def set_tensor(self, name: str, tensor: Any) -> None:
        self._given[name] = tensor.data

    def infer(self) -> None:
        names = [value.name for value in self._session.get_outputs()]
        try:
            results = self._session.run(names, self._given)
        except Exception as error:
            raise RuntimeError(f"Exception from a place:\n{error}\n") from error
        self._results = dict(zip(names, results, strict=True))

    def get_tensor(self, name: str) -> Any:
        return SimpleNamespace(data=self._results[name])


def value_of(value: Any) -> Any:
    """An input or output as OpenVINO describes it."""
    sizes = [
        SimpleNamespace(is_dynamic=isinstance(size, str), get_length=lambda size=size: size)
        for size in value.shape
    ]
    kind = np.dtype({"tensor(float)": "float32"}.get(value.type, "int64"))
    return SimpleNamespace(
        get_names=lambda: {value.name, f"{value.name}/out"},
        get_partial_shape=lambda: sizes,
        get_element_type=lambda: SimpleNamespace(to_dtype=lambda: kind),
    )


def stand_in(version: str = "2026.4.1-1-abc") -> Any:
    """The package."""
    package = ModuleType("openvino")
    module: Any = package
    module.__spec__ = ModuleSpec("openvino", None)
    module.__version__ = version
    module.Tensor = lambda array, shared_memory: SimpleNamespace(data=array)
    module.Core = lambda: SimpleNamespace(read_model=StandIn, compile_model=lambda model, *_: model)
    return package


def test_the_package_is_imported_without_its_telemetry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a program that uses that telemetry itself can import it afterwards."""
    (tmp_path / "openvino_telemetry.py").write_text("")
    (tmp_path / "openvino.py").write_text(
        "__version__ = '2026.4.1'\n"
        "try:\n    import openvino_telemetry\n    told = True\n"
        "except ImportError:\n    told = False\n"
    )
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)

    assert not openvino_module("trying it").told
    assert importlib.import_module("openvino_telemetry")


INSTALLED = find_spec("openvino") is not None


@pytest.fixture(
    params=[
        pytest.param("stand-in"),
        pytest.param(
            "openvino",
            marks=pytest.mark.skipif(
                not INSTALLED,
                reason="needs openvino: pip install 'pl-compile[openvino]'; without it: the same "
                "test on a stand-in",
            ),
        ),
    ]
)
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is imported as `openvino`."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "openvino", stand_in())
    return str(request.param)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("openvino-bases")
    # Random weights with which most tokens agree in 4 bits: not all do.
    return {f: write_tiny_base(root / f, f, seed=8, blocks=True) for f in FAMILIES}


Exported = Callable[..., ExportResult]


@pytest.fixture
def exported(bases: dict[str, Path], tmp_path: Path) -> Exported:
    def export(family: str = "llama", name: str = "bundle", **changes: Any) -> ExportResult:
        table = tmp_path / f"{family}.safetensors"
        if not table.exists():
            random_table(bases[family], table, prefix=True)
        given = {"target": "openvino", **changes}
        return export_bundle(ExportRequest(table, bases[family], tmp_path / name, **given))

    return export


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (BuildOptions("none"), 1e-5),
        (BuildOptions("none", sampling="graph"), 1e-5),
        (BuildOptions("int8"), 0.1),
        (BuildOptions("int8", 0), 0.1),
        (BuildOptions("int4"), 0.75),  # as of an export: random weights are hard to round
    ],
    ids=["floats", "sampling", "int8", "int8-channel", "int4"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batches_are_near_torch(
    exported: Exported, bases: dict[str, Path], family: str, options: BuildOptions, limit: float
) -> None:
    result = exported(family, options=options)

    assert result.verdict == "passed", result.failures
    assert {parity.task for parity in result.parity} == {"tone", "ask", PREFIX_TASK["taskname"]}
    assert largest(result.parity) < limit
    again = verify_bundle(result.bundle, bases[family])
    assert again.passed, again.failures
    assert largest(again.parity) < limit
    assert len(again.selftests) == 3


def largest(parity: tuple[Parity, ...]) -> float:
    return max(each.relative_difference for each in parity)


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("mode", ["input", "baked"])
@pytest.mark.parametrize("sampling", ["host", "graph"])
def test_answers_are_those_of_onnx_runtime_in_any_company(
    exported: Exported, mode: str, sampling: Any
) -> None:
    """Caches grow while the longest row answers, and rows leave before others."""
    given: Any = {"options": BuildOptions("none", sampling=sampling), "prompts": mode}
    if sampling == "host":  # what a learned prefix opens with cannot be folded
        given |= {"tasks": ("tone", "ask"), "fold": "always"}
    there = exported(name="there", target="onnx-cpu", measure_parity=False, **given)
    here = exported(measure_parity=False, **given)
    requests = [request for request in REQUESTS if request.task in here.tasks]

    expected = Session.open(there.bundle).generate(requests)
    session = Session.open(here.bundle)

    assert [a.text for a in session.generate(requests)] == [a.text for a in expected]
    for request, answer in zip(requests, expected, strict=True):
        assert session.generate([request])[0].text == answer.text


def test_its_graph_has_no_function_and_gives_what_a_step_adds(exported: Exported) -> None:
    model = onnx.load(exported().bundle / "base" / "model.onnx", load_external_data=False)

    assert not model.functions
    assert not {node.domain for node in model.graph.node} - {""}
    outputs = {value.name: value.type.tensor_type.shape.dim for value in model.graph.output}
    assert [size.dim_param or size.dim_value for size in outputs["new_key.0"]] == [
        "batch",
        2,
        "seq",
        16,
    ]
    assert not any(name.startswith("present") for name in outputs)


def test_it_is_exported_without_the_extra_but_not_checked(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    fix = r"pip install 'pl-compile\[openvino\]'"

    result = exported()

    assert result.verdict == "not measured"
    assert all("'openvino' is not installed" in task.reason for task in result.forecast.tasks)
    with pytest.raises(ExportError, match=f"with --fold always: .*not installed.*{fix}"):
        exported(fold="always")
    for use in (Session.open, verify_bundle):
        with pytest.raises(MissingExtraError, match=f"'openvino' is not installed.*{fix}"):
            use(result.bundle)
    assert finding() == Finding(
        "target openvino: run",
        False,
        "the package 'openvino' is not installed. Install it with: pip install "
        "'pl-compile[openvino]'",
    )


def finding() -> Finding:
    return next(found for found in examine() if found.name == "target openvino: run")


def test_an_older_version_is_refused_by_its_number(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(measure_parity=False).bundle
    monkeypatch.setitem(sys.modules, "openvino", stand_in("2025.4.0-7-abc"))

    with pytest.raises(ArtifactError, match=r"openvino 2025\.4\.0; expected 2026\.4 or newer"):
        Session.open(bundle)

    assert not finding().works
    assert "openvino 2025.4.0" in finding().detail
    monkeypatch.setitem(sys.modules, "openvino", stand_in())
    assert finding() == Finding("target openvino: run", True, "2026.4.1")


@pytest.mark.usefixtures("runner")
def test_a_graph_of_another_target_is_refused_by_name(exported: Exported) -> None:
    """As bytes of a bundle whose manifest was altered."""
    there = exported(name="there", target="onnx-cpu", measure_parity=False).bundle
    call_it_openvino(there)

    with pytest.raises(ArtifactError, match=r"(matching|loading) .*model\.onnx.*: "):
        Session.open(there)


@pytest.mark.usefixtures("runner")
def test_a_damaged_file_is_refused_in_one_line(exported: Exported) -> None:
    bundle = exported(measure_parity=False).bundle
    model = bundle / "base" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-4000])
    sign_bundle(bundle)

    with pytest.raises(ArtifactError, match=r"loading .*model\.onnx: ") as error:
        Session.open(bundle)

    assert "\n" not in str(error.value)


NO_PRODUCT = "[CPU] node 'q' could not create a primitive descriptor for the inner product"


@pytest.mark.parametrize(
    ("said", "takes", "tried"),
    [
        (NO_PRODUCT, ("0",), ["32", "0"]),
        (NO_PRODUCT, (), ["32", "0"]),
        ("no memory", ("0",), ["32"]),  # nothing that other numbers would help against
    ],
    ids=["runs without them", "never runs", "another error"],
)
def test_activations_of_8_bits_are_left_out_where_openvino_cannot_run_them(
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    takes: tuple[str, ...],
    tried: list[str],
) -> None:
    bundle = exported(options=BuildOptions("int8"), measure_parity=False).bundle
    package = stand_in()
    groups: list[str] = []

    def compile_model(model: StandIn, device: str, options: Mapping[str, Any]) -> Any:
        groups.append(str(options["DYNAMIC_QUANTIZATION_GROUP_SIZE"]))
        return model if groups[-1] in takes else Refusing(model, said)

    package.Core = lambda: SimpleNamespace(read_model=StandIn, compile_model=compile_model)
    monkeypatch.setitem(sys.modules, "openvino", package)

    if tried[-1] in takes:
        assert Session.open(bundle).generate(REQUESTS[:1])[0].text
    else:
        with pytest.raises(ArtifactError, match=rf"running .*model\.onnx: {re.escape(said)}"):
            Session.open(bundle)
    assert groups == tried


class Refusing:
    """A compiled model that OpenVINO then cannot run."""

    def __init__(self, model: StandIn, said: str) -> None:
        self.inputs, self.outputs, self.said = model.inputs, model.outputs, said

    def create_infer_request(self) -> "Refusing":
        return self

    def set_tensor(self, name: str, tensor: Any) -> None:
        """Takes anything."""

    def infer(self) -> None:
        raise RuntimeError(f"Exception from a place:\n{self.said}\n")


@pytest.mark.usefixtures("runner")
def test_it_takes_no_provider_and_no_ranks(exported: Exported) -> None:
    bundle = exported(measure_parity=False).bundle

    with pytest.raises(RequestError, match="the provider cuda, and a bundle that does not run"):
        Session.open(bundle, provider=Provider("cuda"))
    with pytest.raises(ExportError, match="2 ranks; expected 1: its bases cannot be divided"):
        exported(name="ranks", options=BuildOptions("none", ranks=2))
    options = BuildOptions("none", ranks=2)
    there = exported(name="there", target="onnx-cpu", options=options, measure_parity=False).bundle
    call_it_openvino(there)
    with pytest.raises(ArtifactError, match="2 ranks of target 'openvino'"):
        Session.open(there)


def call_it_openvino(bundle: Path) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"onnx-cpu"', '"openvino"'))


@pytest.mark.usefixtures("runner")
def test_a_row_joins_others_of_any_length_and_stays_itself(exported: Exported) -> None:
    bundle = read_bundle(exported(measure_parity=False).bundle)
    graph = bundle.manifest.graph
    engine = OpenVinoEngine(bundle.base_folder / "model.onnx", graph, max_batch=3)
    prompt: Any = SimpleNamespace(
        rows=np.zeros((0, graph.hidden), np.float32), prefix_kv=None, task_id=0
    )

    def run(first: int, ids: list[list[int]], past: list[int]) -> Any:
        lengths, last = np.asarray(past), np.asarray([len(row) - 1 for row in ids])
        step = Step(first, np.asarray(ids), lengths, last, [prompt] * len(ids), [None] * len(ids))
        return engine.step(step)[0].copy()

    assert engine.admit(0, prompt) == 0
    run(0, [list(range(70))], [0])
    (alone,) = run(0, [[7]], [70])
    kept = engine.cached(0, 71)
    for row in (1, 2):
        engine.admit(row, prompt)
    run(1, [list(range(5))], [0])
    run(2, [list(range(70))], [0])
    mixed = run(1, [[7], [7]], [5, 70])

    assert np.abs(mixed[1] - alone).max() < 1e-4
    assert np.abs(engine.cached(2, 71) - kept).max() < 1e-4
    assert np.abs(mixed[0] - alone).max() > 1e-2
    assert (engine.cached(0, 71) == kept).all()
