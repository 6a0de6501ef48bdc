"""The session: requests for any mix of tasks in, answers out.

A loader, a splice and a loop. Everything intricate was done by the compiler; here prompts are
rendered, rows are stepped together, and a row leaves when it is finished. The engine is one of
`runtime/engines/`, or anything with its face.
"""

import os
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.config.plain_values import shown, whole
from pl_compile.config.sizes import MOST
from pl_compile.errors import (
    AnswerError,
    ArtifactError,
    DataError,
    RequestError,
    check_all,
    unknown_name,
)
from pl_compile.runtime.answer_text import AnswerText
from pl_compile.runtime.batch import pad_right, parts_that_fit
from pl_compile.runtime.engines.engine import (
    ClosingEngine,
    DrawingEngine,
    Engine,
    Float32,
    Int64,
)
from pl_compile.runtime.engines.onnxruntime.providers import Provider
from pl_compile.runtime.engines.opening import open_engine
from pl_compile.runtime.one_reader import OneReader
from pl_compile.runtime.requests import Event, FinishReason, LabelScore, Request, Result
from pl_compile.runtime.sampling import GREEDY, Draw, draw_in_graph, next_token
from pl_compile.runtime.task_prompt import TaskPrompt, prompts_of_bundle
from pl_compile.text.label_trie import LabelTrie, TrieWalk
from pl_compile.text.render import Rendered
from pl_compile.text.tokenizer import Tokenizer


class Session:
    """Answers requests from compiled artifacts.

    Not safe for use from several threads at once: the cache is one. What numpy does about numbers
    that overflow or vanish (`np.seterr`) is the caller's affair, and makes no difference here.

    It is closed with `close`, or as a context manager (`with Session.open(bundle) as session:`).

    Args:
        tokenizer: the base's.
        prompts: the tasks by name.
        engine: runs the steps, and is closed with the session.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompts: Mapping[str, TaskPrompt], engine: Engine
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts = dict(prompts)
        self._engine: Engine | None = engine
        self._streaming = False

    @classmethod
    def of_entries(
        cls, tokenizer: Tokenizer, entries: Mapping[str, TaskEntry], engine: Engine
    ) -> "Session":
        """A session on tasks as they were learned, nothing of them folded.

        Raises:
            ConfigError: a template that cannot be parsed.
            ArtifactError: a learned prefix that its template does not open with.
        """
        tasks = enumerate(entries.items())
        prompts = {name: TaskPrompt.of(entry, tokenizer, i) for i, (name, entry) in tasks}
        return cls(tokenizer, prompts, engine)

    @classmethod
    @np.errstate(all="ignore")
    def open(
        cls,
        bundle: str | Path,
        *,
        max_batch: int | None = None,
        threads: int | None = None,
        provider: Provider | None = None,
        allow_failed_parity: bool = False,
    ) -> "Session":
        """A session on a bundle, every file of it checked.

        Args:
            bundle: the folder that `plc export` wrote.
            max_batch: rows that step together at most, up to 4096; 16, or what a plan was built
                for, if None.
            threads: of the engine, or of each rank, up to 64 or four times the machine's cores;
                all cores if None.
            provider: of ONNX Runtime; that of the bundle's target if None.
            allow_failed_parity: whether to serve a bundle that its export marked as failed.

        Raises:
            ArtifactError: the bundle is damaged, was marked as failed, was built for a target or a
                machine that this is not, or holds a folded prefix of something else.
            RankError: a rank of a divided base cannot start.
            MissingExtraError: what runs the target is not installed.
            RequestError: an argument of a wrong type or beyond its range, or more rows than there
                is memory for.
        """
        max_batch = _count("max_batch", max_batch, MOST["max_batch"])
        # Each waits by spinning: with many more than there are cores, none gets on.
        threads = _count("threads", threads, max(64, 4 * (os.cpu_count() or 1)))
        problems = {
            f"bundle {shown(bundle)}, expected a path": isinstance(bundle, str | Path),
            f"provider {shown(provider)}, expected a Provider": (
                provider is None or isinstance(provider, Provider)
            ),
            f"allow_failed_parity {shown(allow_failed_parity)}, expected True or False": (
                isinstance(allow_failed_parity, bool)
            ),
        }
        check_all(RequestError, "opening a session", problems)
        checked = read_bundle(Path(bundle))
        manifest = checked.manifest
        if manifest.parity == "failed" and not allow_failed_parity:
            raise ArtifactError(
                f"opening the bundle {bundle}",
                found="its numbers differ from the reference (parity failed)",
                fix="See plc verify and the bundle's report.json; export it again.",
            )
        tokenizer = Tokenizer.from_folder(checked.folder, vocab=manifest.graph.vocab)
        prompts = prompts_of_bundle(checked, tokenizer)
        engine = open_engine(checked, max_batch=max_batch, threads=threads, provider=provider)
        return cls(tokenizer, prompts, engine)

    @property
    def engine(self) -> Engine:
        """What runs the steps.

        Raises:
            RequestError: the session was closed.
        """
        return self._check_open()

    def close(self) -> None:
        """Ends the ranks, and lets the caches and the base go. Closing once more does nothing.

        Afterwards each call raises `RequestError`; so does a stream that has not ended.
        """
        engine, self._engine = self._engine, None
        if isinstance(engine, ClosingEngine):
            engine.close()

    def _check_open(self) -> Engine:
        if self._engine is None:
            raise RequestError(
                "using a session",
                found="one that was closed",
                fix="Open another one: Session.open(bundle).",
            )
        return self._engine

    def __enter__(self) -> Self:
        """The session itself.

        Raises:
            RequestError: it was closed.
        """
        self._check_open()
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it, whatever happened."""
        self.close()

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """The answers to `requests`, in their order.

        Raises:
            RequestError: one of them cannot be served; it says which and why. None is started. Or
                the session was closed.
            AnswerError: the logits of some are no finite numbers. Its `results` are those of the
                others, in the order of the requests, and None for these.
        """
        requests = _listed(requests)
        results: dict[int, Result] = {}
        try:
            for event in self.stream(requests):
                if event.result is not None:
                    results[event.index] = event.result
        except AnswerError as error:
            error.results = tuple(results.get(index) for index in range(len(requests)))
            raise
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Iterable[Request]) -> Generator[Event, None, None]:
        """The answers piece by piece, as they are written; pieces of several rows take turns.

        Raises:
            RequestError: as for `generate`, before the first event; two threads read one stream; or
                the session is closed before its end.
            AnswerError: the logits of some requests are no finite numbers; after the last event of
                the others. What was handed out of such a request is not an answer.
        """
        return OneReader(self._events(requests))

    def _events(self, requests: Iterable[Request]) -> Generator[Event, None, None]:
        self._check_open()
        rows = [self._row(index, request) for index, request in enumerate(_listed(requests))]
        rows.sort(key=lambda row: len(row.input_ids))  # neighbours in length waste little padding
        with self._using_the_cache():
            parts = parts_that_fit(
                [len(row.input_ids) for row in rows],
                [row.held for row in rows],
                capacity=self.engine.capacity,
                max_batch=self.engine.max_batch,
            )
            for part in parts:
                for event in self._run(rows[part]):
                    yield event
                    self._check_open()  # the reader may have closed it
        _check_rows("answering requests", rows)

    @np.errstate(all="ignore")
    def score(self, requests: Iterable[Request]) -> list[tuple[LabelScore, ...]]:
        """The probability of every label of each request's task, in the order of its `choices`.

        Exact: the product of the probabilities of a label's tokens, EOS included. The prompt is run
        once; then all that the labels share and where they part is one batch behind it.

        Raises:
            RequestError: one cannot be served, its task has no choices, a label does not fit, or
                the session was closed.
            AnswerError: as for `generate`.
        """
        self._check_open()
        rows, tries = [], []
        for index, request in enumerate(_listed(requests)):
            doing = f"scoring request {index}"
            row = self._row(index, request, doing=doing, scored=True)
            if row.trie is None:
                raise RequestError(
                    doing,
                    found=f"task '{request.task}' has no choices",
                    expected="a task with a closed set of answers",
                )
            rows.append(row)
            tries.append(row.trie)
        with self._using_the_cache():
            scores = [self._scored(row, trie) for row, trie in zip(rows, tries, strict=True)]
        _check_rows("scoring requests", rows, [labels or None for labels in scores])
        return scores

    def _scored(self, row: "_Row", trie: LabelTrie) -> tuple[LabelScore, ...]:
        prompts = [row.prompt]
        self.engine.start(prompts)
        past, last = np.asarray([row.held]), np.asarray([len(row.input_ids) - 1])
        logits = self.engine.step(row.input_ids[None], past, last, prompts)
        if not _are_numbers(logits).all():
            return self._without_scores(row, used=1)
        reached = np.zeros(len(trie.parents))  # log-probability of the path to each node

        def spread(node: int, after: Float32) -> None:
            wide = after.astype(np.float64)
            total = wide.max() + np.log(np.exp(wide - wide.max()).sum())
            for token, child in trie.children[node].items():
                reached[child] = wide[token] - total  # of the step; summed up below

        spread(0, logits[0])
        nodes = trie.inner_nodes
        past = past + last + 1
        for start in range(0, len(nodes), self.engine.max_batch):
            part = nodes[start : start + self.engine.max_batch]
            ids, lengths = pad_right([np.asarray(trie.path(node)) for node in part])
            # Row 0 holds the prompt still: only what stands behind it was written over.
            self.engine.keep([0] * len(part), int(past[0]))
            logits = self.engine.step(ids, past.repeat(len(part)), lengths - 1, prompts * len(part))
            if not _are_numbers(logits).all():
                return self._without_scores(row, used=len(part))
            for node, after in zip(part, logits, strict=True):
                spread(node, after)
        for node, parent in enumerate(trie.parents):
            reached[node] += reached[parent] if node else 0.0
        log = reached[list(trie.ends)]
        shares = np.exp(log - log.max())
        shares /= shares.sum()
        return tuple(
            LabelScore(label.strip(), float(share), float(of_all))
            for label, share, of_all in zip(trie.labels, shares, log, strict=True)
        )

    def _without_scores(self, row: "_Row", *, used: int) -> tuple[LabelScore, ...]:
        """Notes that a row's logits are no numbers; none of them stays in the cache."""
        row.failed = True
        self.engine.clear(range(used))
        return ()

    @contextmanager
    def _using_the_cache(self) -> Iterator[None]:
        if self._streaming:
            raise RequestError(
                "starting a stream",
                found="another one of this session that has not ended",
                fix="Read it to its end or close it first, or open a second session.",
            )
        self._streaming = True
        try:
            yield
        finally:
            self._streaming = False

    def check(self, request: Request) -> int:
        """Whether `request` can be served, and how many tokens its truncate field would lose.

        Raises:
            RequestError: it cannot be served, or the session was closed.
        """
        self._check_open()
        return self._row(0, request, doing="checking a request").cut_tokens

    def _row(
        self, index: int, request: Request, *, doing: str = "", scored: bool = False
    ) -> "_Row":
        """A request as a row; of a closed set where it is constrained to it, or `scored`."""
        doing = doing or f"serving request {index}"
        if not isinstance(request, Request):
            raise RequestError(doing, found=shown(request), expected="a Request")
        if request.task not in self.prompts:
            found, fix = unknown_name(request.task, tuple(self.prompts), what="task")
            raise RequestError(doing, found=found, fix=fix)
        prompt = self.prompts[request.task]
        try:
            whole = prompt.renderer.prompt(request.fields)
            if prompt.choices and (request.constrain or scored):
                rendered, trie = self._with_room_for_choices(request, prompt, whole)
            else:
                rendered, trie = self._with_room(request, prompt, whole), None
        except DataError as error:
            raise RequestError(doing, found=str(error)) from error
        cut_tokens = len(whole) - len(rendered)
        if not request.use_prompt:
            rendered, prompt = rendered.without_virtual(), prompt.without_prefix()
        fed = prompt.fed(rendered)
        if not len(fed):
            after = "" if prompt.prefix_kv is None else " after the prefix"
            expected = f"at least one token{after}"
            raise RequestError(doing, found="an empty prompt", expected=expected)
        return _Row(
            index=index,
            request=request,
            prompt=prompt,
            input_ids=fed.input_ids(self.engine.vocab),
            held=len(rendered) - len(fed),
            prompt_tokens=len(rendered),
            seen=rendered.token_ids[rendered.virtual_rows < 0].tolist(),
            limit=min(request.max_tokens, self.engine.capacity - len(rendered)),
            cut_tokens=cut_tokens,
            trie=trie,
            text=AnswerText(self.tokenizer, request.stop),
        )

    def _with_room(self, request: Request, prompt: TaskPrompt, whole: Rendered) -> Rendered:
        """The prompt, cut where it does not fit; then it makes room for the answer, within reason.

        One that fits is left as it is: its answer may end where the cache does.
        """
        capacity = self.engine.capacity
        if len(whole) < capacity:
            return whole
        task = prompt.renderer.template.task
        room = 1 if task.truncate_field is None else min(request.max_tokens, capacity // 4)
        return prompt.renderer.prompt(request.fields, max_length=capacity - room)

    def _with_room_for_choices(
        self, request: Request, prompt: TaskPrompt, whole: Rendered
    ) -> tuple[Rendered, LabelTrie | None]:
        """The prompt, cut where the longest choice does not fit after it, and the choices."""
        trie, capacity = prompt.trie_behind(request.fields), self.engine.capacity
        if trie is None or len(whole) + trie.longest <= capacity:
            return whole, trie
        return prompt.renderer.prompt_and_choices(request.fields, max_length=capacity)

    def _run(self, rows: list["_Row"]) -> Iterator[Event]:
        """Steps rows together until all are finished."""
        input_ids, lengths = pad_right([row.input_ids for row in rows])
        self.engine.start([row.prompt for row in rows])
        past = np.asarray([row.held for row in rows], np.int64)
        last = lengths - 1
        while rows:
            logits, drawn = self._step(input_ids, past, last, rows)
            past = past + last + 1
            numbers = _are_numbers(logits)
            for index, row in enumerate(rows):
                if numbers[index]:
                    yield row.advance(logits[index], drawn[index])
                else:
                    row.failed = True
                    self.engine.clear([index])
            live = [index for index, row in enumerate(rows) if row.is_live]
            if len(live) < len(rows):
                self.engine.keep(live, int(past.max()))
                rows, past = [rows[index] for index in live], past[live]
            input_ids = np.asarray([[row.token_ids[-1]] for row in rows], np.int64)
            last = np.zeros(len(rows), np.int64)

    def _step(
        self, input_ids: Int64, past: Int64, last: Int64, rows: Sequence["_Row"]
    ) -> tuple[Float32, list[int | None]]:
        """Logits of each row, and its token where the graph has chosen it."""
        prompts = [row.prompt for row in rows]
        engine = self.engine
        if not isinstance(engine, DrawingEngine):
            return engine.step(input_ids, past, last, prompts), [None] * len(rows)
        draws = [row.draw(engine.candidates, engine.sampling_inputs) for row in rows]
        if not any(draws):
            return engine.step(input_ids, past, last, prompts), [None] * len(rows)
        given = [draw or GREEDY for draw in draws]
        logits, tokens = engine.step_and_draw(input_ids, past, last, prompts, given)
        pairs = zip(draws, tokens.tolist(), strict=True)
        return logits, [token if draw else None for draw, token in pairs]


def _are_numbers(logits: Float32) -> NDArray[np.bool_]:
    """Whether the logits of each row are numbers; if not, any token would seem the likeliest."""
    largest = logits.max(axis=-1)  # NaN where one of them is
    finite: NDArray[np.bool_] = np.isfinite(largest)
    return finite


def _check_rows(doing: str, rows: Iterable["_Row"], results: Sequence[Any] = ()) -> None:
    """Raises `AnswerError` with the rows whose logits were no numbers."""
    failed = sorted((row.index, row.request.task) for row in rows if row.failed)
    if failed:
        places = {index: f"request {index} (task '{task}')" for index, task in failed}
        raise AnswerError(doing, places, results=results)


def _listed(requests: Iterable[Request]) -> list[Request]:
    """The requests of a call, from whatever holds several of them."""
    try:
        waiting = iter(requests)  # some types only look as if they could be gone through
    except TypeError:
        raise RequestError(
            "reading the requests", found=shown(requests), expected="a list of Request"
        ) from None
    return list(waiting)


def _count(name: str, given: object, most: int) -> int | None:
    """An argument that counts something, or None where it is left to us."""
    count = whole(given)
    if given is not None and (count is None or not 1 <= count <= most):
        raise RequestError(
            "opening a session",
            found=f"{name} {shown(given)}",
            expected=f"a whole number, at least 1 and at most {most}",
        )
    return count


class _Row:
    """A request under way."""

    def __init__(
        self,
        *,
        index: int,
        request: Request,
        prompt: TaskPrompt,
        input_ids: NDArray[np.int64],
        held: int,
        prompt_tokens: int,
        seen: list[int],
        limit: int,
        cut_tokens: int,
        trie: LabelTrie | None,
        text: AnswerText,
    ) -> None:
        self.index = index
        self.request = request
        self.prompt = prompt
        self.input_ids = input_ids
        self.held = held
        self.prompt_tokens = prompt_tokens
        self.token_ids: list[int] = []
        self.finished: FinishReason | None = None
        self.failed = False  # its logits are no finite numbers
        self._seen = seen
        self._limit = limit
        self.cut_tokens = cut_tokens
        self.trie = trie
        self._choices = None if trie is None else TrieWalk(trie)
        self._chosen = ""  # what is certain of a choice
        self._text = text
        self._generator = np.random.default_rng(request.sampling.seed)

    @property
    def is_live(self) -> bool:
        """Whether there is more to write."""
        return self.finished is None and not self.failed

    def draw(self, candidates: int, inputs: Collection[str]) -> Draw | None:
        """What the graph needs to choose the next token; None where it is chosen here."""
        waits = len(self.token_ids) < self.request.min_tokens
        if self._choices is not None or waits:
            return None
        return draw_in_graph(self.request.sampling, self._generator, candidates, inputs)

    def advance(self, logits: Float32, drawn: int | None) -> Event:
        """Chooses a token from the row's logits, unless it is drawn, and tells what it added."""
        rules = self.prompt.renderer.rules
        token_id = drawn
        if token_id is None:
            token_id = next_token(
                logits,
                self.request.sampling,
                self._generator,
                seen=self._seen,
                blocked=rules.ends if len(self.token_ids) < self.request.min_tokens else (),
                allowed=self._choices.allowed() if self._choices else None,
            )
        self.token_ids.append(token_id)
        self._seen.append(token_id)
        if self._choices is not None:
            return self._choose(self._choices, token_id)
        if token_id in rules.ends:
            self.finished = "stop"
            return self._event(self._text.finish(), self._text.text)
        piece = self._text.push(token_id)
        if self._text.stopped:
            self.finished = "stop"
        elif len(self.token_ids) >= self._limit:
            self.finished = "length"
        if self.finished is not None:
            piece += self._text.finish()
        return self._event(piece, self._text.text)

    def _choose(self, choices: TrieWalk, token_id: int) -> Event:
        """A token of a choice, which is written to its end, whatever its tokens mean elsewhere.

        Its text is the choice's own, not that of its tokens: handed out as far as it is certain.
        """
        choices.push(token_id)
        if not choices.allowed():
            self.finished = "stop"
        piece = choices.text[len(self._chosen) :]
        self._chosen = choices.text
        return self._event(piece, self._chosen)

    def _event(self, piece: str, text: str) -> Event:
        if self.finished is None:
            return Event(self.index, piece)
        result = Result(
            self.request.task,
            text,
            tuple(self.token_ids),
            self.finished,
            self.prompt_tokens,
            self.cut_tokens,
        )
        return Event(self.index, piece, result)
