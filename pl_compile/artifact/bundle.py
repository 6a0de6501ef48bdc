"""The bundle: the folder that the compiler writes and a runtime serves.

    manifest.json               base, target, graph, and every other file's sum and size
    tokenizer.json              the base's, byte for byte
    tokenizer.tables            the same for a runtime in C++ (docs/tokenizer-tables.md)
    base/                       the target's files; in base/rank0/, base/rank1/, … where the base is
                                divided among ranks
    tasks/<taskname>/task.json  TaskConfig, BOS and EOS, method
    tasks/<taskname>/prompt.safetensors    tensor "prompt", float32 [virtual, hidden]; or
    tasks/<taskname>/prefix_kv.safetensors tensor "prefix_kv", float32 [layers, 2, kv_heads,
                                           virtual, head_dim]
    tasks/<taskname>/folded_kv.safetensors the prefix that was computed from the task's opening
                                           (`folded_prefix.py`), where it was folded
    tasks/<taskname>/labels.json           the task's choices as token ids, where it has some
    tasks/<taskname>/parity.json           how the task's numbers compare with the reference
    tasks/<taskname>/selftest.safetensors  vectors that any runtime can check itself with
    report.json, report.html    parity, cost and times of the export: for people, not in the sums

`docs/artifact-format.md` is the full description. Nothing is trusted before its sum is checked, no
path may lead out of the folder, and nothing is ever unpickled.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.file_sums import FileRecord, check_files, records_of
from pl_compile.artifact.files import resolved
from pl_compile.artifact.folded_prefix import (
    FOLDED_NAME,
    FoldedPrefix,
    read_folded,
    sum_of_files,
)
from pl_compile.artifact.json_files import read_record
from pl_compile.artifact.model_files import MODEL_NAME as MODEL_NAME
from pl_compile.artifact.plan_record import EP_CONTEXT_NAME, PLAN_NAME, PLAN_PROFILE, PLAN_RECORD
from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    TaskEntry,
    check_prefix,
    entry_from_record,
)
from pl_compile.artifact.selftest import SELFTEST_NAME, check_selftest
from pl_compile.artifact.tensors import read_tensor_file, tensor_bytes
from pl_compile.config.build import Quantization
from pl_compile.config.contract import CacheBits, Dtype, GraphContract, PrefixBits
from pl_compile.config.read import build, node_from_plain, plain_from_config
from pl_compile.config.sizes import MOST
from pl_compile.config.strict_json import read_json_object, with_null
from pl_compile.errors import (
    ArtifactError,
    ConfigError,
    check_all,
    reason_of,
    unknown_name,
)
from pl_compile.text.label_trie import LabelTrie

FORMAT = "plc.bundle"
VERSION = 1
MANIFEST = "manifest.json"
TABLES_NAME = "tokenizer.tables"
TASK_NAME = "task.json"
LABELS_NAME = "labels.json"
REPORT = "report.json"
REPORT_PAGE = "report.html"

# The result of comparing an export with its reference.
Verdict = Literal["passed", "failed", "not measured"]

_COPY_OR_EXPORT = "Copy the bundle again, or export it again."

# The type of a base's numbers before anything is rounded.
EXACT: Dtype = "float32"

# `Precision.method` where rounding to the nearest code changed no weight.
NOTHING_LOST = "round to nearest, nothing lost"

# Files without a sum. Reports hold times, so equal exports differ in them; no runtime reads them.
_NOT_SUMMED = {MANIFEST, REPORT, REPORT_PAGE}

# The interface of our kernels that a manifest without the key `kernels` needs.
KERNELS_AT_FIRST = 2

# What a task learned: a tensor in a file of its own name, and how many axes it has.
_LEARNED_AXES = {"prompt": 2, "prefix_kv": 5}


@dataclass(frozen=True)
class Precision:
    """How the numbers of a compiled base are stored.

    Attributes:
        dtype: of activations, and of caches unless `cache_bits` says otherwise.
        quantization: of the weights: "none", "int8" or "int4".
        block: weights that share a scale, 0 for a channel; None where nothing is quantised.
        method: how the weights were rounded; None where nothing is quantised.
        prefix_bits: of each number of a task's prefix KV while it is served, once for all rows: 32,
            or 8 for the most of a long one (`kernels/prefixes.py`). In files they are float32.
        cache_bits: of each number of a row's cache: 32, or 16 where the graph rounds what it writes
            there to float16. Other targets than `native-cpu` have caches of `dtype`.
    """

    dtype: Dtype = EXACT
    quantization: Quantization = "none"
    block: int | None = None
    method: str | None = None
    prefix_bits: PrefixBits = 32
    cache_bits: CacheBits = 32

    def __post_init__(self) -> None:
        """Refuses a size of blocks that does not go with the rest."""
        noted = {self.block is not None, self.method is not None}
        together = f"block {self.block}, method {self.method}, quantization {self.quantization}"
        size = f"block {self.block}, expected 0 to {MOST['hidden']}"
        checks = {
            together: noted == {self.quantization != "none"},
            size: 0 <= (self.block or 0) <= MOST["hidden"],
        }
        check_all(ConfigError, "reading the precision", checks)

    @property
    def cache_dtype(self) -> Dtype:
        """The type of a row's cache."""
        return "float16" if self.cache_bits == 16 else self.dtype

    @property
    def stored(self) -> str:
        """What the weights of the layers are stored in, such as "int4" or "float32"."""
        return self.dtype if self.quantization == "none" else self.quantization


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says, besides the sums.

    Attributes:
        base: which base the bundle was compiled from.
        target: what `base/` was built for.
        graph: inputs, outputs and sizes of the compiled graph.
        tasks: names of the tasks, in the order of the export.
        toolchain: package name to version.
        parity: the result of the comparison with the reference.
        precision: how the base's numbers are stored.
        kernels: the first interface of this project's kernels that computes the graph right; where
            they are missing, its calls' bodies do.
        no_tokenizer_tables: why there is no `TABLES_NAME`, where the export could not write it.
    """

    base: BaseIdentity
    target: str
    graph: GraphContract
    tasks: tuple[str, ...]
    toolchain: Mapping[str, str]
    parity: Verdict
    precision: Precision = Precision()
    kernels: int = KERNELS_AT_FIRST
    no_tokenizer_tables: str | None = None

    def __post_init__(self) -> None:
        """Refuses tasks and a number of `kernels` that no bundle could have."""
        doubled = [name for name, count in Counter(self.tasks).items() if count > 1]
        checks = {f"task '{name}' is named twice": False for name in doubled}
        checks["no task is named"] = bool(self.tasks)
        least = f"kernels {self.kernels}, expected at least {KERNELS_AT_FIRST}"
        checks[least] = self.kernels >= KERNELS_AT_FIRST
        check_all(ConfigError, "reading what the bundle is", checks)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        entries: the tasks by name.
        files: every file but the manifest, by its path in the folder.
    """

    folder: Path
    manifest: Manifest
    entries: Mapping[str, TaskEntry]
    files: Mapping[str, FileRecord]

    @property
    def base_folder(self) -> Path:
        """Where the target's files are."""
        return self.folder / "base"

    def entry(self, taskname: str) -> TaskEntry:
        """The entry of a task.

        Raises:
            ArtifactError: the bundle has no such task.
        """
        if taskname not in self.entries:
            found, fix = unknown_name(taskname, tuple(self.entries), what="task")
            raise ArtifactError(f"looking into the bundle {self.folder}", found=found, fix=fix)
        return self.entries[taskname]

    @cached_property
    def base_sum(self) -> str:
        """sha256 over the names and sums of the target's files: see `sum_of_base`."""
        return sum_of_base({name: record.sha256 for name, record in self.files.items()})

    def folded(self, taskname: str) -> FoldedPrefix | None:
        """The prefix that was computed for a task, or None. Its identity is not compared here.

        Raises:
            ArtifactError: it is damaged, or does not fit the layers of the base.
        """
        path = task_folder(self.folder, taskname) / FOLDED_NAME
        if not path.is_file():
            return None
        prefix, graph = read_folded(path), self.manifest.graph
        opening = prefix.kv.shape[3]
        fits = prefix.kv.shape == (graph.layers, 2, graph.kv_heads, opening, graph.head_dim)
        if not fits or not 1 <= opening < graph.capacity:
            raise ArtifactError(
                f"reading {path}",
                found=f"float32 {prefix.kv.shape}",
                expected=f"float32 ({graph.layers}, 2, {graph.kv_heads}, opening, "
                f"{graph.head_dim}), and an opening of 1 to {graph.capacity - 1}",
            )
        return prefix

    def labels(self, taskname: str) -> LabelTrie | None:
        """The tree of a task's choices; None where its answers are open.

        Raises:
            ArtifactError: it is missing or damaged, or its choices are not the task's.
        """
        choices = self.entry(taskname).task.choices
        path = task_folder(self.folder, taskname) / LABELS_NAME
        doing = f"reading {path}"
        if not path.is_file():
            if choices:
                raise ArtifactError(doing, found="no such file", fix="Export the bundle again.")
            return None
        trie = read_record(LabelTrie, path)
        try:
            trie.check()
            if max(trie.tokens) >= self.manifest.base.vocab:
                raise ValueError(f"token {max(trie.tokens)}, and {self.manifest.base.vocab} ids")
        except ValueError as error:
            raise ArtifactError(doing, found=f"damaged ({error})") from error
        if trie.labels != choices:
            raise ArtifactError(doing, found=f"labels {trie.labels}", expected=f"{choices}")
        return trie

    def selftest(self, taskname: str) -> dict[str, NDArray[Any]]:
        """The arrays of a task's self-test (`selftest.py`); empty where the export made none.

        Raises:
            ArtifactError: they are damaged, or this bundle's graph cannot run them.
        """
        path = task_folder(self.folder, taskname) / SELFTEST_NAME
        if not path.is_file():
            return {}
        doing = f"reading {path}"
        arrays = read_tensor_file(path, doing=doing).tensors
        check_selftest(arrays, self.entry(taskname), self.manifest.graph, doing)
        return arrays


def sum_of_base(sums: Mapping[str, str]) -> str:
    """sha256 over names and sums of the files that say what a base computes.

    Plans are left out: a plan computes what its ONNX file says, and equal builds differ in bytes.

    Args:
        sums: by path in the bundle.
    """
    plans = (PLAN_NAME, PLAN_RECORD, PLAN_PROFILE, EP_CONTEXT_NAME)
    return sum_of_files(
        {
            name: found
            for name, found in sums.items()
            if name.startswith("base/") and name.rpartition("/")[2] not in plans
        }
    )


def is_bundle(folder: Path) -> bool:
    """Whether a folder says that it is a bundle, of any version."""
    return bool(files_of_bundle(folder))


def bundle_around(path: Path) -> Path | None:
    """The bundle that a path lies in; None if it lies in none. A bundle does not lie in itself.

    The path need not exist.
    """
    return next((folder for folder in resolved(path).parents if is_bundle(folder)), None)


def files_of_bundle(folder: Path) -> frozenset[str]:
    """The files that the manifest of a bundle of any version names, by their paths in the folder.

    The files are not checked, not even that they exist. Empty where the folder is not a bundle.
    """
    try:
        content = read_json_object(folder / MANIFEST, ArtifactError, "looking for a bundle")
    except (FileNotFoundError, ArtifactError):
        return frozenset()
    if content.get("format") != FORMAT:
        return frozenset()
    files = content.get("files")
    return frozenset([*_NOT_SUMMED, *(files if isinstance(files, dict) else ())])


def rank_folder(rank: int) -> str:
    """The name of a rank's folder in `base/`, where the base is divided among several."""
    return f"rank{rank}"


def task_folder(bundle: Path, taskname: str) -> Path:
    """The folder of a task in a bundle."""
    return bundle / "tasks" / taskname


def write_task(bundle: Path, entry: TaskEntry) -> None:
    """Writes `task.json` of a task, and its rows or its prefix."""
    folder = task_folder(bundle, entry.task.taskname)
    folder.mkdir(parents=True)
    write_json(folder / TASK_NAME, entry.record())
    name = "prompt" if entry.prefix_kv is None else "prefix_kv"
    (folder / f"{name}.safetensors").write_bytes(tensor_bytes({name: entry.learned}))


def write_labels(bundle: Path, taskname: str, trie: LabelTrie | None) -> None:
    """Writes `labels.json` of a task whose answers are a closed set."""
    if trie is not None:
        path = task_folder(bundle, taskname) / LABELS_NAME
        text = json.dumps(plain_from_config(trie), ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON that a person can read and a diff can compare; null for NaN."""
    text = json.dumps(with_null(value), indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def write_manifest(
    bundle: Path, manifest: Manifest, noted: Mapping[str, FileRecord] = MappingProxyType({})
) -> None:
    """Writes `manifest.json` over all files that a runtime reads: the last thing an export does.

    Args:
        bundle: its folder.
        manifest: what it says, besides the sums.
        noted: sums and sizes of files that have not changed since; the others are read.
    """
    files = records_of(bundle, left_out=_NOT_SUMMED, noted=noted)
    stored = _StoredManifest(**{**vars(manifest), "files": files})
    content = {"format": FORMAT, "version": VERSION, **plain_from_config(stored)}
    if manifest.kernels == KERNELS_AT_FIRST:
        # Releases with older kernels know no such key, and so refuse what they would get wrong.
        del content["kernels"]
    if manifest.no_tokenizer_tables is None:
        del content["no_tokenizer_tables"]
    write_json(bundle / MANIFEST, content)


def read_bundle(
    folder: Path, tasks: Collection[str] = (), *, sums: bool = True, base: bool = True
) -> Bundle:
    """Opens a bundle and checks every file of it that is used.

    Args:
        folder: the bundle.
        tasks: those that are used; all if empty. Of the others no file is read.
        sums: whether files are read to compare their sums; names and sizes are always compared.
            A caller that has just made the sums passes False.
        base: whether that holds for the files in `base/`, too. A caller that does not use them
            passes False.

    Raises:
        ArtifactError: no manifest, a newer version, a file that is missing, altered or cut short,
            a path that leads out of the folder, or a task that is not there or cannot be read.
    """
    doing = f"opening the bundle {folder}"
    manifest = _read_manifest(folder, doing)
    for name in tasks:
        if name not in manifest.tasks:
            found, fix = unknown_name(name, manifest.tasks, what="task")
            raise ArtifactError(f"looking into the bundle {folder}", found=found, fix=fix)
    unused = frozenset(manifest.tasks).difference(tasks) if tasks else frozenset()

    def is_read(name: str) -> bool:
        room, _, inside = name.partition("/")
        if room == "tasks" and inside.partition("/")[0] in unused:
            return False
        return sums and (base or room != "base")

    check_files(
        folder, manifest.files, doing, left_out=_NOT_SUMMED, is_read=is_read, fix=_COPY_OR_EXPORT
    )
    entries = {name: _read_task(folder, name, manifest) for name in tasks or manifest.tasks}
    return Bundle(folder, manifest, entries, manifest.files)


def _read_manifest(folder: Path, doing: str) -> "_StoredManifest":
    path = folder / MANIFEST
    try:
        content = read_json_object(path, ArtifactError, f"{doing}, {MANIFEST}", fix=_COPY_OR_EXPORT)
    except FileNotFoundError:
        found = f"no {MANIFEST}" if folder.exists() else "there is no such folder"
        raise ArtifactError(
            doing, found=found, expected="a folder that 'plc export' wrote"
        ) from None
    if content.pop("format", None) != FORMAT:
        raise ArtifactError(doing, found=f"{MANIFEST} of another format", expected=FORMAT)
    version = content.pop("version", None)
    if type(version) is not int or version != VERSION:  # 1.0 and true are equal to 1
        raise ArtifactError(
            doing,
            found=f"version {version}",
            expected=str(VERSION),
            fix="Use the release of plc that wrote it, or a newer one.",
        )
    try:
        manifest = build(_StoredManifest, node_from_plain(content, MANIFEST), doing=doing)
    except (RecursionError, ConfigError) as error:
        raise ArtifactError(doing, found=f"damaged {MANIFEST}: {reason_of(error)}") from error
    baked = manifest.tasks if manifest.graph.prompts == "baked" else ()
    if manifest.graph.baked_tasks != baked:
        raise ArtifactError(
            doing,
            found=f"damaged {MANIFEST}: baked_tasks {list(manifest.graph.baked_tasks)}",
            expected=str(list(baked)),
        )
    base, graph = manifest.base, manifest.graph
    if (graph.hidden, graph.vocab) != (base.hidden, base.vocab):
        raise ArtifactError(
            doing,
            found=f"damaged {MANIFEST}: a graph of hidden {graph.hidden}, vocab {graph.vocab}",
            expected=f"hidden {base.hidden}, vocab {base.vocab}, as its base",
        )
    if graph.ranks > graph.kv_heads:
        raise ArtifactError(
            doing,
            found=f"damaged {MANIFEST}: ranks {graph.ranks}",
            expected=f"at most the {graph.kv_heads} key and value heads that they divide",
        )
    if "tokenizer.json" not in manifest.files:
        raise ArtifactError(
            doing, found="tokenizer.json is not in the manifest", fix=_COPY_OR_EXPORT
        )
    if manifest.no_tokenizer_tables is not None and TABLES_NAME in manifest.files:
        raise ArtifactError(
            doing,
            found=f"damaged {MANIFEST}: {TABLES_NAME}, and no_tokenizer_tables "
            f"'{manifest.no_tokenizer_tables}'",
            expected="one of them",
        )
    _check_graphs(manifest, doing)
    return manifest


def _check_graphs(manifest: "_StoredManifest", doing: str) -> None:
    """Raises `ArtifactError` unless there is one graph, or one for each rank."""
    ranks = manifest.graph.ranks
    folders = [rank_folder(rank) for rank in range(ranks)] if ranks > 1 else [""]
    expected = {(PurePosixPath("base") / folder / MODEL_NAME).as_posix() for folder in folders}
    found = {
        name
        for name in manifest.files
        if name.startswith("base/") and name.endswith(f"/{MODEL_NAME}")
    }
    for name in sorted(expected - found) or sorted(found - expected):
        raise ArtifactError(
            doing,
            found=f"damaged {MANIFEST}: ranks {ranks}, and '{name}' is "
            f"{'missing' if name in expected else 'one too many'}",
            expected=f"base/{MODEL_NAME}; of more ranks one in each of base/rank0, base/rank1, …",
        )


@dataclass(frozen=True)
class _StoredManifest(Manifest):
    """The manifest as it is stored: with the sums."""

    files: Mapping[str, FileRecord] = field(kw_only=True)


def _read_task(folder: Path, name: str, manifest: _StoredManifest) -> TaskEntry:
    doing = f"reading task '{name}' of the bundle {folder}"
    if f"tasks/{name}/task.json" not in manifest.files:
        raise ArtifactError(doing, found="task.json is not in the manifest")
    learned = _read_learned(folder, name, manifest, doing)
    path = task_folder(folder, name) / TASK_NAME
    try:
        record = read_json_object(path, ArtifactError, f"{doing}, {path.name}", fix=_COPY_OR_EXPORT)
        entry = entry_from_record(record, learned, name, base=manifest.base, doing=doing)
    except (RecursionError, ConfigError) as error:
        raise ArtifactError(doing, found=f"damaged task.json ({reason_of(error)})") from error
    check_prefix(entry, manifest.graph, doing)
    virtual, capacity = entry.task.total_virtual_tokens, manifest.graph.capacity
    if virtual + 2 > capacity:
        raise ArtifactError(
            doing,
            found=f"{virtual} virtual tokens, and a capacity of {capacity}",
            expected="room for a token and an answer after them",
        )
    return entry


def _read_learned(
    folder: Path, name: str, manifest: _StoredManifest, doing: str
) -> NDArray[np.float32]:
    """The rows or the prefix of a task, whichever it has. The caller checks the shape."""
    known = [f"{tensor}.safetensors" for tensor in _LEARNED_AXES]
    found = [file for file in known if f"tasks/{name}/{file}" in manifest.files]
    if len(found) != 1:
        raise ArtifactError(
            doing,
            found=f"{' and '.join(found) or 'no ' + ' and no '.join(known)} in the manifest",
            expected="one of them",
        )
    path = task_folder(folder, name) / found[0]
    tensors = read_tensor_file(path, doing=f"reading {path}", floats=True, mapped=True).tensors
    tensor = path.stem
    if list(tensors) != [tensor]:
        raise ArtifactError(
            doing, found=f"tensors {list(tensors)} in {path.name}", expected=f"'{tensor}' alone"
        )
    learned = tensors[tensor]
    # From here on, the number of axes tells rows from a prefix.
    if (learned.ndim == _LEARNED_AXES["prefix_kv"]) != (tensor == "prefix_kv"):
        raise ArtifactError(
            doing,
            found=f"{learned.dtype} {learned.shape} in {path.name}",
            expected=f"{_LEARNED_AXES[tensor]} axes",
        )
    return learned
