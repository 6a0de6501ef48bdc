"""`docs/artifact-format.md`, from "Graph" on: a whole reader, one row at a time.

It runs the graph with ONNX Runtime, and uses nothing of this project.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from drawing_by_the_page import GREEDY, Generator, Options, choose, float32, repeated, total
from files_by_the_page import identity_of_folded, read_manifest, tensors_in
from numpy.typing import NDArray
from rendering_by_the_page import WIDE, PageRenderer, Tree

Array = NDArray[Any]
Fields = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Asked:
    """A request."""

    task: str
    fields: Fields
    max_tokens: int = 64
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    options: Options = GREEDY
    constrain: bool = True
    use_prompt: bool = True
    bad_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task of a bundle."""

    record: dict[str, Any]
    renderer: PageRenderer
    rows: Array
    learned: Array | None
    folded: Array | None
    labels: dict[str, Any] | None

    @property
    def prefix(self) -> Array | None:
        """What a row's caches begin with."""
        return self.learned if self.folded is None else self.folded


# What graphs took before manifests said so.
_FIRST_INPUTS = ["temperature", "top_k", "top_p"]

_GREEDY: tuple[dict[str, float], list[float]] = (
    {"temperature": 0, "top_k": 1, "top_p": 1, "min_p": 0},
    [],
)


class PageReader:
    """A bundle, opened by the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        defaults = {"candidates": 0, "ranks": 1, "baked_tasks": [], "sampling_inputs": []}
        self.graph = {**defaults, **self.manifest["graph"]}
        self.graph["sampling_inputs"] = self.graph["sampling_inputs"] or _FIRST_INPUTS
        self.file = (folder / "tokenizer.json").read_text(encoding="utf-8")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # caches have memory of their own: it warns of each
        self.model = onnxruntime.InferenceSession(folder / "base/model.onnx", options)
        self.tasks = {name: self._task(name) for name in self.manifest["tasks"]}

    def _task(self, name: str) -> Task:
        folder = self.folder / "tasks" / name
        record = json.loads((folder / "task.json").read_bytes())
        rows, learned = np.zeros((0, self.graph["hidden"]), np.float32), None
        if (folder / "prompt.safetensors").exists():
            rows = tensors_in(folder / "prompt.safetensors")[0]["prompt"]
        else:
            learned = tensors_in(folder / "prefix_kv.safetensors")[0]["prefix_kv"]
        renderer = PageRenderer(record, self.file, self.graph["vocab"])
        folded, path = None, folder / "folded_kv.safetensors"
        if path.exists():
            tensors, metadata = tensors_in(path)
            folded = tensors["folded_kv"]
            opening, vocab = renderer.opening(), self.graph["vocab"]
            ids = [0 if each >= vocab else each for each in opening]
            virtual = [each - vocab if each >= vocab else -1 for each in opening]
            of = rows if learned is None else learned
            identity = identity_of_folded(self.manifest, of, ids, virtual)
            assert json.loads(metadata["identity"]) == identity
            assert folded.shape[3] == len(opening)
        labels = None
        if record["task"]["choices"]:
            labels = json.loads((folder / "labels.json").read_bytes())
            empty = {
                each.text: ""
                for each in renderer.segments
                if each.kind == "field" and each.text != renderer.answer
            }
            tree = renderer.tree(empty)
            assert (labels["parents"], labels["tokens"]) == (tree.parents, tree.tokens)
            assert labels["ends"] == tree.ends
            assert labels["fixed"] == renderer.is_fixed()
        return Task(record, renderer, rows, learned, folded, labels)

    def answer(self, asked: Asked) -> dict[str, Any]:
        """The answer to a request."""
        row = _Row(self, asked)
        while not row.reason:
            row.write()
        return {
            "text": row.text,
            "token_ids": tuple(row.written),
            "finish_reason": row.reason,
            "prompt_tokens": row.prompt_tokens,
            "cut_tokens": row.cut_tokens,
        }

    def log_probabilities(self, asked: Asked) -> list[float]:
        """Those of a task's labels."""
        row = _Row(self, asked)
        assert row.tree is not None
        found = []
        for end in row.tree.ends:
            path, whole = row.tree.path(end), 0.0
            logits, caches, past = row.logits, row.caches, row.past
            for token in path:
                x = [float(each) for each in logits]
                most = max(x)
                whole += x[token] - (most + math.log(total([math.exp(e - most) for e in x])))
                logits, caches = row.run([token], caches, past)
                past += 1
            found.append(whole)
        return found

    def selftest(self, name: str) -> float:
        """The largest difference of a task's self-test, as a part of the largest logit."""
        task = self.tasks[name]
        arrays, _ = tensors_in(self.folder / "tasks" / name / "selftest.safetensors")
        worst, before = 0.0, 0 if task.learned is None else task.learned.shape[3]
        for index, length in enumerate(arrays["lengths"]):
            ids = arrays["input_ids"][index, :length].tolist()
            row = _Row(self, Asked(name, {}), given=ids, before=before)
            for step, tokens in enumerate(arrays["tokens"]):
                expected = arrays["logits"][step, index]
                worst = max(worst, float(np.abs(row.logits[arrays["logit_ids"]] - expected).max()))
                assert int(row.logits.argmax()) == tokens[index]
                row.feed([int(tokens[index])])
        return worst / float(np.abs(arrays["logits"]).max())


class _Row:
    """A request under way."""

    def __init__(
        self, reader: PageReader, asked: Asked, *, given: list[int] | None = None, before: int = 0
    ) -> None:
        self.reader, self.asked = reader, asked
        self.task = task = reader.tasks[asked.task]
        self.vocab, self.capacity = reader.graph["vocab"], reader.graph["capacity"]
        choices = bool(task.record["task"]["choices"])
        self.tree: Tree | None = None
        self.spans: dict[tuple[int, ...], str] | None = None
        self.prefix = task.prefix
        if given is None:
            ids = self._rendered(choices and asked.constrain)
        else:
            ids = [self.vocab] * before + given  # stand-ins for what a learned prefix holds
        self.seen = [each for each in ids if each < self.vocab]
        if not asked.use_prompt:
            ids, self.prefix = list(self.seen), None
        self.prompt_ids = ids
        self.prompt_tokens = len(ids)
        self.limit = min(asked.max_tokens, self.capacity - len(ids))
        held = self._held(ids)
        self.written: list[int] = []
        self.node, self.reason, self.text = 0, "", ""
        self.generator = Generator(asked.options.seed)
        self.past = held
        self.caches = self._empty()
        self.drawn: int | None = None
        if held == len(ids):
            raise ValueError("nothing is left to give")
        self.feed(ids[held:])

    def _rendered(self, held_to_choices: bool) -> list[int]:
        renderer, asked = self.task.renderer, self.asked
        values = renderer.fitted(asked.fields, self.capacity, asked.max_tokens, held_to_choices)
        ids = renderer.prompt(values)
        self.cut_tokens = len(renderer.prompt(asked.fields)) - len(ids)
        if held_to_choices:
            self.tree = renderer.tree(values)
        if asked.constrain and self.task.record["task"].get("answer"):
            self.spans = renderer.spans(values)
        return ids

    def _held(self, ids: list[int]) -> int:
        p = 0 if self.prefix is None else self.prefix.shape[3]
        most = len(ids) - 1
        if self.task.learned is not None:
            most = max(most, sum(each >= self.vocab for each in ids))
        return min(p, max(most, 0))

    def _empty(self) -> dict[str, Array]:
        graph, caches = self.reader.graph, {}
        shape = (1, graph["kv_heads"], graph["capacity"], graph["head_dim"])
        for layer in range(graph["layers"]):
            for place, kind in enumerate(("key", "value")):
                cache = np.zeros(shape, np.float32)
                if self.prefix is not None:
                    cache[0, :, : self.prefix.shape[3]] = self.prefix[layer, place]
                caches[f"past_{kind}.{layer}"] = cache
        return caches

    def feed(self, ids: list[int]) -> None:
        """A step of the row."""
        self.draw = self._draw()
        self.logits, self.caches = self.run(ids, self.caches, self.past)
        self.past += len(ids)

    def run(
        self, ids: list[int], caches: dict[str, Array], past: int
    ) -> tuple[Array, dict[str, Array]]:
        """A step: logits, and the caches after it."""
        graph, asked = self.reader.graph, self.asked
        inputs: dict[str, Array] = {
            "input_ids": np.asarray([ids], np.int64),
            "past_lengths": np.asarray([past], np.int64),
            "last_index": np.asarray([len(ids) - 1], np.int64),
            **caches,
        }
        if graph["prompts"] == "baked":
            place = graph["baked_tasks"].index(asked.task)
            inputs["task_id"] = np.asarray([place], np.int64)
        else:
            rows = self.task.rows if len(self.task.rows) else np.zeros((1, graph["hidden"]))
            inputs["prompt_table"] = rows[None].astype(np.float32)
        if graph["candidates"]:
            numbers, noise = self.draw or _GREEDY
            padded = [*noise, *[0.0] * (graph["candidates"] - len(noise))]
            for name in graph["sampling_inputs"]:
                kind = np.int64 if name == "top_k" else np.float32
                inputs[name] = np.asarray([numbers[name]], kind)
            inputs["noise"] = np.asarray([padded], np.float32)
        names = [output.name for output in self.reader.model.get_outputs()]
        outputs = dict(zip(names, self.reader.model.run(names, inputs), strict=True))
        self.drawn = int(outputs["next_token"][0]) if graph["candidates"] else None
        after = {name: outputs[name.replace("past", "present")] for name in caches}
        logits: Array = outputs["logits"][0]
        return logits, after

    def _draw(self) -> tuple[dict[str, float], list[float]] | None:
        """What the graph is given where it chooses."""
        options, candidates = self.asked.options, self.reader.graph["candidates"]
        waits = len(self.written) < self.asked.min_tokens
        held = self.tree is not None or self.spans is not None
        if not candidates or held or waits or options.repetition_penalty != 1:
            return None
        if options.no_repeat_ngram or self.asked.bad_words:
            return None
        if options.temperature == 0:
            return _GREEDY
        if not 1 <= options.top_k <= candidates:
            return None
        noise = [float32(self.generator.noise()) for _ in range(options.top_k)]
        return vars(options), noise

    def write(self) -> None:
        """One more token."""
        record = self.task.record
        ends = [each for each in (record["eos_id"], *record.get("end_ids", ())) if each is not None]
        token: int | None
        if self.draw is not None and self.drawn is not None:
            token = self.drawn
        elif self._allowed(ends) == []:
            token = None
        else:
            token = choose(
                self.logits.tolist(),
                self.asked.options,
                self.generator,
                seen=self.seen,
                blocked=self._blocked(ends),
                allowed=self._allowed(ends),
                left_out=lambda token: token not in ends and self._is_bad(token),
            )
        if token is None:
            self._end(False)
            self.reason = "stop"
            return
        self.written.append(token)
        self.seen.append(token)
        if self.tree is not None:
            self._choose(self.tree, token)
        else:
            self._end(token in ends)
            if not self.reason and self._allowed(ends) == []:
                self._end(False)
                self.reason = "stop"
        if not self.reason:
            self.feed([token])

    def _allowed(self, ends: list[int]) -> list[int] | None:
        """The only tokens that may come; None where any may."""
        if self.tree is not None:
            return list(self.tree.children(self.node))
        if self.spans is None:
            return None
        count, written = len(self.written), tuple(self.written)
        follow = {ids[count] for ids in self.spans if ids[:count] == written and len(ids) > count}
        if written in self.spans and count >= self.asked.min_tokens:
            follow |= set(ends)
        return [each for each in sorted(follow) if each in ends or not self._is_bad(each)]

    def _blocked(self, ends: list[int]) -> list[int]:
        size = self.asked.options.no_repeat_ngram
        again = repeated([*self.prompt_ids, *self.written], size)
        waits = len(self.written) < self.asked.min_tokens
        return [*(ends if waits else ()), *(each for each in again if each < self.vocab)]

    def _is_bad(self, token: int) -> bool:
        if self.tree is not None or not self.asked.bad_words:
            return False
        text = self._decoded([*self.written, token])
        return any(word in text for word in self.asked.bad_words)

    def _choose(self, tree: Tree, token: int) -> None:
        self.node = tree.children(self.node)[token]
        if self.node in tree.ends:
            place = tree.ends.index(self.node)
            self.reason, self.text = "stop", self.task.record["task"]["choices"][place].strip(WIDE)

    def _end(self, is_end: bool) -> None:
        ids = self.written[:-1] if is_end else self.written
        text = self._decoded(ids)
        stopped = any(stop in text for stop in self.asked.stop)
        if is_end or stopped:
            self.reason = "stop"
        elif len(self.written) >= self.limit:
            self.reason = "length"
        places = [text.find(stop) for stop in self.asked.stop if stop in text]
        self.text = text[: min(places, default=len(text))].strip(" ")

    def _decoded(self, ids: list[int]) -> str:
        added = self.task.renderer.tokenizers.added
        shown = [each for each in ids if not added.get(each, {"special": False})["special"]]
        text: str = self.task.renderer.tokenizers.t.decode(shown, skip_special_tokens=False)
        return text
