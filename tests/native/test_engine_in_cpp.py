"""The engines of the native runtime compute the bits that Python's compute."""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from engine_scripts import Script
from native_programs import PLAIN, SANITIZED, SOURCES, answers, built

from pl_compile.artifact.bundle import Bundle, read_bundle
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.onnxruntime.block_pool import BlockPool
from pl_compile.runtime.engines.opening import open_engine
from pl_compile.testing import random_table, write_tiny_base

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

CAPACITY, SLOTS, STEPS = 200, 4, 200

needs_kernels = pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: "
    "test_without_kernels_all_bits_are_those_of_python_without_them",
)

BUNDLES: dict[str, tuple[str, BuildOptions, dict[str, Any]]] = {
    "int8": ("native-cpu", BuildOptions("int8"), {}),
    "int4 chooses": ("native-cpu", BuildOptions("int4", sampling="graph", candidates=20), {}),
    "int8 in few bits": ("native-cpu", BuildOptions("int8", prefix_bits=8, cache_bits=16), {}),
    "int8 baked": ("native-cpu", BuildOptions("int8"), {"prompts": "baked", "fold": "never"}),
    "none": ("native-cpu", BuildOptions("none"), {}),
    "padded": ("onnx-cpu", BuildOptions("none"), {}),
    "padded baked": (
        "onnx-cpu",
        BuildOptions("int8", sampling="graph", candidates=20),
        {"prompts": "baked", "fold": "never"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_engine")


@pytest.fixture(scope="module")
def bundle_of(folder: Path) -> Callable[[str], Bundle]:
    """Exports tiny tasks: heads of 32, which 8-bit prefixes need, and a long context."""
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 900
    for name in ("num_attention_heads", "num_key_value_heads"):
        config[name] //= 2
    config["head_dim"] *= 2
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    table = random_table(base, folder / "table.safetensors", prefix=True)

    def export(name: str) -> Bundle:
        target, options, changes = BUNDLES[name]
        place = folder / name.replace(" ", "_")
        if not place.exists():
            request = ExportRequest(
                table,
                base,
                place,
                target=target,
                options=options,
                capacity=None if options.prefix_bits == 8 else CAPACITY,
                measure_parity=False,
                **changes,
            )
            export_bundle(request)
        return read_bundle(place)

    return export


def onnxruntime_library() -> Path:
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    libraries = sorted(Path(found.origin).parent.glob("capi/libonnxruntime.so*"))
    if not libraries:
        pytest.skip(
            "needs an onnxruntime package with libonnxruntime.so; without it: "
            "tests/native/test_c_interface.py on a session without a base"
        )
    return libraries[0]


def sanitized(folder: Path) -> Path:
    library = kernels.library_path()
    return built(folder, "engine_program.cc", *SANITIZED, kernels=library)


def options_of(bundle: Bundle, **changes: Any) -> list[str]:
    """What the program is told of a graph and of its engine."""
    graph, precision = bundle.manifest.graph, bundle.manifest.precision
    options: dict[str, Any] = {
        "model": bundle.base_folder / "model.onnx",
        "onnxruntime": onnxruntime_library(),
        "threads": 2,
        "spin": 0,
        "max_batch": SLOTS,
        "quantization": precision.quantization,
        "prefix_bits": precision.prefix_bits,
        "cache_bits": precision.cache_bits,
        "logit_tiles": int(graph.logit_tiles),
        "sampling_inputs": ",".join(graph.sampling_inputs),
    }
    sizes = ("layers", "kv_heads", "head_dim", "hidden", "vocab", "capacity")
    for name in (*sizes, "prompts", "candidates", "rows"):
        options[name] = getattr(graph, name)
    return [f"{name}={value}" for name, value in (options | changes).items() if value != ""]


def expect_same(command: list[Any], script: Script) -> None:
    found = answers(command, script.lines)

    for number, (one, other) in enumerate(zip(found, script.expected, strict=True)):
        assert one == other, (number, script.lines[number][:300], one[:300], other[:300])


@pytest.mark.parametrize("name", [pytest.param(each, marks=needs_kernels) for each in BUNDLES])
def test_every_step_has_the_bits_of_python(
    name: str, folder: Path, bundle_of: Callable[[str], Bundle]
) -> None:
    bundle = bundle_of(name)
    engine = open_engine(bundle, max_batch=SLOTS, threads=2)
    tasks = max(1, len(bundle.manifest.graph.baked_tasks))
    script = Script(engine, bundle.manifest.graph, seed=5, tasks=tasks)

    script.run(STEPS)

    expect_same([sanitized(folder), *options_of(bundle)], script)
    assert (script.shared > 0) == name.startswith("int")


@needs_kernels
def test_long_prefixes_of_8_bits_are_held_as_codes(
    folder: Path, bundle_of: Callable[[str], Bundle]
) -> None:
    bundle = bundle_of("int8 in few bits")
    engine = open_engine(bundle, max_batch=SLOTS, threads=2)
    script = Script(engine, bundle.manifest.graph, seed=6)
    script.new_prompt(300)
    script.prompts = script.prompts[-1:]
    assert bundle.manifest.graph.capacity > 500

    script.run(15)

    expect_same([sanitized(folder), *options_of(bundle)], script)


@needs_kernels
def test_rows_share_nothing_where_nothing_is_kept(
    folder: Path, bundle_of: Callable[[str], Bundle]
) -> None:
    bundle = bundle_of("int8")
    engine = open_engine(bundle, max_batch=SLOTS, threads=2, context_mib=0)
    script = Script(engine, bundle.manifest.graph, seed=7)

    script.run(20)

    expect_same([sanitized(folder), *options_of(bundle, context_mib=0)], script)
    assert script.shared == 0


@pytest.mark.parametrize("name", ["int8", "int8 in few bits"])
def test_without_kernels_all_bits_are_those_of_python_without_them(
    name: str,
    folder: Path,
    bundle_of: Callable[[str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = bundle_of(name)
    monkeypatch.setattr(kernels, "library_path", lambda: None)
    engine = open_engine(bundle, max_batch=SLOTS, threads=2)
    script = Script(engine, bundle.manifest.graph, seed=8)

    script.run(30)

    program = built(folder, "engine_program.cc", *PLAIN)
    expect_same([program, *options_of(bundle)], script)


@needs_kernels
def test_feeds_that_no_row_can_be_given_are_refused(
    folder: Path, bundle_of: Callable[[str], Bundle]
) -> None:
    bundle = bundle_of("int8")
    graph = bundle.manifest.graph
    rows = np.zeros((2, graph.hidden), np.float32).tobytes().hex()
    begin = ["open", f"prompt a 0 {rows} 0 -", "admit 0 a", "share 0 5,6,7"]
    wrong = {
        "step 1:0:5:-:-:-:-": "no row, or two feeds for it",
        "step 0:0:5:-:-:-:- 0:1:5:-:-:-:-": "no row, or two feeds for it",
        "step 0:0:-:-:-:-:-": "no tokens; expected at least one",
        "step 0:9:5:-:-:-:-": "9 entries before them; expected at most 0",
        f"step 0:0:{graph.vocab + 2}:-:-:-:-": f"token {graph.vocab + 2}; expected 0 to",
        "step 0:0:-1:-:-:-:-": "token -1; expected 0 to",
        f"step 0:0:{','.join(['5'] * 201)}:-:-:-:-": "201 tokens after 0 entries",
        "step 0:0:5,6:1,0:-:-:-": "logits after token 0; expected ascending places below 2",
        "step 0:0:5,6:2:-:-:-": "logits after token 2; expected ascending places below 2",
        "step 0:0:5,6:-:-1,1:-:-": "token 1 follows 1; expected -1 or one before it",
        "step 0:0:5,6:-:-1:-:-": "1 parents; expected 2",
        f"step 0:0:5:-:-:{graph.vocab}:-": f"the logit of token {graph.vocab} is looked at",
        "step 0:0:5:-:-:-:00000000/1/0000803f/00000000/00000000": "a draw among 1 tokens",
        "step 0:0:8:-:-:-:-": "other tokens than those that it was to share",
        "admit 0 a": "the slot has a row",
        "admit 4 a": "there is no such slot; expected one below 4",
    }
    after = ["share 7 5,6", "alike 0 9", "retire 9,3", "clear 9", "step 0:0:5,6,7:-:-:none:-"]

    found = answers([sanitized(folder), *options_of(bundle)], [*begin, *wrong, *after])

    for said, expected in zip(found[len(begin) :], wrong.values(), strict=False):
        assert said.startswith("refused computing tokens of the row in slot ")
        assert expected in said
    assert found[-5:-1] == ["0", "0", "done", "done"]
    assert found[-1].startswith("-1:")


@pytest.fixture
def whole(bundle_of: Callable[[str], Bundle]) -> Bundle:
    return bundle_of("int8")


def opened(folder: Path, options: list[str], **environment: str) -> str:
    program = built(folder, "engine_program.cc", *PLAIN)
    done = subprocess.run(
        [str(program), *options],
        input="open\n",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def without(options: list[str], name: str) -> list[str]:
    return [each for each in options if not each.startswith(name + "=")]


@pytest.fixture(scope="module")
def stub(folder: Path) -> Callable[[str], Path]:
    """A library that says a version, and whether telemetry was off before it was loaded."""

    def make(name: str) -> Path:
        source = folder / f"{name}.c"
        base = (
            "#include <stdio.h>\n#include <stdlib.h>\n"
            "static char text[200];\n"
            "__attribute__((constructor)) static void begin(void) {\n"
            '  const char *a = getenv("ORT_DISABLE_TELEMETRY");\n'
            '  const char *b = getenv("ORT_TELEMETRY_DISABLED");\n'
            '  snprintf(text, sizeof text, "%s off:%s%s", VERSION, a ? a : "", b ? b : "");\n'
            "}\n"
            "static const void *api(unsigned version) { return 0; }\n"
            "static const char *version(void) { return text; }\n"
            "static const void *table[2] = {api, version};\n"
        )
        if name != "other":
            base += "const void *OrtGetApiBase(void) { return table; }\n"
        source.write_text(base)
        library = folder / f"lib{name}.so"
        version = f'-DVERSION="{name}"'
        command = ["gcc", "-shared", "-fPIC", "-w", version, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        return library

    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to make a library; without it: the tests with ONNX Runtime's own")
    return make


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("1.10.0", "lib1.10.0.so is version 1.10.0 off:11; expected version 1.23 or a later one."),
        ("0.99.0", "is version 0.99.0 off:11; expected version 1.23"),
        ("1.x", "is version 1.x off:11; expected version 1.23"),
        ("1.24.0", "version 1.24.0 off:11, lacks interface 23; expected version 1.23"),
        ("2.0.0", "version 2.0.0 off:11, lacks interface 23; expected version 1.23"),
        ("other", "libother.so is another library: it has no OrtGetApiBase; expected version 1.23"),
    ],
)
def test_a_library_that_is_too_old_or_another_is_refused(
    name: str, found: str, folder: Path, stub: Callable[[str], Path]
) -> None:
    said = opened(folder, [f"onnxruntime={stub(name)}"])

    assert said.startswith("refused opening ONNX Runtime: ")
    assert found in said
    assert said.endswith("or in the environment variable PLC_ONNXRUNTIME.")


def test_a_library_that_is_not_there_is_refused_with_what_was_tried(folder: Path) -> None:
    clean = {"PLC_ONNXRUNTIME": "", "ORT_LIB_PATH": ""}
    assert "no library opens (/no/where.so: " in opened(folder, ["onnxruntime=/no/where.so"])
    said = opened(folder, [], **(clean | {"PLC_ONNXRUNTIME": "/of/ours.so", "ORT_LIB_PATH": "/x"}))
    assert "no library opens (/of/ours.so: " in said
    assert "(/of/theirs.so: " in opened(folder, [], **(clean | {"ORT_LIB_PATH": "/of/theirs.so"}))
    said = opened(folder, [], **clean, LD_LIBRARY_PATH=str(folder / "none"))
    if said.startswith("refused opening"):  # the system may have one
        assert "libonnxruntime.so.1: cannot open" in said
        assert ", and libonnxruntime.so: cannot open" in said
        assert "pip install onnxruntime" in said


def test_a_library_in_the_environment_is_used(folder: Path, whole: Bundle) -> None:
    library = str(onnxruntime_library())
    options = without(options_of(whole), "onnxruntime")

    assert opened(folder, options, PLC_ONNXRUNTIME=library) == "256,0,0"


def damages(whole: bytes) -> Iterator[bytes]:
    random = Random(9)
    for _ in range(25):
        yield whole[: random.randrange(len(whole))]
    for _ in range(25):
        changed = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            changed[random.randrange(len(changed))] = random.randrange(256)
        yield bytes(changed)


@needs_kernels
def test_a_damaged_model_is_refused_or_opens(folder: Path, whole: Bundle, tmp_path: Path) -> None:
    """Whatever ONNX Runtime makes of it: no crash of ours, and an error names the file."""
    shutil.copytree(whole.base_folder, tmp_path / "base")
    good = (tmp_path / "base" / "model.onnx").read_bytes()
    models = [tmp_path / "base" / f"{number}.onnx" for number in range(50)]
    for model, damaged in zip(models, damages(good), strict=True):
        model.write_bytes(damaged)
    lines = [f"open {model}" for model in models]
    command = [str(sanitized(folder)), *options_of(whole)]

    # What ONNX Runtime says of a damaged name need not be UTF-8.
    done = subprocess.run(
        command, input="\n".join(lines).encode(), capture_output=True, check=False
    )

    assert not done.returncode, done.stderr[-2000:]
    found = done.stdout.removesuffix(b"\n").split(b"\n")
    refused = 0
    for model, said in zip(models, found, strict=True):
        if said.startswith(b"refused"):
            refused += 1
            assert str(model).encode() in said
    assert refused > 20


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"vocab": 7}, "'logits' tensor(float) ['outputs', "),
        ({"layers": 3}, "'past_key.2' is not there; expected tensor(float) ['blocks', "),
        ({"layers": 1}, "'past_key.1' tensor(float) ['blocks', "),
        ({"cache_bits": 16}, "'past_key.0' tensor(float) ['blocks', "),
        (
            {"rows": "padded"},
            "'block_tables' tensor(int64) ['rows', 'width']; expected no such name",
        ),
        ({"prompts": "baked"}, "'prompt_table' tensor(float) [1, 'prompt_rows', "),
    ],
)
def test_a_graph_that_is_not_that_of_the_manifest_is_refused(
    changes: dict[str, Any], found: str, folder: Path, whole: Bundle
) -> None:
    said = opened(folder, options_of(whole, **changes))

    assert said.startswith(
        f"refused matching {whole.base_folder / 'model.onnx'} with the manifest: "
    )
    assert found in said
    assert said.endswith("The manifest was altered: export the bundle again.")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"max_batch": 0}, "0 rows at once; expected 1 to 65536"),
        ({"ranks": 2}, "a base that is divided among 2 ranks; expected one"),
        ({"threads": 5000}, "5000 threads; expected at most 4096"),
        ({"provider": "cuda"}, "the provider cuda, and a graph whose caches lie in blocks"),
        ({"provider": "abacus"}, "choosing the execution provider abacus: no such provider"),
        ({"provider_option": "a:b"}, "provider cpu: options, and this provider takes none"),
        (
            {"provider": "ours", "library": "/no/where.so"},
            "choosing the execution provider ours: /no/where.so does not load: ",
        ),
    ],
)
def test_what_an_engine_cannot_be_opened_with_is_said(
    changes: dict[str, Any], found: str, folder: Path, whole: Bundle
) -> None:
    said = opened(folder, options_of(whole, **changes))

    assert said.startswith("refused ")
    assert found in said


def test_cuda_is_refused_by_a_library_without_it(
    folder: Path, bundle_of: Callable[[str], Bundle]
) -> None:
    said = opened(folder, options_of(bundle_of("padded"), provider="cuda"))

    assert said.startswith("refused choosing the execution provider cuda: ")


@needs_kernels
def test_a_set_that_the_processor_lacks_is_refused(
    folder: Path, whole: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLC_KERNELS", "avx1024")

    (said,) = answers([sanitized(folder), *options_of(whole)], ["open"])

    assert "choosing kernels for this processor: PLC_KERNELS names none of " in said
    assert "Unset PLC_KERNELS" in said


def key_of(number: int) -> bytes:
    return f"{number}".encode()


def test_the_pool_of_blocks_does_what_python_s_does(folder: Path) -> None:
    lines: list[str] = []
    expected: list[str] = []

    def say(line: str, answer: object) -> None:
        lines.append(line)
        expected.append("none" if answer is None else str(answer))

    for seed in range(60):
        random, keep = Random(seed), seed % 7
        pool, rows = BlockPool(40 + keep, keep), [list[int]() for _ in range(4)]
        say(f"pool {40 + keep} {keep}", "done")
        for _ in range(120):
            row = random.choice(rows)
            key = random.randrange(30)
            for _ in range(random.randint(0, 3)):
                if len(row) < 10:
                    say("take", pool.take())
                    row.append(int(expected[-1]))
            if len(row) < 10:
                found = pool.find(key_of(key))
                say(f"find {key}", found)
                row.extend([] if found is None or found in row else [found])
                if found is not None and row[-1] != found:
                    pool.give_back([found])
                    say(f"giveback {found}", "done")
            if row and random.random() < 0.7:
                block = random.choice(row)
                pool.name(block, key_of(key))
                say(f"name {block} {key}", "done")
            if random.random() < 0.1:
                blocks = [*row, *random.choice([each for each in rows if each is not row])]
                forgotten = sorted(pool.forget(blocks))
                say(f"forgetblocks {','.join(map(str, blocks)) or '-'}", _list(forgotten))
            if random.random() < 0.3:
                pool.give_back(row)
                say(f"giveback {','.join(map(str, row)) or '-'}", "done")
                row.clear()
                say("idle", _list([end for run in pool.idle() for end in run]))
            say("counts", _list([pool.kept, pool.evicted]))

    found_lines = answers([built(folder, "engine_program.cc", *PLAIN)], lines)

    assert found_lines == expected


def _list(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


def test_sums_are_those_of_siphash(folder: Path) -> None:
    """The vectors of the reference implementation, for texts of 0 and of 8 bytes."""
    key = [int.from_bytes(bytes(range(begin, begin + 8)), "little") for begin in (0, 8)]
    word = int.from_bytes(bytes(range(8)), "little")
    lines = [f"hash {key[0]} {key[1]} -", f"hash {key[0]} {key[1]} {word}"]

    found = answers([built(folder, "engine_program.cc", *PLAIN)], lines)

    assert found == ["a3817f04ba25a8e66df67214c7550293", "3b62a9ba6258f5610f83e264f31497b4"]


def test_numbers_of_16_bits_are_rounded_as_in_numpy(folder: Path) -> None:
    edges = [0.0, -0.0, 1.0, 65504.0, 65519.99, 65520.0, 1e30, 2.0**-24, 2.0**-25, 3 * 2.0**-26]
    random = np.random.default_rng(3)
    bits = random.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    small = (random.standard_normal(20000) * 2.0 ** random.integers(-30, 16, 20000)).astype("<f4")
    numbers = np.concatenate(
        [np.asarray([*edges, np.inf, -np.inf], np.float32), bits[~np.isnan(bits)], small]
    )
    lines = [f"{kind} {numbers.tobytes().hex()}" for kind in ("half", "bfloat")]

    half, bfloat = answers([built(folder, "engine_program.cc", *PLAIN)], lines)

    with np.errstate(over="ignore"):
        assert half == numbers.astype(np.float16).tobytes().hex()
    wide = numbers.view(np.uint32).astype(np.uint64)
    rounded = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    assert bfloat == rounded.tobytes().hex()


def test_slots_have_the_numbers_of_the_header(tmp_path: Path) -> None:
    """The tests above call through nearly every slot; this one says which is wrong."""
    include = os.environ.get("ORT_INCLUDE_DIR")
    if include is None or shutil.which("g++") is None:
        pytest.skip(
            "needs g++, and ONNX Runtime's header in ORT_INCLUDE_DIR; without them: the tests "
            "above and in test_fake_device.py, which call through every slot but those of CUDA"
        )
    names = {
        "kErrorMessage": "GetErrorMessage",
        "kCreateEnv": "CreateEnv",
        "kDisableTelemetry": "DisableTelemetryEvents",
        "kCreateSession": "CreateSession",
        "kCreateOptions": "CreateSessionOptions",
        "kSetLogSeverity": "SetSessionLogSeverityLevel",
        "kSetThreads": "SetIntraOpNumThreads",
        "kGraphInputCount": "SessionGetInputCount",
        "kGraphOutputCount": "SessionGetOutputCount",
        "kGraphInputType": "SessionGetInputTypeInfo",
        "kGraphOutputType": "SessionGetOutputTypeInfo",
        "kGraphInputName": "SessionGetInputName",
        "kGraphOutputName": "SessionGetOutputName",
        "kCreateTensor": "CreateTensorWithDataAsOrtValue",
        "kTensorOfType": "CastTypeInfoToTensorInfo",
        "kElementType": "GetTensorElementType",
        "kAxes": "GetDimensionsCount",
        "kSizes": "GetDimensions",
        "kSizeNames": "GetSymbolicDimensions",
        "kCreateCpuMemory": "CreateCpuMemoryInfo",
        "kTake": "AllocatorAlloc",
        "kFree": "AllocatorFree",
        "kDefaultAllocator": "GetAllocatorWithDefaultOptions",
        "kFreeStatus": "ReleaseStatus",
        "kFreeMemory": "ReleaseMemoryInfo",
        "kFreeSession": "ReleaseSession",
        "kFreeValue": "ReleaseValue",
        "kFreeType": "ReleaseTypeInfo",
        "kFreeOptions": "ReleaseSessionOptions",
        "kAddEntry": "AddSessionConfigEntry",
        "kRunBound": "RunWithBinding",
        "kCreateBinding": "CreateIoBinding",
        "kFreeBinding": "ReleaseIoBinding",
        "kBindInput": "BindInput",
        "kBindOutput": "BindOutput",
        "kAppendCuda": "SessionOptionsAppendExecutionProvider_CUDA_V2",
        "kCreateCuda": "CreateCUDAProviderOptions",
        "kUpdateCuda": "UpdateCUDAProviderOptions",
        "kFreeCuda": "ReleaseCUDAProviderOptions",
        "kRegisterPlugIn": "RegisterExecutionProviderLibrary",
        "kDevices": "GetEpDevices",
        "kAppendDevices": "SessionOptionsAppendExecutionProvider_V2",
        "kDeviceProvider": "EpDevice_EpName",
        "kMemoryType": "MemoryInfoGetDeviceType",
        "kMemoryVendor": "MemoryInfoGetVendorId",
        "kDeviceMemory": "EpDevice_MemoryInfo",
        "kSharedAllocator": "GetSharedAllocator",
        "kCopy": "CopyTensors",
    }
    checks = "".join(
        f"static_assert(offsetof(OrtApi, {theirs}) == plc::ort::{ours}.number * sizeof(void*));\n"
        for ours, theirs in names.items()
    )
    source = tmp_path / "slots.cc"
    headers = ("<cstddef>", '"onnxruntime_c_api.h"', '"onnxruntime_slots.h"')
    source.write_text("".join(f"#include {header}\n" for header in headers) + checks)
    flags = ["-std=c++17", "-w", "-fsyntax-only", f"-I{include}", f"-I{SOURCES}"]
    done = subprocess.run(["g++", *flags, str(source)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
