"""`--sampling graph`: the graph draws the tokens that the host would draw."""

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.sampling import FIRST_IN_GRAPH, IN_GRAPH
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ConfigError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.engines.engine import Engine, Prompt
from pl_compile.runtime.sampling import Draw, draw_in_graph, next_token
from pl_compile.runtime.stepping import Batch
from pl_compile.shapes import Float32, Int64
from pl_compile.testing import random_table, sign_bundle, write_tiny_base

CANDIDATES = 50


@pytest.fixture(scope="module")
def bundles(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A bundle that samples in its graph, and one whose host samples."""
    folder = tmp_path_factory.mktemp("sampling")
    base = tiny_bases["llama"]
    table = random_table(base, folder / "table.safetensors", prefix=True)
    graph, host = (
        export_bundle(
            ExportRequest(table, base, folder / name, options=options, measure_parity=False)
        ).bundle
        for name, options in (
            ("graph", BuildOptions(sampling="graph", candidates=CANDIDATES)),
            ("host", BuildOptions("none")),
        )
    )
    return graph, host


@pytest.fixture(scope="module")
def sessions(bundles: tuple[Path, Path]) -> tuple[Session, Session]:
    """On a bundle that samples in its graph, and on one whose host samples."""
    graph, host = map(Session.open, bundles)
    return graph, host


SAMPLINGS = [
    Sampling(),
    Sampling(1.0, top_k=1, seed=1),
    Sampling(0.7, top_k=5, seed=2),
    Sampling(2.5, top_k=50, seed=3),
    Sampling(1.3, top_k=40, top_p=0.6, seed=4),
    Sampling(1e-8, top_k=9, seed=5),
    Sampling(1.5, top_k=20, top_p=1e-9, seed=6),
    Sampling(1.5, top_k=40, min_p=0.3, seed=10),
    Sampling(1.2, top_k=30, top_p=0.9, min_p=0.05, seed=11),
    Sampling(3.0, top_k=9, min_p=1.0, seed=12),
    # What the graph cannot do is done by the host, in the same batch.
    Sampling(1.0, seed=7),
    Sampling(1.0, top_k=51, seed=8),
    Sampling(1.0, top_k=8, repetition_penalty=1.3, seed=9),
]


def test_one_batch_of_all_ways_to_sample_gives_the_hosts_answers(
    sessions: tuple[Session, Session],
) -> None:
    graph, host = sessions
    requests = [
        Request("order", {"request": f"lights off {n}"}, max_tokens=24, sampling=sampling)
        for n, sampling in enumerate(SAMPLINGS)
    ]
    requests += [
        Request("tone", {"sentence": "cold"}),
        Request("ask", {"question": "why?", "place": "b"}, max_tokens=9, min_tokens=5),
    ]

    assert graph.engine.candidates == CANDIDATES
    assert graph.generate(requests) == host.generate(requests)


def test_thousands_of_draws_are_the_same(sessions: tuple[Session, Session]) -> None:
    graph, _ = sessions
    engine = graph.engine
    prompt = graph.tasks["tone"]
    generator = np.random.default_rng(0)
    different = 0
    for seed in range(250):
        count = 12
        ids = generator.integers(0, 390, (count, 3))
        ways = [
            Sampling(
                float(generator.uniform(0.2, 3)),
                top_k=int(generator.integers(1, CANDIDATES + 1)),
                top_p=float(generator.uniform(0.05, 1)),
                min_p=float(generator.choice([0, generator.uniform(0, 1)])),
                seed=seed * count + row,
            )
            for row in range(count)
        ]
        draws = [
            draw_in_graph(way, np.random.default_rng(way.seed), CANDIDATES, IN_GRAPH)
            for way in ways
        ]
        assert None not in draws
        logits, tokens = stepped(engine, prompt, ids, draws)
        expected = [
            next_token(row, way, np.random.default_rng(way.seed))
            for row, way in zip(logits, ways, strict=True)
        ]
        different += int((np.asarray(tokens) != np.asarray(expected)).sum())
    assert different == 0


def stepped(
    engine: Engine, prompt: Prompt, ids: Int64, draws: Sequence[Draw | None]
) -> tuple[Float32, list[int | None]]:
    """The logits of rows `[rows, vocab]`, and the tokens that the graph chose."""
    batch = Batch(engine)
    for row in range(len(ids)):
        batch.admit(row, prompt)
    outputs = batch.feed(dict(enumerate(ids)), dict(enumerate(draws)))
    rows = [outputs[row] for row in range(len(ids))]
    return np.stack([row.logits for row in rows]), [row.token for row in rows]


@pytest.fixture
def tied_base(tmp_path: Path) -> Path:
    """A base of which every token has a twin with the same logit, bit for bit."""
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    path = base / "model.safetensors"
    tensors = load_file(path)
    table = tensors["model.embed_tokens.weight"]
    half = len(table) // 2
    table[half : 2 * half] = table[:half]
    save_file(tensors, path, metadata={"format": "pt"})
    return base


@pytest.mark.parametrize(
    "target",
    [
        "onnx-cpu",
        "native-cpu",
        pytest.param(
            "openvino",
            marks=pytest.mark.skipif(
                not find_spec("openvino"),
                reason="needs openvino (pip install openvino); without it: the same on onnx-cpu",
            ),
        ),
    ],
)
def test_of_equal_logits_the_graph_takes_those_that_the_host_takes(
    tied_base: Path, target: str, tmp_path: Path
) -> None:
    table = random_table(tied_base, tmp_path / "table.safetensors")
    options = BuildOptions("none", sampling="graph", candidates=CANDIDATES)
    request = ExportRequest(
        table, tied_base, tmp_path / "b", target=target, options=options, measure_parity=False
    )
    count, tied = 8, 0
    with Session.open(export_bundle(request).bundle) as session:
        prompt = session.tasks["tone"]
        for seed in range(40):
            generator = np.random.default_rng(seed)
            ids = generator.integers(0, 390, (count, 3))
            ways = [
                Sampling(3.0, top_k=int(generator.integers(1, CANDIDATES)), seed=row)
                for row in range(count - 1)
            ]
            ways.append(Sampling())
            draws = [
                draw_in_graph(way, np.random.default_rng(way.seed), CANDIDATES, IN_GRAPH)
                for way in ways
            ]
            logits, tokens = stepped(session.engine, prompt, ids, draws)
            expected = [
                next_token(row, way, np.random.default_rng(way.seed))
                for row, way in zip(logits, ways, strict=True)
            ]
            chosen = np.asarray(expected, np.int64)
            tied += int(((logits == logits[range(count), chosen, None]).sum(-1) > 1).sum())
            assert tokens == expected
    assert tied > 200


def test_a_temperature_of_zero_is_greedy_whatever_the_noise(
    sessions: tuple[Session, Session],
) -> None:
    graph, _ = sessions
    prompt = graph.tasks["tone"]
    ids = np.asarray([[5, 9, 7]])
    loud = Draw(Sampling(top_k=CANDIDATES), np.linspace(0, 99, CANDIDATES).astype(np.float32))

    logits, tokens = stepped(graph.engine, prompt, ids, [loud])

    assert tokens == logits.argmax(-1).tolist()


def test_the_hosts_noise_is_as_far_along_afterwards() -> None:
    sampling = Sampling(1.0, top_k=7)
    one, other = np.random.default_rng(3), np.random.default_rng(3)

    draw_in_graph(sampling, one, 10, IN_GRAPH)
    next_token(np.arange(40, dtype=np.float32), sampling, other)

    assert one.random() == other.random()


def test_a_number_that_a_graph_does_not_take_is_left_to_the_host() -> None:
    generator = np.random.default_rng(3)
    sampling = Sampling(1.0, top_k=7, min_p=0.1)

    assert draw_in_graph(sampling, generator, 10, FIRST_IN_GRAPH) is None
    assert generator.random() == np.random.default_rng(3).random()  # no noise was spent
    assert draw_in_graph(sampling, generator, 10, IN_GRAPH) is not None


def test_a_manifest_that_names_no_inputs_has_a_graph_of_the_first_ones() -> None:
    sizes = GraphContract(1, 1, 4, 8, 20, 30, "input", candidates=5)

    assert sizes.sampling_inputs == FIRST_IN_GRAPH
    assert "min_p" not in sizes.tensors("float32")


def test_a_manifest_with_an_unknown_input_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="sampling input 'typical_p', expected one of: temp"):
        GraphContract(
            1, 1, 4, 8, 20, 30, "input", candidates=5, sampling_inputs=("top_k", "typical_p")
        )


def test_a_bundle_made_before_min_p_is_served_and_the_host_does_what_its_graph_cannot(
    sessions: tuple[Session, Session], bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    _, host = sessions
    bundle = tmp_path / "earlier"
    shutil.copytree(bundles[0], bundle)
    forget_min_p(bundle / "base" / "model.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    del manifest["graph"]["sampling_inputs"]
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    sign_bundle(bundle)
    requests = [
        Request("order", {"request": f"lights {n}"}, max_tokens=9, sampling=sampling)
        for n, sampling in enumerate(SAMPLINGS)
    ]

    with Session.open(bundle) as earlier:
        assert earlier.generate(requests) == host.generate(requests)


def forget_min_p(path: Path) -> None:
    """Takes `min_p` out of a graph, which is then as graphs were made before."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    names = {"sample.of_first", "sample.below_min_p", "sample.min_p.column", "sample.min_p"}
    (choice,) = [node for node in graph.node if node.name == "sample.chosen"]
    choice.input[0] = "sample.top_p/out"
    kept = [node for node in graph.node if node.name not in names]
    assert len(kept) == len(graph.node) - len(names)
    del graph.node[:]
    graph.node.extend(kept)
    graph.input.remove(next(value for value in graph.input if value.name == "min_p"))
    onnx.save(model, path)
