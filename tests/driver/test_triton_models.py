"""`plc export --triton`: the model is loaded and called as Triton's Python backend does it.

Triton itself was never run: a module stands in for what it gives to a model, and `config.pbtxt` is
read by protobuf with the part of Triton's schema that it uses.
"""

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    text_format,
)

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.driver.write_triton import files_of_triton_model, write_triton_model
from pl_compile.errors import ArtifactError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.testing import random_table

STAND_IN = Path(__file__).parent / "triton_stand_in"
ASK = {"question": "who?", "place": "a"}


@pytest.fixture(scope="module")
def table(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_table(tiny_bases["llama"], tmp_path_factory.mktemp("table") / "t.safetensors")


@pytest.fixture(scope="module")
def export(tiny_bases: dict[str, Path], table: Path) -> Callable[..., Path]:
    def run(output: Path, **options: Any) -> Path:
        request = ExportRequest(
            table, tiny_bases["llama"], output, triton=True, measure_parity=False, **options
        )
        return export_bundle(request).bundle

    return run


@pytest.fixture(scope="module")
def repository(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with one model, "desk"."""
    folder = tmp_path_factory.mktemp("models")
    assert export(folder / "desk", capacity=80) == folder / "desk" / "1" / "bundle"
    return folder


# As Triton reads it

# The part of inference.ModelConfig (model_config.proto of triton-inference-server/common) in use:
# message, field, type, whether it repeats. The numbers of fields do not matter for text.
DATA_TYPES = ("TYPE_BOOL", "TYPE_INT64", "TYPE_FP32", "TYPE_STRING")
KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
SCHEMA = {
    "Parameter": [("string_value", "string", False)],
    "Entry": [("key", "string", False), ("value", "Parameter", False)],
    "Policy": [("decoupled", "bool", False)],
    "Group": [("name", "string", False), ("kind", "Kind", False), ("count", "int32", False)],
    "Tensor": [
        ("name", "string", False),
        ("data_type", "DataType", False),
        ("dims", "int64", True),
        ("optional", "bool", False),
    ],
    "ModelConfig": [
        ("name", "string", False),
        ("backend", "string", False),
        ("max_batch_size", "int32", False),
        ("input", "Tensor", True),
        ("output", "Tensor", True),
        ("instance_group", "Group", True),
        ("model_transaction_policy", "Policy", False),
        ("parameters", "Entry", True),
    ],
}


def read_config(text: str) -> dict[str, Any]:
    """A `config.pbtxt` as a mapping; raises where Triton's schema does not allow it."""
    file = descriptor_pb2.FileDescriptorProto(name="part.proto", package="part", syntax="proto3")
    for name, values in (("DataType", DATA_TYPES), ("Kind", KINDS)):
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind, repeats) in enumerate(fields, 1):
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if repeats else field.LABEL_OPTIONAL
            if kind in SCHEMA or kind in ("DataType", "Kind"):
                field.type = field.TYPE_MESSAGE if kind in SCHEMA else field.TYPE_ENUM
                field.type_name = f".part.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("part.ModelConfig"))
    content: dict[str, Any] = json_format.MessageToDict(
        text_format.Parse(text, kind()),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return content


def test_the_config_is_read_by_protobuf(repository: Path) -> None:
    config = read_config((repository / "desk" / "config.pbtxt").read_text(encoding="utf-8"))

    def tensor(name: str, kind: str = "TYPE_STRING", optional: bool = False) -> dict[str, Any]:
        return {"name": name, "data_type": kind, "dims": ["1"], "optional": optional}

    assert config == {
        "name": "",  # Triton takes that of the folder
        "backend": "python",
        "max_batch_size": 0,
        "model_transaction_policy": {"decoupled": True},
        "input": [
            tensor("task"),
            tensor("fields"),
            tensor("options", optional=True),
            tensor("stream", "TYPE_BOOL", optional=True),
        ],
        "output": [tensor("text"), tensor("result")],
        "instance_group": [{"name": "", "count": 1, "kind": "KIND_CPU"}],
        "parameters": [],
    }


def test_parameters_in_the_comments_are_right(tmp_path: Path) -> None:
    write_triton_model(tmp_path, "tensorrt-rtx")
    text = (tmp_path / "config.pbtxt").read_text(encoding="utf-8")
    config = read_config(text.replace("# parameters", "parameters"))

    named = {each["key"]: each["value"]["string_value"] for each in config["parameters"]}
    assert named == {"max_batch": "16", "threads": "8"}
    assert config["instance_group"][0]["kind"] == "KIND_MODEL"


def test_a_misspelt_field_would_be_seen() -> None:
    with pytest.raises(text_format.ParseError, match="max_batch"):
        read_config("max_batch: 0")


# As Triton calls it


class Loaded:
    """A model as Triton's Python backend loads it."""

    def __init__(self, folder: Path, **parameters: str) -> None:
        # The module of version 1 of a model is "1.model", with the model's folder on the path.
        self.api = importlib.import_module("triton_python_backend_utils")
        self.model = importlib.import_module("1.model").TritonPythonModel()
        config = read_config((folder / "config.pbtxt").read_text(encoding="utf-8"))
        given = {key: {"string_value": value} for key, value in parameters.items()}
        self.model.initialize(
            {
                "model_config": json.dumps({**config, "parameters": given}),
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
                "model_repository": str(folder),
                "model_version": "1",
                "model_name": folder.name,
            }
        )
        self.outputs = {tensor["name"] for tensor in config["output"]}

    def request(self, task: Any, fields: Any, stream: bool | None = None, **options: Any) -> Any:
        """A request of Triton's."""
        texts = {
            "task": task,
            "fields": fields if isinstance(fields, bytes) else json.dumps(fields),
        }
        if options:
            texts["options"] = json.dumps(options)
        inputs = [
            self.api.Tensor(
                name, np.array([text if isinstance(text, bytes) else text.encode()], np.object_)
            )
            for name, text in texts.items()
        ]
        if stream is not None:
            inputs.append(self.api.Tensor("stream", np.array([stream])))
        return self.api.InferenceRequest(inputs)

    def execute(self, *requests: Any) -> None:
        assert self.model.execute(list(requests)) is None  # as a decoupled model must

    def answers(self, request: Any) -> list[dict[str, str]]:
        """What was sent for a request, the texts of its outputs by name."""
        return [
            {tensor.name(): tensor.as_numpy()[0].decode() for tensor in response.output_tensors()}
            for response in self.responses(request)
        ]

    def responses(self, request: Any) -> list[Any]:
        assert request.sender.ended.wait(60)
        responses: list[Any] = request.sender.responses
        for response in responses:
            names = {tensor.name() for tensor in response.output_tensors()}
            assert names == (set() if response.has_error() else self.outputs)
        return responses

    def error(self, request: Any) -> tuple[str, int]:
        (response,) = self.responses(request)
        assert response.has_error()
        return response.error().message(), response.error().code()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Loaded]]:
    models = []
    monkeypatch.syspath_prepend(str(STAND_IN))

    def run(folder: Path, **parameters: str) -> Loaded:
        monkeypatch.syspath_prepend(str(folder))
        models.append(Loaded(folder, **parameters))
        return models[-1]

    yield run
    for loaded in models:
        loaded.model.finalize()
    for name in ("1", "1.model", "triton_python_backend_utils"):
        sys.modules.pop(name, None)


def test_requests_of_several_tasks_are_answered_as_by_a_session(
    repository: Path, load: Callable[..., Loaded]
) -> None:
    loaded = load(repository / "desk", max_batch="3", threads="1")
    requests = [
        loaded.request("ask", {"question": "who?" * n, "place": "a"}, max_tokens=9, temperature=0.7)
        for n in range(1, 8)
    ]
    requests.insert(2, loaded.request("tone", {"sentence": "so cold"}))

    loaded.execute(*requests[:5])
    loaded.execute(*requests[5:])

    with Session.open(repository / "desk" / "1" / "bundle") as session:
        expected = session.generate(
            [
                Request("ask", {"question": "who?" * n, "place": "a"}, 9, sampling=Sampling(0.7))
                for n in range(1, 8)
            ]
        )
        expected.insert(2, session.generate([Request("tone", {"sentence": "so cold"})])[0])
    assert loaded.model._session.engine.max_batch == 3
    for request, result in zip(requests, expected, strict=True):
        ((answer),) = loaded.answers(request)
        assert answer["text"] == result.text
        whole = json.loads(answer["result"])
        assert whole["token_ids"] == list(result.token_ids)
        assert whole["finish_reason"] == result.finish_reason
        assert whole["prompt_tokens"] == result.prompt_tokens


def test_pieces_of_a_stream_make_the_text(repository: Path, load: Callable[..., Loaded]) -> None:
    loaded = load(repository / "desk")
    request = loaded.request("ask", ASK, stream=True, max_tokens=20, min_tokens=20)

    loaded.execute(request)

    *pieces, last = loaded.answers(request)
    assert len(pieces) > 3
    assert {piece["result"] for piece in pieces} == {""}
    whole = json.loads(last["result"])
    assert "".join(piece["text"] for piece in [*pieces, last]) == whole["text"]
    assert len(whole["token_ids"]) == 20


@pytest.mark.parametrize(
    ("task", "fields", "options", "said"),
    [
        ("nobody", ASK, {}, "task 'nobody' does not exist"),
        ("ask", {}, {}, "question"),
        ("ask", b"{", {}, "fields: Expecting property name"),
        ("ask", b"[]", {}, "fields [], expected a mapping"),
        ("ask", b"\xff{}", {}, "reading the input 'fields'"),
        ("ask", ASK, {"max_token": 3}, "Did you mean 'max_tokens'?"),
        ("ask", ASK, {"max_tokens": "3"}, "max_tokens '3'"),
        ("ask", ASK, {"temperature": -1}, "temperature -1"),
    ],
)
def test_a_wrong_request_is_an_error_of_that_request(
    repository: Path,
    load: Callable[..., Loaded],
    task: str,
    fields: Any,
    options: dict[str, Any],
    said: str,
) -> None:
    loaded = load(repository / "desk")
    wrong, right = loaded.request(task, fields, **options), loaded.request("ask", ASK)

    loaded.execute(wrong, right)

    message, code = loaded.error(wrong)
    assert said in message
    assert code == loaded.api.TritonError.INVALID_ARG
    assert loaded.answers(right)[0]["result"]


def test_a_fault_of_ours_is_logged_and_not_told(
    repository: Path, load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(repository / "desk")
    monkeypatch.setattr(loaded.model._session, "stream", lambda _: iter([1 / 0]))
    request = loaded.request("ask", ASK)

    loaded.execute(request)

    message, code = loaded.error(request)
    assert message == "an error of the server; its log says more"
    assert code == loaded.api.TritonError.INTERNAL
    assert "ZeroDivisionError" in loaded.api.Logger.errors[-1]


def test_a_cancelled_request_leaves_its_slot(repository: Path, load: Callable[..., Loaded]) -> None:
    loaded = load(repository / "desk", max_batch="1")
    request = loaded.request("ask", ASK, stream=True, max_tokens=40, min_tokens=40)
    request.sender.go_on.clear()
    loaded.execute(request)
    assert request.sender.has_first.wait(60)

    request.sender.cancelled = True
    request.sender.go_on.set()

    *_, last = loaded.responses(request)
    assert last.error().code() == loaded.api.TritonError.CANCELLED
    after = loaded.request("ask", ASK)
    loaded.execute(after)
    assert loaded.answers(after)[0]["result"]


def test_requests_beyond_the_slots_wait_in_tritons_queue(
    repository: Path, load: Callable[..., Loaded]
) -> None:
    loaded = load(repository / "desk", max_batch="1")
    first, second = loaded.request("ask", ASK, stream=True), loaded.request("ask", ASK)
    first.sender.go_on.clear()
    loaded.execute(first)
    assert first.sender.has_first.wait(60)

    taking = threading.Thread(target=loaded.execute, args=(second,))
    taking.start()
    taking.join(0.2)

    assert taking.is_alive()
    first.sender.go_on.set()
    taking.join(60)
    assert loaded.answers(second)[0]["result"]


def test_a_parameter_that_is_no_number_is_refused_by_name(
    repository: Path, load: Callable[..., Loaded]
) -> None:
    from pl_compile.errors import RequestError

    with pytest.raises(RequestError, match="max_batch 'many'"):
        load(repository / "desk", max_batch="many")


# As it is written


def test_a_model_is_replaced_by_a_model(export: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    export(folder, capacity=80)
    (folder / "1" / "__pycache__").mkdir()
    (folder / "1" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"by Triton")

    bundle = export(folder, capacity=64)

    assert verify_bundle(bundle).passed
    assert not (folder / "1" / "__pycache__").exists()


def test_what_is_not_of_an_export_is_not_replaced(
    export: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "desk"
    export(folder)
    (folder / "2").mkdir()
    (folder / "2" / "model.py").write_text("mine")

    with pytest.raises(ArtifactError, match=r"2/model\.py"):
        export(folder)

    assert (folder / "2" / "model.py").read_text() == "mine"


def test_a_bundle_is_not_taken_for_a_model(export: Callable[..., Path], repository: Path) -> None:
    assert files_of_triton_model(repository / "desk" / "1" / "bundle") == frozenset()
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        export(repository / "desk" / "1" / "bundle")


def test_nothing_is_left_of_an_export_that_fails(
    export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pl_compile.driver.export.write_manifest", fails)

    with pytest.raises(ArtifactError, match="No space left"):
        export(tmp_path / "models" / "desk")

    assert list((tmp_path / "models").iterdir()) == []


def test_the_model_needs_the_runtime_only(repository: Path) -> None:
    program = f"""
import sys
sys.path[:0] = [{str(STAND_IN)!r}, {str(repository / "desk")!r}]
__import__("1.model")
print(sorted({{"torch", "transformers", "onnx", "onnx_ir"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
