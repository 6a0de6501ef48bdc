"""How likely each label of a closed set is, after a prompt."""

from collections.abc import Iterator

import numpy as np

from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.log_probs import log_softmax
from pl_compile.runtime.requests import LabelScore
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Batch
from pl_compile.shapes import Float32
from pl_compile.text.label_trie import LabelTrie

# Nodes that are computed together: their logits are in memory at once.
_MOST_BRANCHING = 128


def label_scores(
    engine: Engine, batch: Batch, row: Row, trie: LabelTrie
) -> tuple[LabelScore, ...] | None:
    """The probability of every label, in their order; None if a logit is not a finite number.

    Exact: the product of the probabilities of a label's tokens, EOS included.

    Args:
        engine: runs the steps.
        batch: of the engine; all its rows are free, before and after.
        row: holds the prompt.
        trie: the labels.
    """
    reached = np.zeros(len(trie.parents))  # log-probability of the path to each node
    for node, logits in _after_each_node(engine, batch, row, trie):
        if not np.isfinite(logits.max()):
            batch.clear(list(batch.entries))
            batch.retire(batch.entries)
            return None
        log_probabilities = log_softmax(logits)
        for token, child in trie.children[node].items():
            reached[child] = log_probabilities[token]  # of the node's last token; summed up below
    batch.retire(batch.entries)
    for node, parent in enumerate(trie.parents):
        reached[node] += reached[parent] if node else 0.0
    log = reached[list(trie.ends)]
    shares = np.exp(log - log.max())
    shares /= shares.sum()
    return tuple(
        LabelScore(label.strip(), float(share), float(of_all))
        for label, share, of_all in zip(trie.labels, shares, log, strict=True)
    )


def _after_each_node(
    engine: Engine, batch: Batch, row: Row, trie: LabelTrie
) -> Iterator[tuple[int, Float32]]:
    """The logits after each node that has children; for the root, those after the prompt."""
    batch.admit(0, row.task, row.held)
    yield 0, batch.feed({0: row.input_ids})[0].logits
    if engine.branches:
        yield from _on_branches(batch, trie, engine.capacity - row.prompt_tokens)
    else:
        yield from _in_copies(batch, row, trie)


def _on_branches(batch: Batch, trie: LabelTrie, room: int) -> Iterator[tuple[int, Float32]]:
    """All nodes as branches of the prompt's row, as many at once as there is room for."""
    for group in trie.groups(min(room, _MOST_BRANCHING)):
        place = {node: index for index, node in enumerate(group.nodes)}
        tokens = np.asarray([trie.tokens[node] for node in group.nodes])
        parents = np.asarray([place.get(trie.parents[node], -1) for node in group.nodes])
        wanted = np.asarray([place[node] for node in group.wanted])
        output = batch.feed({0: tokens}, wanted={0: wanted}, parents={0: parents})[0]
        yield from zip(group.wanted, output.after, strict=True)


def _in_copies(batch: Batch, row: Row, trie: LabelTrie) -> Iterator[tuple[int, Float32]]:
    """Each node in a row of its own: a copy of the prompt's row, fed the tokens to the node."""
    # Sorted by length, because rows of one token share a step.
    nodes = sorted(trie.inner_nodes, key=lambda node: len(trie.path(node)))
    for start in range(0, len(nodes), batch.max_batch):
        part = nodes[start : start + batch.max_batch]
        batch.rewind(0, row.prompt_tokens)
        for slot in range(1, len(part)):
            batch.copy(0, slot, row.prompt_tokens)
        outputs = batch.feed({i: np.asarray(trie.path(node)) for i, node in enumerate(part)})
        batch.retire(range(1, len(part)))
        for index, node in enumerate(part):
            yield node, outputs[index].logits
