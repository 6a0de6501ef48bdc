"""The runtime is light, quiet and works with what the base install brings."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.testing import random_table


def run_python(code: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_runtime_imports_no_heavy_library() -> None:
    code = (
        "import pl_compile.runtime, sys, json; print(json.dumps([m for m in "
        "('torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime', 'rich') if m in sys.modules]))"
    )

    assert json.loads(run_python(code)) == []


def test_the_command_line_imports_nothing_before_a_command_is_asked_for() -> None:
    code = (
        "import pl_compile.cli.main, sys, json; print(json.dumps([m for m in "
        "('numpy', 'torch', 'onnx', 'onnxruntime', 'rich', 'yaml') if m in sys.modules]))"
    )

    assert json.loads(run_python(code)) == []


@pytest.fixture(scope="module")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors")
    request = ExportRequest(table, tiny_bases["llama"], folder / "bundle", measure_parity=False)
    export_bundle(request)
    return folder / "bundle"


SERVE = """
import sys
from pl_compile.runtime import Request, Session
session = Session.open(sys.argv[1])
result, = session.generate([Request("tone", {"sentence": "so cold"})])
assert result.text in ("positive", "negative", "neutral")
"""


def test_serving_never_imports_torch_transformers_or_onnx(bundle: Path) -> None:
    heavy = "print([m for m in ('torch', 'transformers', 'onnx', 'onnx_ir') if m in sys.modules])"

    assert run_python(SERVE + heavy, str(bundle)).strip() == "[]"


def test_serving_opens_no_socket(bundle: Path, tmp_path: Path) -> None:
    # strace sees what the C++ library does too, but is not on every machine; /proc always is.
    watch = """
import os
links = []
for name in os.listdir("/proc/self/fd"):
    try: links.append(os.readlink("/proc/self/fd/" + name))
    except OSError: pass
print([link for link in links if link.startswith("socket:")])
print(sorted(k for k in os.environ if k.startswith("ORT_")))
"""
    lines = run_python(SERVE + watch, str(bundle)).splitlines()

    assert lines[0] == "[]"
    assert lines[1] == "['ORT_DISABLE_TELEMETRY', 'ORT_TELEMETRY_DISABLED']"


@pytest.mark.skipif(
    not find_spec("openvino"),
    reason="needs openvino: pip install 'pl-compile[openvino]'; on a stand-in: "
    "tests/export/test_openvino.py, test_the_package_is_imported_without_its_telemetry",
)
def test_serving_on_openvino_reports_to_nobody(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    """Imported as it comes, it sends where it runs to an address, and writes files for that."""
    table = random_table(tiny_bases["llama"], tmp_path / "table.safetensors")
    bundle, home = tmp_path / "bundle", tmp_path / "home"
    export_bundle(ExportRequest(table, tiny_bases["llama"], bundle, target="openvino"))
    home.mkdir()
    watch = """
import sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
"""
    report = "import threading; print(seen, threading.active_count(), 'openvino' in sys.modules)"

    # The variable would keep its telemetry quiet.
    said = run_python(watch + SERVE + report, str(bundle), env={"HOME": str(home), "CI": ""})

    assert said.strip() == "[] 1 True"
    assert list(home.rglob("*")) == []
