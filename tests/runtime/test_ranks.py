"""A base divided among ranks: real processes that compute what one does, and that end together.

Their sums are those of the C++ kernels; where these were not built, the tests that start processes
are skipped, and those of `tests/export/test_tensorrt_bundles.py` check the same rank graphs.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.config.build import BuildOptions
from pl_compile.config.ranks import kv_heads_of_ranks, shards
from pl_compile.config.sampling import Sampling
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import ArtifactError, ConfigError, ExportError, RankError, RequestError
from pl_compile.families.read import read_decoder_config
from pl_compile.graph.builder import DIST_DOMAIN, GraphBuilder
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.engines.padded import Step
from pl_compile.runtime.engines.ranks.local_group import LocalGroup, _RankProcess
from pl_compile.runtime.kernels import rank_sums
from pl_compile.runtime.requests import Request
from pl_compile.runtime.session import Session
from pl_compile.testing import random_table, write_jsonl, write_tiny_base

built = pytest.mark.skipif(
    kernels.library_path() is None or not sys.platform.startswith("linux"),
    reason="needs the C++ kernels (g++ or Clang), on Linux; the same graphs without them: "
    "tests/export/test_tensorrt_bundles.py",
)
REQUEST = Request("tone", {"sentence": "who was there at all?"}, max_tokens=6)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three groups of heads each: two ranks get two groups and one."""
    root = tmp_path_factory.mktemp("rank-bases")
    sharing = {
        family: write_tiny_base(root / family, family, blocks=True, kv_heads=3)
        for family in ("llama", "gemma3_text")
    }
    return {**sharing, "gpt2": write_tiny_base(root / "gpt2", "gpt2", blocks=True)}


@pytest.fixture(scope="module")
def divided(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama on three ranks, not compared: for what happens to the processes."""
    folder = tmp_path_factory.mktemp("divided")
    options = BuildOptions(ranks=3)
    return exported(bases["llama"], folder, options=options, measure_parity=False).bundle


def exported(base: Path, folder: Path, name: str = "bundle", **changes: Any) -> ExportResult:
    table = folder / f"{base.name}.safetensors"
    if not table.exists():
        random_table(base, table, prefix=True)
    request = ExportRequest(table, base, folder / name, **{"target": "onnx-cpu", **changes})
    return export_bundle(request)


@built
@pytest.mark.parametrize(
    ("family", "target", "ranks"),
    [
        ("llama", "onnx-cpu", 2),
        ("llama", "native-cpu", 3),
        ("gpt2", "native-cpu", 2),
        ("gpt2", "onnx-cpu", 3),
        ("gemma3_text", "onnx-cpu", 2),
        ("gemma3_text", "native-cpu", 2),
    ],
)
def test_ranks_compute_what_one_process_does(
    bases: dict[str, Path], tmp_path: Path, family: str, target: str, ranks: int
) -> None:
    base = bases[family]
    options = BuildOptions(ranks=ranks)

    result = exported(base, tmp_path, target=target, options=options)

    # Against torch, folded against not, mixed against alone: the same limits as for one process.
    assert result.verdict == "passed"
    assert max(parity.relative_difference for parity in result.parity) < 1e-5
    assert [folder.name for folder in sorted((result.bundle / "base").iterdir())] == [
        f"rank{rank}" for rank in range(ranks)
    ]
    whole = exported(base, tmp_path, "whole", target=target, measure_parity=False)
    requests = [REQUEST, Request("order", {"request": "lights off"}, max_tokens=6)]
    session, alone = Session.open(result.bundle), Session.open(whole.bundle)
    # Which openings are folded depends on where prefixes are held.
    found, expected = (
        [replace(result, prefix_tokens=0) for result in each.generate(requests)]
        for each in (session, alone)
    )
    assert found == expected
    assert session.score([REQUEST])[0][0].probability == pytest.approx(
        alone.score([REQUEST])[0][0].probability, rel=1e-4
    )
    group = session.engine
    assert isinstance(group, LocalGroup)
    assert group.cached(0, 2).any()
    group.clear([0])  # of every rank
    assert not group.cached(0, 2).any()
    assert verify_bundle(result.bundle).passed


@built
def test_all_ranks_have_the_same_bits(divided: Path) -> None:
    session = Session.open(divided)
    prompt = session.tasks["ask"]
    group = session.engine
    assert isinstance(group, LocalGroup)
    past = np.asarray([group.admit(row, prompt) for row in range(2)])
    ids = np.arange(2 * 9).reshape(2, 9) % 300

    step = Step(0, ids, past, past * 0 + 8, [prompt, prompt], [None, None])
    logits = group.step_on_each(step)

    assert len(logits) == 3
    assert np.ptp(logits[0]) > 0.1
    for other in logits[1:]:
        assert np.array_equal(logits[0], other)


@built
def test_each_row_gets_its_prefix_however_many_there_were(
    divided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefix is sent once, and the ranks remember a few only."""
    monkeypatch.setattr("pl_compile.runtime.engines.ranks.engine.REMEMBERED", 3)
    monkeypatch.setattr("pl_compile.runtime.engines.ranks.local_group.REMEMBERED", 2)
    session, graph = Session.open(divided), read_bundle(divided).manifest.graph
    generator = np.random.default_rng(0)
    shape = (graph.layers, 2, graph.kv_heads, 4, graph.head_dim)
    prompts = [
        replace(session.tasks["ask"], prefix_kv=generator.normal(size=shape).astype(np.float32))
        for _ in range(5)
    ]

    group = session.engine
    assert isinstance(group, LocalGroup)

    for number in (0, 1, 0, 2, 2, 3, 0, 4, 1, 0):
        assert group.admit(1, prompts[number]) == 4

        np.testing.assert_array_equal(group.cached(1, 4), prompts[number].prefix_kv)


@built
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_rounded_weights_are_divided_too(
    bases: dict[str, Path], tmp_path: Path, quantize: Any
) -> None:
    """Calibrated on the whole base: each rank gets its part of what was seen."""
    rows = [{"taskname": "tone", "sentence": text} for text in ("who was there", "at all", "cold")]
    data = write_jsonl(tmp_path / "calibrate.jsonl", rows)

    result = exported(
        bases["gpt2"],
        tmp_path,
        target="native-cpu",
        options=BuildOptions(quantize, ranks=2),
        calibrate=(data,),
    )

    assert result.verdict == "passed"
    assert max(p.relative_difference for p in result.parity) < (0.05 if quantize == "int8" else 0.5)


@built
def test_sampling_in_the_graph_draws_the_same_on_ranks(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    request = Request("ask", {"question": "who", "place": "here"}, max_tokens=6)
    drawn = Request(request.task, request.fields, max_tokens=6, sampling=Sampling(1.0, 8, seed=3))
    answers = [
        Session.open(
            exported(
                bases["llama"],
                tmp_path,
                f"bundle{ranks}",
                options=BuildOptions(sampling="graph", candidates=16, ranks=ranks),
                measure_parity=False,
            ).bundle
        ).generate([drawn, request])
        for ranks in (1, 2)
    ]
    assert answers[0] == answers[1]


SUM = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
from pl_compile.graph.builder import DIST_DOMAIN, GraphBuilder
from pl_compile.runtime import kernels
from pl_compile.runtime.kernels import rank_sums
memory, rank, ranks, model, result = sys.argv[1:]
rank_sums.join_group(Path(memory), int(rank), int(ranks))
options = onnxruntime.SessionOptions()
kernels.register(options)
session = onnxruntime.InferenceSession(model, options)
sums = {}
for size in (1, 0, 262144, 262145, 700001, 3):
    x = np.random.default_rng(size + int(rank)).normal(size=size).astype(np.float32)
    sums[str(size)], = session.run(None, {"x": x})
np.savez(result, **sums)
"""


@built
def test_sums_of_any_size_are_those_of_all_ranks(tmp_path: Path) -> None:
    """Longer ones go through the shared memory in pieces, in turns."""
    ranks = 3
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(rank_sums.group_bytes(ranks)))
    g = GraphBuilder({})
    x = g.input("x", ir.DataType.FLOAT, ["n"])
    names: dict[str, Any] = {"collective_operation": "all_reduce", "reduce_op": "sum"}
    y = g.op("DistCollective", [x], "sum", domain=DIST_DOMAIN, root=-1, nb_rank=ranks, **names)
    g.output(y, "y", ir.DataType.FLOAT, ["n"])
    ir.save(g.model("sum"), tmp_path / "model.onnx")

    processes = []
    for rank in range(ranks):
        given = [memory, rank, ranks, tmp_path / "model.onnx", tmp_path / f"{rank}.npz"]
        processes.append(subprocess.Popen([sys.executable, "-c", SUM, *map(str, given)]))

    assert [process.wait(120) for process in processes] == [0, 0, 0]
    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(ranks)]
    for size in map(int, found[0].files):
        parts = [
            np.random.default_rng(size + rank).normal(size=size).astype(np.float32)
            for rank in range(ranks)
        ]
        expected = (parts[0] + parts[1]) + parts[2]  # in the order of the ranks, to the last bit
        for sums in found:
            np.testing.assert_array_equal(sums[str(size)], expected)


def alive(process_ids: list[int]) -> list[int]:
    found = []
    for each in process_ids:
        try:
            state = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(each)
    return found


@built
@pytest.mark.parametrize("victim", [0, 2])
def test_when_a_rank_is_killed_all_end_and_every_call_says_so(divided: Path, victim: int) -> None:
    session = Session.open(divided)
    group = session.engine
    assert isinstance(group, LocalGroup)
    processes = group.process_ids
    assert session.generate([REQUEST])[0].token_ids
    assert alive(processes) == processes

    os.kill(processes[victim], signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(RankError, match=rf"rank {victim} \(process .*ended by signal 9"):
        session.generate([REQUEST])
    assert time.monotonic() - started < 60  # it ends: no rank waits in a sum for ever
    assert alive(processes) == []
    with pytest.raises(
        RankError, match=r"they have ended: rank .*ended by signal 9.*Open it again"
    ):
        session.generate([REQUEST])


@built
def test_ranks_end_when_their_session_is_closed(divided: Path) -> None:
    with Session.open(divided) as session:
        group = session.engine
        assert isinstance(group, LocalGroup)
        assert session.generate([REQUEST])[0].token_ids
        assert alive(group.process_ids) == group.process_ids

    assert alive(group.process_ids) == []
    session.close()
    with pytest.raises(RequestError, match="using a session: one that was closed"):
        session.generate([REQUEST])


@built
def test_a_rank_killed_in_the_middle_of_a_sum_ends_the_others(
    divided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others stand in the barrier when it dies, and never hear of it from the kernels."""
    session = Session.open(divided)
    group = session.engine
    assert isinstance(group, LocalGroup)
    processes = group.process_ids
    each = LocalGroup._each

    def stopping(self: LocalGroup, calls: Any, **options: Any) -> Any:
        """As it begins a step, one rank stands still; it dies when the others wait for it."""
        if calls[0][0] == "step":
            os.kill(processes[2], signal.SIGSTOP)
            threading.Timer(1.5, os.kill, (processes[2], signal.SIGKILL)).start()
        return each(self, calls, **options)

    monkeypatch.setattr(LocalGroup, "_each", stopping)
    started = time.monotonic()

    with pytest.raises(RankError, match=r"running a step on all ranks: rank 2 .*signal 9"):
        session.generate([REQUEST])

    assert time.monotonic() - started < 30
    assert alive(processes) == []


@built
def test_memory_that_the_machine_does_not_give_is_said(
    divided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(RankError, match=r"starting 3 ranks.*No space left.*6 MiB of memory"):
        Session.open(divided)


@built
@pytest.mark.parametrize("moment", ["begin", "receive"])
def test_a_call_that_is_interrupted_ends_the_group(
    divided: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Else its answers would be taken for those of the next call."""
    session = Session.open(divided)
    group = session.engine
    assert isinstance(group, LocalGroup)
    processes = group.process_ids
    done = getattr(_RankProcess, moment)

    def interrupted(self: _RankProcess, *arguments: Any) -> None:
        done(self, *arguments)
        if self.rank == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_RankProcess, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.generate([REQUEST])

    assert alive(processes) == []
    with pytest.raises(RankError, match="they have ended: a call was interrupted"):
        session.generate([REQUEST])


@built
def test_what_lies_in_the_working_directory_is_no_package_of_a_rank(
    divided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)

    assert Session.open(divided).generate([REQUEST])[0].token_ids


@built
def test_ranks_end_with_the_process_that_started_them(divided: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from pl_compile.runtime import Session\n"
        "session = Session.open(sys.argv[1])\n"
        "if not os.fork():\n"
        "    time.sleep(60)\n"  # a copy that keeps the sockets open
        "    os._exit(0)\n"
        "print(*session.engine.process_ids, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(divided)], stdout=subprocess.PIPE, text=True
    ) as leader:
        assert leader.stdout is not None
        processes = [int(each) for each in leader.stdout.readline().split()]
        assert len(alive(processes)) == 3

        leader.kill()

    for _ in range(100):
        if not alive(processes):
            break
        time.sleep(0.1)
    assert alive(processes) == []


@built
def test_a_rank_whose_files_are_missing_is_named(divided: Path, tmp_path: Path) -> None:
    graph = read_bundle(divided).manifest.graph
    bundle = shutil.copytree(divided, tmp_path / "bundle")
    (bundle / "base" / "rank1" / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"rank1/model\.onnx"):
        Session.open(bundle)

    with pytest.raises(RankError, match=r"rank 1: .*model\.onnx"):
        LocalGroup(bundle / "base", "onnx-cpu", graph)


def test_ranks_without_kernels_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "library_path", lambda: None)

    with pytest.raises(RankError, match=r"kernels were not built.*Install g\+\+"):
        rank_sums.group_bytes(2)


@built
def test_a_graph_for_ranks_does_not_load_outside_of_a_group(divided: Path) -> None:
    graph = read_bundle(divided).manifest.graph

    with pytest.raises(ArtifactError, match="this process is no rank of a group"):
        OnnxRuntimeEngine(divided / "base" / "rank0" / "model.onnx", graph.of_rank(0))


@pytest.mark.parametrize(("family", "ranks"), [("llama", 4), ("gpt2", 4), ("llama", 0)])
def test_more_ranks_than_groups_of_heads_are_refused(
    bases: dict[str, Path], tmp_path: Path, family: str, ranks: int
) -> None:
    said = "3 groups of heads" if ranks else "tp_size 0"
    with pytest.raises(ExportError if ranks else ConfigError, match=said) as caught:
        exported(bases[family], tmp_path, options=BuildOptions(ranks=ranks))
    assert not (tmp_path / "bundle").exists()
    assert not ranks or "1 to 3 ranks" in str(caught.value)


@pytest.mark.parametrize("kv_heads", [1, 3, 7, 8, 12])
def test_every_head_is_somebodys_and_parts_are_nearly_equal(kv_heads: int) -> None:
    for ranks in range(1, kv_heads + 1):
        parts = kv_heads_of_ranks(kv_heads, ranks)
        assert [head for part in parts for head in part] == list(range(kv_heads))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_widths_keep_blocks_together(bases: dict[str, Path]) -> None:
    config = read_decoder_config(bases["llama"])  # a width of 160

    for block, ends in ((0, [80, 160]), (32, [96, 160]), (20, [80, 160])):
        parts = shards(config, 2, block=block)
        assert [part.ffn.stop for part in parts] == ends
        assert [len(part.kv_heads) for part in parts] == [2, 1]
        assert [part.of(config).heads for part in parts] == [6, 3]
