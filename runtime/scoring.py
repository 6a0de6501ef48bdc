"""How likely each label of a closed set is, after a prompt."""

from collections.abc import Iterator

import numpy as np

from pl_compile.runtime.log_probs import log_softmax
from pl_compile.runtime.requests import LabelScore
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Batch, Output
from pl_compile.text.label_trie import LabelTrie


def label_scores(batch: Batch, row: Row, trie: LabelTrie) -> tuple[LabelScore, ...] | None:
    """The probability of every label, in their order; None if a logit is not a finite number.

    Exact: the product of the probabilities of a label's tokens, EOS included.

    Args:
        batch: all its rows are free, before and after.
        row: holds the prompt.
        trie: the labels.
    """
    reached = np.zeros(len(trie.parents))  # log-probability of the path to each node
    for node, output in _after_each_node(batch, row, trie):
        if not output.is_finite:
            batch.clear(batch.slots)
            batch.retire(batch.slots)
            return None
        log_probabilities = log_softmax(output.logits)
        for token, child in trie.children[node].items():
            reached[child] = log_probabilities[token]  # of the node's last token; summed up below
    batch.retire(batch.slots)
    for node, parent in enumerate(trie.parents):
        reached[node] += reached[parent] if node else 0.0
    log = reached[list(trie.ends)]
    shares = np.exp(log - log.max())
    shares /= shares.sum()
    return tuple(
        LabelScore(label.strip(), float(share), float(of_all))
        for label, share, of_all in zip(trie.labels, shares, log, strict=True)
    )


def _after_each_node(batch: Batch, row: Row, trie: LabelTrie) -> Iterator[tuple[int, Output]]:
    """The output after each node that has children; for the root, that after the prompt.

    The prompt is run once. Then each node gets a row of its own: a copy of the prompt's row, which
    is fed with the tokens that lead to the node.
    """
    batch.admit(0, row.task, row.held)
    yield 0, batch.feed({0: row.input_ids})[0]
    # Sorted by length, because rows of one token share a step.
    nodes = sorted(trie.inner_nodes, key=lambda node: len(trie.path(node)))
    for start in range(0, len(nodes), batch.max_batch):
        part = nodes[start : start + batch.max_batch]
        # Row 0 still holds the prompt: only what follows the prompt was overwritten.
        batch.keep([0] * len(part), row.prompt_tokens)
        outputs = batch.feed({i: np.asarray(trie.path(node)) for i, node in enumerate(part)})
        for index, node in enumerate(part):
            yield node, outputs[index]
