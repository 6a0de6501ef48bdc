"""The TensorRT plugin that sums over ranks: its names, and its host code with a stand-in for NCCL.

What needs g++ or the headers is skipped without them. Siblings that run everywhere read the source:

    test_names_are_those_that_engines_are_written_with
    test_exported_are_what_the_registry_and_the_runtime_look_for

and tests/export/test_tensorrt_guards.py checks what guards and interpreter make of its calls.
Nothing here needs TensorRT, NCCL or a GPU, and so nothing here shows that TensorRT accepts the
plugin or that NCCL sums.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pl_compile.all_reduce_plugin import VARIABLE, load_plugin
from pl_compile.errors import RankError
from pl_compile.passes.use_all_reduce_plugin import ALL_REDUCE_PLUGIN, RANKS_ATTRIBUTE

SOURCE = Path(__file__).parents[2] / "runtime" / "plugins" / "all_reduce.cc"
HEADERS = {
    "TENSORRT_INCLUDE_DIR": "NvInfer.h",
    "CUDA_INCLUDE_DIR": "cuda_runtime_api.h",
    "NCCL_INCLUDE_DIR": "nccl.h",
}
EXPORTED = {"getCreators", "plc_all_reduce_set_communicator", "setLoggerFinder"}

# Loads the library as TensorRT's registry does and plays its part; NCCL's functions are its own.
DRIVER = r"""
#include <NvInfer.h>
#include <dlfcn.h>
#include <nccl.h>

#include <cstdint>
#include <cstdio>
#include <memory>

using namespace nvinfer1;

struct ncclComm { int ranks; ncclResult_t result; };

extern "C" ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  *count = comm->ranks;
  return ncclSuccess;
}
extern "C" const char* ncclGetErrorString(ncclResult_t) { return "a broken link"; }
extern "C" ncclResult_t ncclAllReduce(const void* x, void* y, size_t count, ncclDataType_t type,
                                      ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  std::printf("nccl %s %s count %zu type %d op %d ranks %d stream %d\n",
              static_cast<const char*>(x), static_cast<const char*>(y), count, int(type), int(op),
              comm->ranks, int(reinterpret_cast<intptr_t>(stream)));
  return comm->result;
}

struct Logger : ILogger {
  void log(Severity severity, const char* message) noexcept override {
    std::printf("log %d %s\n", int(severity), message);
  }
};
struct Finder : ILoggerFinder {
  Logger logger;
  ILogger* findLogger() override { return &logger; }
};

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::puts(dlerror()), 1;
  const auto creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
      dlsym(library, "getCreators"));
  const auto set_finder =
      reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  const auto set_communicator =
      reinterpret_cast<void (*)(void*)>(dlsym(library, "plc_all_reduce_set_communicator"));

  int32_t count = 0;
  auto& creator = *static_cast<IPluginCreatorV3One*>(creators(count)[0]);
  const PluginField& named = creator.getFieldNames()->fields[0];
  std::printf("creator %d of %d: '%s' '%s' '%s' %s %d\n", creator.getFieldNames()->nbFields, count,
              creator.getPluginName(), creator.getPluginVersion(), creator.getPluginNamespace(),
              named.name, int(named.type));

  const auto created = [&](PluginField field, int32_t fields, TensorRTPhase phase) {
    const PluginFieldCollection given{fields, &field};
    return std::unique_ptr<IPluginV3>(creator.createPlugin("layer", &given, phase));
  };
  const auto ranks_field = [&](const int32_t& ranks) {
    return PluginField(named.name, &ranks, PluginFieldType::kINT32, 1);
  };
  const int32_t one = 1, two = 2;
  const int64_t wide = 2;
  const auto refused = [](const std::unique_ptr<IPluginV3>& plugin) {
    std::puts(plugin ? "created" : "refused");
  };
  refused(created(ranks_field(two), 0, TensorRTPhase::kBUILD));  // to the process's own stderr
  Finder finder;
  set_finder(&finder);
  refused(created(ranks_field(two), 0, TensorRTPhase::kBUILD));
  refused(created(ranks_field(one), 1, TensorRTPhase::kBUILD));
  refused(created({named.name, &wide, PluginFieldType::kINT64, 1}, 1, TensorRTPhase::kBUILD));

  const auto built = created(ranks_field(two), 1, TensorRTPhase::kBUILD);
  auto& build = *static_cast<IPluginV3OneBuild*>(
      built->getCapabilityInterface(PluginCapabilityType::kBUILD));
  const auto supports = [&](DataType x, DataType y, TensorFormat format) {
    DynamicPluginTensorDesc both[2]{};
    both[0].desc.type = x, both[1].desc.type = y;
    both[0].desc.format = both[1].desc.format = format;
    std::printf("%d", build.supportsFormatCombination(0, both, 1, 1) &&
                          build.supportsFormatCombination(1, both, 1, 1));
  };
  const auto f32 = DataType::kFLOAT, f16 = DataType::kHALF, bf16 = DataType::kBF16;
  std::printf("supports ");
  for (const DataType type : {f32, f16, bf16, DataType::kINT32, DataType::kINT8}) {
    supports(type, type, TensorFormat::kLINEAR);
  }
  supports(f32, f16, TensorFormat::kLINEAR);
  supports(f16, f16, TensorFormat::kCHW2);
  DataType output = f32;
  build.getOutputDataTypes(&output, 1, &bf16, 1);
  std::printf(" outputs %d type kept %d\n", build.getNbOutputs(), output == bf16);

  // The engine keeps the fields, reads them again, and attaches what it creates to a context.
  const std::unique_ptr<IPluginV3> clone(built->clone());
  const auto runtime_of = [](IPluginV3& plugin) {
    return static_cast<IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  };
  const PluginField kept = runtime_of(*clone)->getFieldsToSerialize()->fields[0];
  std::printf("kept %s %d\n", kept.name, *static_cast<const int32_t*>(kept.data));
  const auto read = created(kept, 1, TensorRTPhase::kRUNTIME);
  const std::unique_ptr<IPluginV3> attached(runtime_of(*read)->attachToContext(nullptr));
  const auto run = [&](DataType type, Dims dims) {
    PluginTensorDesc x{};
    x.type = type, x.dims = dims;
    const void* inputs[] = {"x"};
    char y[] = "y";
    void* outputs[] = {y};
    const int32_t result = runtime_of(*attached)->enqueue(
        &x, &x, inputs, outputs, nullptr, reinterpret_cast<cudaStream_t>(7));
    std::puts(result ? "failed" : "done");
  };
  const Dims matrix{2, {3, 5}};
  run(f32, matrix);
  ncclComm three{3, ncclSuccess}, pair{2, ncclSuccess}, broken{2, ncclSystemError};
  set_communicator(&three);
  run(f32, matrix);
  set_communicator(&pair);
  run(f32, matrix);
  run(f16, Dims{0, {}});
  run(bf16, Dims{3, {4, 0, 2}});
  run(DataType::kINT32, matrix);
  set_communicator(&broken);
  run(f32, matrix);
  set_communicator(nullptr);
  run(f32, matrix);
}
"""

EXPECTED = """\
creator 1 of 1: 'plc_all_reduce' '1' '' nb_rank 5
refused
log 1 plc_all_reduce: nb_rank is missing
refused
log 1 plc_all_reduce: nb_rank must be at least 2, not 1
refused
log 1 plc_all_reduce: nb_rank must be one int32
refused
supports 1110000 outputs 1 type kept 1
kept nb_rank 2
log 1 plc_all_reduce: no communicator: call plc_all_reduce_set_communicator first
failed
log 1 plc_all_reduce: a communicator of 3 ranks, where the engine is for 2
failed
nccl x y count 15 type 7 op 0 ranks 2 stream 7
done
nccl x y count 1 type 6 op 0 ranks 2 stream 7
done
nccl x y count 0 type 9 op 0 ranks 2 stream 7
done
log 1 plc_all_reduce: a type other than float32, float16 and bfloat16
failed
nccl x y count 15 type 7 op 0 ranks 2 stream 7
log 1 plc_all_reduce: ncclAllReduce: a broken link
failed
log 1 plc_all_reduce: no communicator: call plc_all_reduce_set_communicator first
failed
"""


def constant(name: str) -> str:
    (value,) = re.findall(rf'^constexpr char {name}\[\] = "(.*)";$', SOURCE.read_text(), re.M)
    return str(value)


SIBLING = "by its source: test_exported_are_what_the_registry_and_the_runtime_look_for"


def compiled(source: Path, result: Path, *options: str) -> Path:
    """What g++ makes of it, without a warning; skips where a header is missing."""
    if shutil.which("g++") is None:
        pytest.skip(f"needs g++; {SIBLING}")
    includes = []
    for variable, header in HEADERS.items():
        folder = os.environ.get(variable)
        if not folder:
            pytest.skip(f"needs the folder of {header} in {variable}; {SIBLING}")
        includes += ["-isystem", folder]
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    command = ["g++", *flags, *includes, str(source), "-o", str(result), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return result


def test_names_are_those_that_engines_are_written_with() -> None:
    assert (constant("kName"), constant("kRanks")) == ("plc_all_reduce", "nb_rank")
    assert (constant("kVersion"), constant("kNamespace")) == ("1", "")
    assert constant("kName") == ALL_REDUCE_PLUGIN
    assert constant("kRanks") == RANKS_ATTRIBUTE


def test_where_the_library_is_not_said_the_message_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = SimpleNamespace(load_library=lambda path: None)
    trt = SimpleNamespace(__version__="10.9.0", get_plugin_registry=lambda: registry)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(RankError, match=r"10\.9\.0: PLC_ALL_REDUCE_PLUGIN is not set.*README"):
        load_plugin(trt)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(RankError, match=r"no file .*none\.so"):
        load_plugin(trt)
    (tmp_path / "none.so").write_bytes(b"no library")
    with pytest.raises(RankError, match="TensorRT does not take"):
        load_plugin(trt)


def test_exported_are_what_the_registry_and_the_runtime_look_for() -> None:
    exported = re.findall(r"^PLC_EXPORT [^()]*?(\w+)\(", SOURCE.read_text(), re.M)
    assert sorted(exported) == sorted(EXPORTED)
    assert "plc_all_reduce_set_communicator" in SOURCE.with_name("README.md").read_text()


def test_the_library_exports_nothing_else(tmp_path: Path) -> None:
    library = compiled(SOURCE, tmp_path / "libplc_all_reduce.so", "-shared")
    if shutil.which("nm") is None:
        pytest.skip(f"needs nm; {SIBLING}")

    command = ["nm", "-D", "--defined-only", str(library)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    functions = {line.split()[2] for line in listed.splitlines() if line.split()[1] == "T"}
    assert functions == EXPORTED


def test_it_sums_by_nccl_what_it_is_given_and_refuses_by_name_what_it_is_not(
    tmp_path: Path,
) -> None:
    library = compiled(SOURCE, tmp_path / "libplc_all_reduce.so", "-shared")
    source = tmp_path / "driver.cc"
    source.write_text(DRIVER)
    exporting = ("-rdynamic", "-fvisibility=default")  # its NCCL is the one the library finds
    driver = compiled(source, tmp_path / "driver", *exporting, "-ldl")

    done = subprocess.run([driver, library], capture_output=True, text=True, check=False)

    assert done.stdout == EXPECTED
    assert done.stderr == "plc_all_reduce: nb_rank is missing\n"
    assert not done.returncode
