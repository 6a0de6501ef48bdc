"""Our names of a base's weights: one name and one layout for each, the same for all families.

A matrix that multiplies activations is `[in, out]`; the embedding and the LM head are `[vocab,
hidden]`. No family has all of these.

    embedding.weight                      [vocab, hidden]
    positions.weight                      [positions, hidden]       learned positions
    layers.{i}.attention_norm.weight      [hidden]
    layers.{i}.attention.{q,k,v}.weight   [hidden, heads*head_dim]  kv_heads of k and v
    layers.{i}.attention.q_norm.weight    [head_dim]                and k_norm: norms of heads
    layers.{i}.attention.o.weight         [heads*head_dim, hidden]
    layers.{i}.attention_end_norm.weight  [hidden]                  of attention's result
    layers.{i}.mlp_norm.weight            [hidden]
    layers.{i}.mlp.{gate,up}.weight       [hidden, ffn]             no gate where the MLP has none
    layers.{i}.mlp.down.weight            [ffn, hidden]
    layers.{i}.mlp_end_norm.weight        [hidden]                  of the MLP's result
    final_norm.weight                     [hidden]
    head.weight                           [vocab, hidden]           only where it is not tied

A bias is called `.bias` where its weight is called `.weight`, and is `[out]`. Layer norms have one.
Whether products have them is a matter of the family, and sometimes of the base: those of GPT-2
always, those of Llama where its config.json says so.
"""

EMBEDDING, HEAD = "embedding.weight", "head.weight"
POSITIONS = "positions.weight"

# The two whose rows are the vocabulary's.
TABLES = (EMBEDDING, HEAD)


def layer_name(index: int) -> str:
    """What stands before the names of a layer's weights, without the dot."""
    return f"layers.{index}"


def is_product_of_layer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is the matrix of a layer's product: what is rounded to a few bits."""
    return name.startswith("layers.") and len(shape) == 2
