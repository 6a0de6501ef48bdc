"""Requests as rows: each is checked, its prompt is rendered and cut to fit."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pl_compile.config.plain_values import shown
from pl_compile.errors import DataError, RequestError, unknown_name
from pl_compile.runtime.answer_text import AnswerText
from pl_compile.runtime.blocking import BadWords, Ngrams
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.requests import Request
from pl_compile.runtime.rows import Row
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.span_rows import SpanRow
from pl_compile.runtime.token_bias import bias_by_id
from pl_compile.text.label_trie import LabelTrie
from pl_compile.text.render import Rendered
from pl_compile.text.spans import SpanWalk
from pl_compile.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class RowMaker:
    """Turns requests into rows.

    Attributes:
        tokenizer: the base's.
        tasks: by name.
        engine: that the rows are for.
        free: makes the rows whose answers are open.
    """

    tokenizer: Tokenizer
    tasks: Mapping[str, ServedTask]
    engine: Engine
    free: Callable[..., Row] = Row

    def row(
        self, index: int, request: Request, doing: str, *, kind: type[Row] | None = None
    ) -> Row:
        """A request as a row.

        Args:
            index: place of the request in the list that was given.
            request: what is asked for.
            doing: what an error says was being done.
            kind: of the row; if None, one that writes an answer. Another kind looks at the task's
                choices, whatever the request says.

        Raises:
            RequestError: the request cannot be served.
        """
        task = self._task(request, doing)
        trie, spans = None, None
        try:
            whole = task.renderer.prompt(request.fields)
            if task.choices and (request.constrain or kind is not None):
                rendered, trie = self._with_room_for_choices(request, task, whole)
            elif task.is_copied and request.constrain:
                most = self._most_with_room(request, task, whole)
                rendered, spans = task.renderer.prompt_and_spans(request.fields, max_length=most)
            else:
                rendered = self._with_room(request, task, whole)
        except DataError as error:
            raise RequestError(doing, found=str(error)) from error
        if kind is not None and trie is None:
            raise RequestError(
                doing,
                found=f"task '{request.task}' has no choices",
                expected="a task with a closed set of answers",
            )
        _check_choices(trie, request.bad_words, doing)
        cut_tokens = len(whole) - len(rendered)
        if not request.use_prompt:
            rendered, task = rendered.without_virtual(), task.without_prefix()
        to_feed = task.to_feed(rendered)
        if not len(to_feed):
            after = "" if task.prefix_kv is None else " after the prefix"
            expected = f"at least one token{after}"
            raise RequestError(doing, found="an empty prompt", expected=expected)
        sampling = request.sampling
        return (kind or self._kind(trie, spans))(
            index=index,
            request=request,
            task=task,
            input_ids=to_feed.input_ids(self.engine.vocab),
            held=len(rendered) - len(to_feed),
            prompt_tokens=len(rendered),
            cut_tokens=cut_tokens,
            limit=min(request.max_tokens, self.engine.capacity - len(rendered)),
            room=self.engine.capacity - len(rendered),
            branches=self.engine.branches,
            trie=trie,
            bias=bias_by_id(sampling.logit_bias, trie, self.tokenizer, doing),
            seen=rendered.token_ids[rendered.virtual_rows < 0].tolist(),
            text=AnswerText(spans or self.tokenizer, request.stop),
            tokenizer=self.tokenizer,
            ngrams=(
                Ngrams(sampling.no_repeat_ngram, rendered.input_ids(self.engine.vocab).tolist())
                if sampling.no_repeat_ngram and trie is None and spans is None
                else None
            ),
            bad_words=(
                BadWords(self.tokenizer, request.bad_words)
                if request.bad_words and trie is None
                else None
            ),
            spans=spans,
        )

    def _kind(self, trie: LabelTrie | None, spans: SpanWalk | None) -> Callable[..., Row]:
        if trie is not None:
            return Row
        return self.free if spans is None else SpanRow

    def _task(self, request: Request, doing: str) -> ServedTask:
        if not isinstance(request, Request):
            raise RequestError(doing, found=shown(request), expected="a Request")
        if request.task not in self.tasks:
            found, fix = unknown_name(request.task, tuple(self.tasks), what="task")
            raise RequestError(doing, found=found, fix=fix)
        return self.tasks[request.task]

    def _with_room(self, request: Request, task: ServedTask, whole: Rendered) -> Rendered:
        """The prompt. If it does not fit, it is cut so far that the answer has some room, too.

        A prompt that fits is not cut: its answer may end where the cache ends.
        """
        most = self._most_with_room(request, task, whole)
        return whole if most is None else task.renderer.prompt(request.fields, max_length=most)

    def _most_with_room(self, request: Request, task: ServedTask, whole: Rendered) -> int | None:
        """To how many tokens a prompt is cut; None where it fits."""
        if len(whole) < self.engine.capacity:
            return None
        cut = task.renderer.template.task.truncate_field is not None
        room = min(request.max_tokens, self.engine.capacity // 4) if cut else 1
        return self.engine.capacity - room

    def _with_room_for_choices(
        self, request: Request, task: ServedTask, whole: Rendered
    ) -> tuple[Rendered, LabelTrie | None]:
        """The prompt, cut if the longest choice does not fit after it, and the choices."""
        trie = task.trie_after(request.fields)
        if trie is None or len(whole) + trie.longest <= self.engine.capacity:
            return whole, trie
        return task.renderer.prompt_and_choices(request.fields, max_length=self.engine.capacity)


def _check_choices(trie: LabelTrie | None, bad_words: Collection[str], doing: str) -> None:
    """Refuses bad words of which a choice holds one: a choice is written whole."""
    for label in trie.labels if trie else ():
        for word in bad_words:
            if word in label.strip():
                raise RequestError(
                    doing,
                    found=f"the bad word {shown(word)} in the choice {shown(label.strip())}",
                    fix="Leave it out, or ask with constrain=False.",
                )
