"""Forward and backward through a network whose weights never change.

No weight has a gradient here, so less is saved and computed than by autograd's own operators:
`attention` packs rows, `layers` replaces norms and MLPs, `loss` never holds the logits of a whole
batch, `workspace` holds what the backward pass needs, in memory that is used again.
"""
