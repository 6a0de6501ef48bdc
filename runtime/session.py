"""The session: requests for any mix of tasks in, answers out.

A loader, a splice and a loop. Everything intricate was done by the compiler; here prompts are
rendered, rows are stepped together, and a row leaves when it is finished. The engine is one of
`runtime/engines/`, or anything with its face.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.bundle import MODEL_NAME, read_bundle
from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.errors import ArtifactError, DataError, RequestError, unknown_name
from pl_compile.runtime.answer_text import AnswerText
from pl_compile.runtime.batch import pad_right, parts_that_fit
from pl_compile.runtime.choices import Choices
from pl_compile.runtime.engines.engine import Engine, Float32, prefix_length
from pl_compile.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pl_compile.runtime.requests import Event, FinishReason, Request, Result
from pl_compile.runtime.sampling import next_token
from pl_compile.runtime.task_prompt import TaskPrompt
from pl_compile.text.render import Rendered
from pl_compile.text.tokenizer import Tokenizer


class Session:
    """Answers requests from compiled artifacts.

    Not safe for use from several threads at once: the cache is one.

    Args:
        tokenizer: the base's.
        entries: the tasks by name.
        engine: runs the steps.
        baked_tasks: names that `task_id` 0, 1, … stand for, where prompts are baked.

    Raises:
        ConfigError: a template that cannot be parsed.
        ArtifactError: a learned prefix that its template does not open with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        entries: Mapping[str, TaskEntry],
        engine: Engine,
        baked_tasks: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.engine = engine
        self._streaming = False
        self.prompts = {
            name: TaskPrompt.of(
                entry, tokenizer, baked_tasks.index(name) if name in baked_tasks else 0
            )
            for name, entry in entries.items()
        }

    @classmethod
    def open(
        cls,
        bundle: Path,
        *,
        max_batch: int = 16,
        threads: int | None = None,
        allow_failed_parity: bool = False,
    ) -> "Session":
        """A session on a bundle, every file of it checked.

        Args:
            bundle: the folder that `plc export` wrote.
            max_batch: rows that step together at most.
            threads: of the engine; all cores if None.
            allow_failed_parity: whether to serve a bundle that its export marked as failed.

        Raises:
            ArtifactError: the bundle is damaged, was marked as failed, or was built for a target
                this runtime does not run.
            RequestError: `max_batch` is below 1.
        """
        if max_batch < 1:
            raise RequestError(
                "opening a session", found=f"max_batch {max_batch}", expected="at least 1"
            )
        checked = read_bundle(Path(bundle))
        manifest = checked.manifest
        if manifest.target != "onnx-cpu":
            raise ArtifactError(
                f"opening the bundle {bundle}",
                found=f"target '{manifest.target}'",
                expected="'onnx-cpu'",
                fix="Export it again with --target onnx-cpu.",
            )
        if manifest.parity == "failed" and not allow_failed_parity:
            raise ArtifactError(
                f"opening the bundle {bundle}",
                found="its numbers differ from the reference (parity failed)",
                fix="See plc verify and the bundle's report.json; export it again.",
            )
        engine = OnnxRuntimeEngine(
            checked.base_folder / MODEL_NAME,
            manifest.graph,
            max_batch=max_batch,
            threads=threads,
        )
        tokenizer = Tokenizer.from_folder(checked.folder)
        return cls(tokenizer, checked.entries, engine, manifest.graph.baked_tasks)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """The answers to `requests`, in their order.

        Raises:
            RequestError: one of them cannot be served; it says which and why. None is started.
        """
        results = {
            event.index: event.result for event in self.stream(requests) if event.result is not None
        }
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Generator[Event, None, None]:
        """The answers piece by piece, as they are written; pieces of several rows take turns.

        Raises:
            RequestError: as for `generate`, before the first event.
        """
        rows = [self._row(index, request) for index, request in enumerate(requests)]
        rows.sort(key=lambda row: len(row.input_ids))  # neighbours in length waste little padding
        if self._streaming:
            raise RequestError(
                "starting a stream",
                found="another one of this session that has not ended",
                fix="Read it to its end or close it first, or open a second session.",
            )
        self._streaming = True
        try:
            parts = parts_that_fit(
                [len(row.input_ids) for row in rows],
                [prefix_length(row.prompt) for row in rows],
                capacity=self.engine.capacity,
                max_batch=self.engine.max_batch,
            )
            for part in parts:
                yield from self._run(rows[part])
        finally:
            self._streaming = False

    def check(self, request: Request) -> None:
        """Raises `RequestError` if `request` cannot be served."""
        self._row(0, request, doing="checking a request")

    def _row(self, index: int, request: Request, *, doing: str = "") -> "_Row":
        doing = doing or f"serving request {index}"
        if request.task not in self.prompts:
            found, fix = unknown_name(request.task, tuple(self.prompts), what="task")
            raise RequestError(doing, found=found, fix=fix)
        prompt = self.prompts[request.task]
        choices = None
        try:
            rendered, cut_tokens = self._rendered(request, prompt)
            if request.constrain and prompt.choices:
                choices = Choices(prompt.renderer.answers(request.fields, prompt.choices))
        except DataError as error:
            raise RequestError(doing, found=str(error)) from error
        if not request.use_prompt:
            rendered, prompt = rendered.without_virtual(), prompt.without_prefix()
        fed = prompt.fed(rendered)
        if not len(fed):
            after = "" if prompt.prefix_kv is None else " after the prefix"
            expected = f"at least one token{after}"
            raise RequestError(doing, found="an empty prompt", expected=expected)
        room = self.engine.capacity - len(rendered)
        return _Row(
            index=index,
            request=request,
            prompt=prompt,
            input_ids=fed.input_ids(self.engine.vocab),
            prompt_tokens=len(rendered),
            seen=rendered.token_ids[rendered.virtual_rows < 0].tolist(),
            limit=min(request.max_tokens, room) if choices is None else room,
            cut_tokens=cut_tokens,
            choices=choices,
            text=AnswerText(self.tokenizer, request.stop),
        )

    def _rendered(self, request: Request, prompt: TaskPrompt) -> tuple[Rendered, int]:
        """The prompt of a task, fitted into the cache, and how many tokens it lost."""
        capacity = self.engine.capacity
        whole = fitted = prompt.renderer.prompt(request.fields)
        if len(whole) >= capacity:
            # Only a prompt that does not fit is cut. It makes room for the answer, within reason.
            task = prompt.renderer.template.task
            room = 1 if task.truncate_field is None else min(request.max_tokens, capacity // 4)
            fitted = prompt.renderer.prompt(request.fields, max_length=capacity - room)
        return fitted, len(whole) - len(fitted)

    def _run(self, rows: list["_Row"]) -> Iterator[Event]:
        """Steps rows together until all are finished."""
        input_ids, lengths = pad_right([row.input_ids for row in rows])
        past = self.engine.start([row.prompt for row in rows])
        last = lengths - 1
        while rows:
            prompts = [row.prompt for row in rows]
            logits = self.engine.step(input_ids, past, last, prompts)
            past = past + last + 1
            for index, row in enumerate(rows):
                yield row.advance(logits[index])
            live = [index for index, row in enumerate(rows) if row.finished is None]
            if len(live) < len(rows):
                self.engine.keep(live)
                rows, past = [rows[index] for index in live], past[live]
            input_ids = np.asarray([[row.token_ids[-1]] for row in rows], np.int64)
            last = np.zeros(len(rows), np.int64)


class _Row:
    """A request under way."""

    def __init__(
        self,
        *,
        index: int,
        request: Request,
        prompt: TaskPrompt,
        input_ids: NDArray[np.int64],
        prompt_tokens: int,
        seen: list[int],
        limit: int,
        cut_tokens: int,
        choices: Choices | None,
        text: AnswerText,
    ) -> None:
        self.prompt = prompt
        self.input_ids = input_ids
        self.token_ids: list[int] = []
        self.finished: FinishReason | None = None
        self._index = index
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._seen = seen
        self._limit = limit
        self._cut_tokens = cut_tokens
        self._choices = choices
        self._text = text
        self._generator = np.random.default_rng(request.sampling.seed)

    def advance(self, logits: Float32) -> Event:
        """Chooses a token from the row's logits and tells what it added."""
        eos_id = self.prompt.renderer.rules.eos_id
        token_id = next_token(
            logits,
            self._request.sampling,
            self._generator,
            seen=self._seen,
            blocked=eos_id if len(self.token_ids) < self._request.min_tokens else None,
            allowed=self._choices.allowed() if self._choices else None,
        )
        self.token_ids.append(token_id)
        self._seen.append(token_id)
        if token_id == eos_id:
            self.finished = "stop"
            return self._event(self._text.finish())
        piece = self._text.push(token_id)
        if self._choices is not None:
            self._choices.push(token_id)
        if self._text.stopped or (self._choices is not None and not self._choices.allowed()):
            self.finished = "stop"
        elif len(self.token_ids) >= self._limit:
            self.finished = "length"
        if self.finished is not None:
            piece += self._text.finish()
        return self._event(piece)

    def _event(self, piece: str) -> Event:
        if self.finished is None:
            return Event(self._index, piece)
        result = Result(
            self._request.task,
            self._text.text,
            tuple(self.token_ids),
            self.finished,
            self._prompt_tokens,
            self._cut_tokens,
        )
        return Event(self._index, piece, result)
