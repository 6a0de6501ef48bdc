"""A request as a row: its prompt, cut to fit, and its answer, token by token."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from pl_compile.runtime.answer_text import AnswerText
from pl_compile.runtime.blocking import BadWords, Ngrams
from pl_compile.runtime.engines.engine import NO_TOKENS
from pl_compile.runtime.log_probs import token_log_probs
from pl_compile.runtime.requests import Event, FinishReason, Request, Result, TokenLogProbs
from pl_compile.runtime.sampling import Draw, draw_in_graph, next_token, pass_over
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.stepping import Output
from pl_compile.shapes import Int64, Shape
from pl_compile.text.label_trie import LabelTrie, TrieWalk
from pl_compile.text.spans import SpanWalk
from pl_compile.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class RowFeed:
    """What a row is fed next; see `Batch.feed`.

    Attributes:
        ids: int64 `[seq]`.
        wanted: int64 `[outputs]`, or None: only the last token's logits.
        parents: int64 `[seq]`, or None: each token follows the one before.
        after: entries that the row keeps of those that it holds, before this; None: all.
    """

    ids: Annotated[Int64, Shape("seq")]
    wanted: Annotated[Int64, Shape("outputs")] | None = None
    parents: Annotated[Int64, Shape("seq")] | None = None
    after: int | None = None


@dataclass(eq=False)
class Row:
    """A request under way.

    Attributes:
        index: place of the request in the list that was given.
        request: what is asked for.
        task: as it is served.
        input_ids: int64 `[seq]`: the part of the prompt that is fed to the engine.
        held: cache entries before `input_ids`, from the task's prefix.
        prompt_tokens: tokens of the whole prompt.
        cut_tokens: tokens cut from the truncate field.
        limit: most tokens of the answer.
        room: entries that the cache has after the prompt.
        branches: whether the engine takes branches; then it gives tokens that come together the
            bits that each has alone.
        trie: the closed set of answers; None where the answer is open.
        bias: added to the logits of tokens of a closed set, by their ids.
        seen: real tokens of prompt and answer, for the repetition penalty.
        text: of the answer, where it is open.
        tokenizer: the base's.
        ngrams: the sequences of tokens that must not be repeated; None where they may.
        bad_words: what keeps them out of the answer; None where there are none.
        token_ids: the answer so far.
        finished: why the answer ended; None while it has not.
        failed: whether its logits were not finite numbers.
        error: what ended a step that it was in; None while none did.
        shared: tokens of `input_ids` whose entries other rows have computed.
        spans: the parts of a field of which the answer is one; None where it need not be copied.
    """

    index: int
    request: Request
    task: ServedTask
    input_ids: Annotated[Int64, Shape("seq")]
    held: int
    prompt_tokens: int
    cut_tokens: int
    limit: int
    room: int
    branches: bool
    trie: LabelTrie | None
    bias: dict[int, float]
    seen: list[int]
    text: AnswerText
    tokenizer: Tokenizer
    ngrams: Ngrams | None
    bad_words: BadWords | None
    token_ids: list[int] = field(default_factory=list)
    finished: FinishReason | None = None
    failed: bool = False
    error: Exception | None = None
    shared: int = 0
    spans: SpanWalk | None = None

    def __post_init__(self) -> None:
        """Begins the answer."""
        self._generator = np.random.default_rng(self.request.sampling.seed)
        self._choices = None if self.trie is None else TrieWalk(self.trie)
        self._chosen = ""  # the part of a choice that is certain
        self._fed = 0  # tokens of prompt and answer
        # Whether the largest logit is the next token, if it may come.
        sampling = self.request.sampling
        self._is_plain = (
            sampling.temperature == 0.0
            and sampling.repetition_penalty == 1.0
            and not self.bias
            and self.bad_words is None
        )
        self._log_probs: list[TokenLogProbs] = []

    @property
    def is_live(self) -> bool:
        """Whether there is more to write."""
        return self.finished is None and not self.failed and self.error is None

    @property
    def left(self) -> int:
        """How many tokens of prompt and answer were not fed."""
        return len(self.input_ids) + len(self.token_ids) - self._fed

    def begin_with(self, count: int) -> None:
        """Notes that the cache holds the first tokens of `input_ids`: they are not fed."""
        self.shared = self._fed = count

    @property
    def looked_at(self) -> Annotated[Int64, Shape("tokens")] | None:
        """int64 `[tokens]`: whose logits `advance` looks at, after what was taken; None for all.

        After a part of a prompt it looks at none.
        """
        if self.left:
            return NO_TOKENS
        if self._choices is None or self.request.log_probs is not None:
            return None
        return np.asarray(self._choices.allowed(), np.int64)

    def take(self, count: int) -> RowFeed:
        """The next tokens to feed: of the prompt as long as there are some, then of the answer.

        Args:
            count: how many, at most `left`; a piece of the prompt has none of the answer.
        """
        begin = self._fed - len(self.input_ids)
        self._fed += count
        if begin < 0:
            return RowFeed(self.input_ids[self._fed - count : self._fed])
        return RowFeed(np.asarray(self.token_ids[begin : begin + count], np.int64))

    def draw(self, candidates: int, inputs: Collection[str]) -> Draw | None:
        """What the graph needs to choose the next token; None where it is chosen here.

        Call it once for each token: it draws the noise.

        Args:
            candidates: the engine's.
            inputs: the engine's `sampling_inputs`.
        """
        waits = len(self.token_ids) < self.request.min_tokens
        if self._choices is not None or waits or self.bad_words is not None:
            return None
        return draw_in_graph(self.request.sampling, self._generator, candidates, inputs)

    def has_numbers(self, output: Output) -> bool:
        """Whether the row can go on by what it is given: all that it needs is finite."""
        return output.is_finite

    def advance(self, output: Output) -> Event:
        """Takes the graph's token, or chooses one from the logits.

        Returns:
            The text that became certain; with it the result, once the answer is finished.
        """
        token_id = self._choose(output) if output.token is None else output.token
        if token_id is None:  # none may follow
            return self._stop()
        if self.request.log_probs is not None:
            noted = token_log_probs(output.logits, token_id, self.request.log_probs, self.tokenizer)
            self._log_probs.append(noted)
        return self._write(token_id)

    def _stop(self) -> Event:
        """Ends the answer where no token may follow."""
        self.finished = "stop"
        return self._event(self.text.finish(), self.text.text)

    def _write(self, token_id: int) -> Event:
        """Takes the next token."""
        self._take(token_id)
        if self._choices is not None:
            return self._advance_in_choices(self._choices, token_id)
        if token_id in self._ends:
            self.finished = "stop"
            return self._event(self.text.finish(), self.text.text)
        piece = self.text.push(token_id)
        if self.text.stopped:
            self.finished = "stop"
        elif len(self.token_ids) >= self.limit:
            piece += self.text.finish()
            # An unfinished character has become text, and a stop text may be in it.
            self.finished = "stop" if self.text.stopped else "length"
        return self._event(piece, self.text.text)

    def time_out(self) -> Event:
        """Ends the answer as it is, whether it was begun or not; with the text that was held."""
        if self._choices is not None:
            self.finished = "timeout"
            return self._event("", self._chosen)
        piece = self.text.finish()
        # An unfinished character has become text, and a stop text may be in it.
        self.finished = "stop" if self.text.stopped else "timeout"
        return self._event(piece, self.text.text)

    @property
    def _ends(self) -> tuple[int, ...]:
        """The tokens that end the answer."""
        return self.task.renderer.rules.ends

    def _choose(self, output: Output) -> int | None:
        """The next token, by its logits; None where none may follow."""
        blocked = set(self._ends) if len(self.token_ids) < self.request.min_tokens else set()
        if self.ngrams is not None:
            blocked |= {key for key in self.ngrams.blocked() if key < len(output.logits)}
        allowed = self._allowed()
        if self._is_plain and allowed is None and output.largest not in blocked:
            return output.largest  # as `next_token` would, without another look at all logits
        return next_token(
            output.logits,
            self.request.sampling,
            self._generator,
            bias=self.bias,
            seen=self.seen,
            blocked=blocked,
            allowed=allowed,
            fits=None if self.bad_words is None else self._fits,
        )

    def _allowed(self) -> list[int] | None:
        """The only tokens that may come next; None where any may."""
        return self._choices.allowed() if self._choices else None

    def _fits(self, token_id: int) -> bool:
        """Whether the answer has no bad word with a token; one that ends it is no text."""
        assert self.bad_words is not None
        return token_id in self._ends or self.bad_words.allows(token_id)

    def _take(self, token_id: int) -> None:
        """Notes a token of the answer."""
        self.token_ids.append(token_id)
        self.seen.append(token_id)
        if self.ngrams is not None:
            self.ngrams.push(token_id)
        if self.bad_words is not None:
            self.bad_words.push(token_id)

    def _advance_in_choices(self, choices: TrieWalk, token_id: int) -> Event:
        """Takes a token of a choice. A choice is written to its end, whatever its tokens mean.

        Where one token alone may follow, it is written, too: nothing is computed for it. (Where log
        probabilities are asked for, they need its logits.) The text is that of the choice, not of
        its decoded tokens. It is handed out as far as it is certain.
        """
        choices.push(token_id)
        while len(allowed := choices.allowed()) == 1 and self.request.log_probs is None:
            pass_over(self.request.sampling, self._generator)
            self._take(allowed[0])
            choices.push(allowed[0])
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
            self.held,
            tuple(self._log_probs) if self.request.log_probs is not None else None,
            self.shared,
        )
        return Event(self.index, piece, result)
