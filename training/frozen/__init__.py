"""Forward and backward through a network whose weights never change.

Nothing here has a gradient for a weight, so less is saved and less is computed than autograd's own
operators would: `attention` packs rows, `layers` replaces norms and MLPs, `loss` never holds the
logits of a whole batch, `workspace` keeps what must be saved in memory that is used again.
"""
