"""The session: requests for any mix of tasks in, answers out.

A request (`requests`) becomes a row of its task (`rows`, `served_task`) and waits for a slot
(`scheduler`). It steps together with others (`continuous`, `stepping`) on an engine
(`engines/engine`). Each step
gives it a token (`sampling`), until its answer (`answer_text`) is finished.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from pl_compile.artifact.bundle import Bundle, read_bundle
from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.config.plain_values import shown, whole
from pl_compile.config.sizes import MOST
from pl_compile.errors import AnswerError, RequestError, check_all, unknown_name
from pl_compile.runtime.continuous import Continuous, Load
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.onnxruntime.providers import Provider
from pl_compile.runtime.engines.opening import open_engine
from pl_compile.runtime.fair_lock import FairLock
from pl_compile.runtime.label_rows import BestLabelRow, ScoresRow
from pl_compile.runtime.lookup_rows import LookupRow
from pl_compile.runtime.more_tasks import check_new, check_parity, tasks_of_another
from pl_compile.runtime.one_reader import OneReader
from pl_compile.runtime.requests import BestLabel, Event, LabelScore, Request, Result
from pl_compile.runtime.row_maker import RowMaker
from pl_compile.runtime.rows import Row
from pl_compile.runtime.served_task import ServedTask, learned_tasks, tasks_of_bundle
from pl_compile.runtime.step_costs import StepCosts
from pl_compile.text.tokenizer import Tokenizer

# What a step brought: its events by row, and None for a row that ended without one
# (`Row.error` and `Row.failed` say why).
Brought = Sequence[tuple[Row, Event | None]]
# Takes what a step brought to the rows that were submitted with it. It is called with the session's
# lock held, by the thread that ran the step, and must return at once.
Inbox = Callable[[Brought], None]


class Session:
    """Answers requests from compiled artifacts.

    Any number of threads may use it, and streams may be read at once: all their requests share the
    slots of one cache and step together, whichever thread runs the step. The caller's setting of
    `np.seterr` (what numpy does about overflow and underflow) makes no difference here.

    Close it with `close`, or use it as a context manager (`with Session.open(bundle) as session:`).

    Args:
        tokenizer: the base's.
        tasks: by name.
        engine: runs the steps, and is closed with the session.
        drafts: as for `open`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tasks: Mapping[str, ServedTask],
        engine: Engine,
        *,
        drafts: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.tasks = dict(tasks)
        self._engine: Engine | None = engine
        self._costs = StepCosts() if drafts else None
        self._flow: Continuous | None = Continuous(engine, costs=self._costs)
        self._bundle: Bundle | None = None  # that the engine runs
        self._inboxes: dict[Row, Inbox] = {}  # of the streams that rows under way belong to
        self._lock = FairLock()

    @classmethod
    def of_entries(
        cls, tokenizer: Tokenizer, entries: Mapping[str, TaskEntry], engine: Engine
    ) -> "Session":
        """A session on tasks as they were learned: nothing is folded.

        Raises:
            ConfigError: a template that cannot be parsed.
            ArtifactError: a learned prefix, and a template that does not begin with its virtual
                tokens.
        """
        return cls(tokenizer, learned_tasks(entries, tokenizer), engine)

    @classmethod
    @np.errstate(all="ignore")
    def open(
        cls,
        bundle: str | Path,
        *others: str | Path,
        max_batch: int | None = None,
        threads: int | None = None,
        provider: Provider | None = None,
        allow_failed_parity: bool = False,
        context_mib: int | None = None,
        drafts: bool = False,
    ) -> "Session":
        """A session on a bundle, or on several of one base. Every file that is used is checked.

        Args:
            bundle: the folder that `plc export` wrote.
            others: more of them, whose tasks are served too, by the base of the first one.
            max_batch: most rows that step together, up to 4096; if None, 16, or what a plan was
                built for.
            threads: threads of the engine, or of each rank, up to 64 or four times the machine's
                cores; all cores if None.
            provider: of ONNX Runtime; that of the bundle's target if None.
            allow_failed_parity: whether to serve a bundle that its export marked as failed.
            context_mib: most MiB that are kept of prompts, so that later ones that begin alike need
                not compute it again; 0 keeps nothing, and no rows share anything. If None, an
                eighth of the cache of `max_batch` rows, at least that of one, where the engine can
                share entries (`native-cpu` with rounded weights); elsewhere nothing.
            drafts: whether greedy answers that are open draft tokens that followed the same ones
                before, in prompt or answer, and look at several in one step. They are the same
                answers, in fewer steps where they repeat much. Only engines with `branches` draft.

        Raises:
            ArtifactError: a bundle is damaged, is marked as failed, was built for another target
                or machine, or holds a prefix that was folded from something else.
            FingerprintError: the bundles hold different bases.
            RankError: a rank of a divided base cannot start.
            MissingExtraError: the package that runs the target is not installed.
            RequestError: an argument of a wrong type or beyond its range, two tasks of one name,
                more rows than there is memory for, or `context_mib` where nothing can be shared.
        """
        max_batch = _count("max_batch", max_batch, MOST["max_batch"])
        # A waiting thread keeps its core busy: with many more threads than cores, none makes
        # progress.
        threads = _count("threads", threads, max(64, 4 * (os.cpu_count() or 1)))
        context_mib = _count("context_mib", context_mib, MOST["context_mib"], least=0)
        checks = _bundle_checks((bundle, *others), allow_failed_parity)
        checks[f"provider {shown(provider)}, expected a Provider"] = provider is None or isinstance(
            provider, Provider
        )
        checks[f"drafts {shown(drafts)}, expected True or False"] = isinstance(drafts, bool)
        check_all(RequestError, "opening a session", checks)
        checked = read_bundle(Path(bundle))
        manifest = checked.manifest
        check_parity(checked, allowed=allow_failed_parity)
        tokenizer = Tokenizer.from_folder(checked.folder, vocab=manifest.graph.vocab)
        tasks = tasks_of_bundle(checked, tokenizer)
        for other in map(Path, others):
            more = tasks_of_another(
                checked, other, (), tokenizer, allow_failed_parity=allow_failed_parity
            )
            check_new(more, tasks, f"opening the bundle {other}")
            tasks |= more
        engine = open_engine(
            checked,
            max_batch=max_batch,
            threads=threads,
            provider=provider,
            context_mib=context_mib,
        )
        session = cls(tokenizer, tasks, engine, drafts=drafts)
        session._bundle = checked
        if context_mib and session.load.shared is None:
            session.close()
            raise RequestError(
                f"opening the bundle {bundle}",
                found=f"context_mib {context_mib}, and an engine whose requests share nothing",
                expected="a bundle for native-cpu with weights in 8 or 4 bits, and its kernels",
                fix="Leave it out, or give 0.",
            )
        return session

    def add_tasks(
        self, bundle: str | Path, tasks: Iterable[str] = (), *, allow_failed_parity: bool = False
    ) -> tuple[str, ...]:
        """Serves more tasks, while requests are answered.

        Files are read and checked before the session is touched, so no request waits for them.
        All tasks are added or, where one is refused, none.

        Args:
            bundle: a folder that holds them; its base is the session's. It may be the folder that
                the session was opened on, if it was exported again.
            tasks: their names; all of the bundle if empty.
            allow_failed_parity: as for `open`.

        Returns:
            Their names.

        Raises:
            ArtifactError: the bundle is damaged or marked as failed, or has no such task.
            FingerprintError: it holds another base.
            RequestError: a task of that name is served already, or the session is not one that
                `open` made, or was closed.
        """
        doing = f"adding tasks of the bundle {bundle}"
        self._check_open()
        if self._bundle is None:
            raise RequestError(doing, found="a session without a bundle", expected="Session.open")
        checks = _bundle_checks((bundle,), allow_failed_parity)
        names = None if isinstance(tasks, str) or not isinstance(tasks, Iterable) else tuple(tasks)
        checks[f"tasks {shown(tasks)}, expected a list of names"] = names is not None and all(
            isinstance(name, str) for name in names
        )
        check_all(RequestError, "adding tasks", checks)
        assert names is not None
        check_new(names, self.tasks, doing)  # before anything is read
        more = tasks_of_another(
            self._bundle,
            Path(bundle),
            names,
            self.tokenizer,
            allow_failed_parity=allow_failed_parity,
        )
        with self._lock:
            self._check_open()
            check_new(more, self.tasks, doing)
            self.tasks = {**self.tasks, **more}  # a new one: others may be reading the old one
        return tuple(more)

    def remove_task(self, name: str) -> None:
        """Serves a task no more. Its requests that wait or run are answered to their ends.

        Raises:
            RequestError: there is no such task, or the session was closed.
        """
        with self._lock:
            self._check_open()
            if not isinstance(name, str) or name not in self.tasks:
                found, fix = unknown_name(f"{name}", tuple(self.tasks), what="task")
                raise RequestError("removing a task", found=found, fix=fix)
            self.tasks = {key: task for key, task in self.tasks.items() if key != name}

    @property
    def engine(self) -> Engine:
        """What runs the steps.

        Raises:
            RequestError: the session was closed.
        """
        self._check_open()
        assert self._engine is not None
        return self._engine

    @property
    def load(self) -> Load:
        """How much there is to do now.

        Raises:
            RequestError: the session was closed.
        """
        return self._check_open().load

    def close(self) -> None:
        """Ends the ranks, and frees the caches and the base. Closing once more does nothing.

        After that, each call raises `RequestError`; so does a stream that has not ended.
        """
        with self._lock:
            engine, self._engine, self._flow = self._engine, None, None
            self._end_all(closed_session())
            if engine is not None:
                engine.close()

    def _check_open(self) -> Continuous:
        if self._flow is None:
            raise closed_session()
        return self._flow

    def __enter__(self) -> Self:
        """The session itself.

        Raises:
            RequestError: it was closed.
        """
        self._check_open()
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it, also after an error."""
        self.close()

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """The answers to `requests`, in their order.

        Raises:
            RequestError: one of them cannot be served (the error says which and why; then none is
                started), or the session was closed.
            AnswerError: the logits of some requests are not finite numbers. Its `results` are those
                of the others, in the order of the requests, with None for these.
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
                the session is closed before its end. A stream that is closed leaves its slots.
            AnswerError: the logits of some requests are not finite numbers. It is raised after the
                last event of the others. What was handed out for such a request is not an answer.
        """
        return OneReader(self._events(requests))

    def _events(self, requests: Iterable[Request]) -> Generator[Event, None, None]:
        rows = [
            self._row(index, request, f"serving request {index}")
            for index, request in enumerate(_listed(requests))
        ]
        rows.sort(key=lambda row: len(row.input_ids))  # neighbours in length waste little padding
        yield from self._events_of(rows, "answering requests")

    def _events_of(self, rows: Sequence[Row], doing: str) -> Generator[Event, None, None]:
        inbox: deque[Event] = deque()
        self.submit(rows, lambda brought: inbox.extend(event for _, event in brought if event))
        try:
            while self._has_more(rows, inbox):
                yield inbox.popleft()
                self._check_open()  # the reader may have closed it
        finally:
            self.leave(rows)
        _check_rows(doing, rows)

    def _has_more(self, rows: Sequence[Row], inbox: deque[Event]) -> bool:
        """Steps until there is an event for a stream; whether there is one."""
        while not inbox:
            # Rows are looked at between steps only: within one, a row may be finished before its
            # last event is in the inbox.
            with self._lock:
                flow = self._check_open()
                if inbox:  # brought by another thread's step
                    break
                if not any(row.is_live for row in rows):
                    for row in rows:
                        if row.error is not None:
                            raise row.error
                    return False
                self._step(flow)
        return True

    def _step(self, flow: Continuous) -> None:
        """One step of all rows under way; each stream gets what is its.

        Where the step fails, all of them end with its error, and the session begins anew.
        """
        try:
            events = flow.step()
        except BaseException as error:
            try:
                self._flow = Continuous(self.engine, costs=self._costs)
            finally:  # whoever waits must hear of it
                self._end_all(error if isinstance(error, Exception) else _interrupted())
            raise
        brought: list[tuple[Row, Event | None]] = list(events)
        over = [row for row in self._inboxes if not row.is_live]
        told = {row for row, _ in events}
        brought += [(row, None) for row in over if row not in told]
        self._hand_out(brought)
        for row in over:
            del self._inboxes[row]

    def _hand_out(self, brought: Brought) -> None:
        """Gives each inbox what is its, all at once."""
        parts: dict[Inbox, list[tuple[Row, Event | None]]] = {}
        for row, event in brought:
            parts.setdefault(self._inboxes[row], []).append((row, event))
        for inbox, part in parts.items():
            inbox(part)

    def _end_all(self, error: Exception) -> None:
        """Ends all rows under way with an error."""
        for row in self._inboxes:
            row.error = error
        self._hand_out([(row, None) for row in self._inboxes])
        self._inboxes.clear()

    def score(self, requests: Iterable[Request]) -> list[tuple[LabelScore, ...]]:
        """The probability of every label of each request's task, in the order of its `choices`.

        Exact: the product of the probabilities of a label's tokens, EOS included, as the base gives
        them: `Request.sampling` and its bias change nothing.

        Raises:
            RequestError: one cannot be served, its task has no choices, a label does not fit, or
                the session was closed.
            AnswerError: as for `generate`.
        """
        return [found for found in self._labels(requests, ScoresRow) if isinstance(found, tuple)]

    def classify(self, requests: Iterable[Request]) -> list[BestLabel]:
        """The likeliest label of each request's task, with its probability.

        It is the one that `score` gives the highest probability, found with fewer steps: labels
        that cannot be likelier are not looked at.

        Raises:
            PlcError: as for `score`.
        """
        rows = self._labels(requests, BestLabelRow)
        return [found for found in rows if isinstance(found, BestLabel)]

    def _labels(
        self, requests: Iterable[Request], kind: type[ScoresRow]
    ) -> list[tuple[LabelScore, ...] | BestLabel]:
        """What rows of a kind find out, in the order of the requests."""
        rows = [
            self._row(index, request, f"scoring request {index}", kind=kind)
            for index, request in enumerate(_listed(requests))
        ]
        found: dict[int, tuple[LabelScore, ...] | BestLabel] = {}
        try:
            for event in OneReader(self._events_of(rows, "scoring requests")):
                if event.labels is not None:
                    found[event.index] = event.labels
        except AnswerError as error:
            error.results = tuple(found.get(index) for index in range(len(rows)))
            raise
        return [found[index] for index in range(len(rows))]

    def check(self, request: Request) -> int:
        """Checks that a request can be served; returns the tokens its truncate field would lose.

        Raises:
            RequestError: it cannot be served, or the session was closed.
        """
        return self._row(0, request, "checking a request").cut_tokens

    # For those who wait for rows otherwise than `stream` does: `AsyncSession`.

    def prepare(self, request: Request, kind: type[ScoresRow] | None = None) -> Row:
        """A request as a row that can be submitted.

        Args:
            request: what is asked for.
            kind: of the row, where labels are asked for; None for an answer.

        Raises:
            RequestError: it cannot be served, or the session was closed.
        """
        return self._row(0, request, "serving a request", kind=kind)

    def submit(self, rows: Iterable[Row], inbox: Inbox) -> None:
        """Puts rows into the queue; each step hands `inbox` what it brought to them.

        Raises:
            RequestError: the session was closed.
        """
        with self._lock:
            flow = self._check_open()
            for row in rows:
                self._inboxes[row] = inbox
                flow.submit(row, row.request.priority)

    def advance(self) -> None:
        """Runs one step, if there is work.

        Raises:
            Exception: the step failed, and all rows under way have ended with its error.
        """
        with self._lock:
            flow = self._check_open()
            if flow.is_busy:
                self._step(flow)

    def leave(self, rows: Iterable[Row]) -> None:
        """Takes out rows that nobody waits for any more; those that are over are left out."""
        with self._lock:
            for row in rows:
                if self._inboxes.pop(row, None) is not None and self._flow is not None:
                    self._flow.cancel(row)

    def _row(
        self, index: int, request: Request, doing: str, *, kind: type[ScoresRow] | None = None
    ) -> Row:
        with self._lock:  # renderers and tokenizer keep what they have seen
            free = Row if self._costs is None else partial(LookupRow, costs=self._costs)
            maker = RowMaker(self.tokenizer, self.tasks, self.engine, free)
            return maker.row(index, request, doing, kind=kind)


def _bundle_checks(bundles: Iterable[object], allow_failed_parity: object) -> dict[str, bool]:
    """Checks for `check_all` of what says which bundles are opened."""
    return {
        **{
            f"bundle {shown(each)}, expected a path": isinstance(each, str | Path)
            for each in bundles
        },
        f"allow_failed_parity {shown(allow_failed_parity)}, expected True or False": isinstance(
            allow_failed_parity, bool
        ),
    }


def _check_rows(doing: str, rows: Iterable[Row]) -> None:
    """Raises `AnswerError` that names the rows whose logits were not numbers."""
    failed = sorted((row.index, row.request.task) for row in rows if row.failed)
    if failed:
        places = {index: f"request {index} (task '{task}')" for index, task in failed}
        raise AnswerError(doing, places)


def closed_session() -> RequestError:
    """What a use of a closed session raises."""
    return RequestError(
        "using a session",
        found="one that was closed",
        fix="Open another one: Session.open(bundle).",
    )


def _interrupted() -> RequestError:
    return RequestError(
        "answering requests",
        found="a step that was interrupted in another thread",
        fix="Ask again.",
    )


def _listed(requests: Iterable[Request]) -> list[Request]:
    """The requests of a call as a list, from any iterable."""
    try:
        waiting = iter(requests)  # some types have `__iter__`, but cannot be iterated over
    except TypeError:
        raise RequestError(
            "reading the requests", found=shown(requests), expected="a list of Request"
        ) from None
    return list(waiting)


def _count(name: str, given: object, most: int, *, least: int = 1) -> int | None:
    """An argument that counts something; None means the default."""
    count = whole(given)
    if given is not None and (count is None or not least <= count <= most):
        raise RequestError(
            "opening a session",
            found=f"{name} {shown(given)}",
            expected=f"a whole number, at least {least} and at most {most}",
        )
    return count
