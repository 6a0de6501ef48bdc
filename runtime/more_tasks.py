"""Tasks of another bundle, for an engine that is open: only where the base is the same."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pl_compile.artifact.bundle import Bundle, read_bundle
from pl_compile.errors import ArtifactError, FingerprintError, RequestError
from pl_compile.runtime.served_task import ServedTask, tasks_of_bundle
from pl_compile.text.tokenizer import Tokenizer


def tasks_of_another(
    first: Bundle,
    folder: Path,
    names: Sequence[str],
    tokenizer: Tokenizer,
    *,
    allow_failed_parity: bool = False,
) -> dict[str, ServedTask]:
    """Tasks of a bundle, to be served by the engine of another one.

    Of the bundle only the files of these tasks are read. Those in `base/` are compared with the
    other bundle's by the sums in the manifests.

    Args:
        first: the bundle that the engine runs.
        folder: the bundle that holds the tasks; the same one, if it has changed since.
        names: of the tasks; all if empty.
        tokenizer: of `first`.
        allow_failed_parity: as for `Session.open`.

    Raises:
        ArtifactError: the bundle is damaged or marked as failed, or has no such task.
        FingerprintError: it holds another base, or one that was compiled in another way.
    """
    other = read_bundle(folder, names, base=False)
    check_parity(other, allowed=allow_failed_parity)
    _check_same_base(first, other)
    return tasks_of_bundle(other, tokenizer)


def check_parity(bundle: Bundle, *, allowed: bool) -> None:
    """Raises `ArtifactError` if a bundle's export marked it as failed, unless that is allowed."""
    if bundle.manifest.parity == "failed" and not allowed:
        raise ArtifactError(
            f"opening the bundle {bundle.folder}",
            found="its numbers differ from the reference (parity failed)",
            fix="See plc verify and the bundle's report.json; export it again.",
        )


def check_new(names: Iterable[str], served: Iterable[str], doing: str) -> None:
    """Raises `RequestError` if a task of one of these names is served already."""
    known = set(served)
    twice = [f"'{name}'" for name in names if name in known]
    if twice:
        raise RequestError(
            doing,
            found=f"{', '.join(twice)}: a task of this name is served already",
            expected="tasks of other names",
            fix="Remove the one that is served first, or rename one and export it again.",
        )


def _check_same_base(first: Bundle, other: Bundle) -> None:
    """Raises `FingerprintError` unless the engine of `first` computes what `other` was made for."""
    doing = f"serving the tasks of {other.folder} with the base of {first.folder}"
    ours, its = first.manifest, other.manifest
    pairs = {
        "the base's fingerprint": (ours.base.fingerprint, its.base.fingerprint),
        "target": (ours.target, its.target),
        "precision": (ours.precision, its.precision),
        "capacity": (ours.graph.capacity, its.graph.capacity),
        "prompts": (ours.graph.prompts, its.graph.prompts),
        "tokenizer.json": (
            first.files["tokenizer.json"].sha256,
            other.files["tokenizer.json"].sha256,
        ),
        "the files in base/": (first.base_sum, other.base_sum),
        "graph": (replace(ours.graph, baked_tasks=()), replace(its.graph, baked_tasks=())),
    }
    for name, (own, found) in pairs.items():
        if own != found:
            raise FingerprintError(
                doing,
                found=f"{name}: {found}",
                expected=f"{own}",
                fix="Export both from the same base, with the same options.",
            )
    if its.graph.prompts == "baked":
        raise FingerprintError(
            doing,
            found="a graph that holds the prompts of its own tasks (baked)",
            expected="prompts that are an input of the graph",
            fix="Export both with: --prompts-mode input",
        )
