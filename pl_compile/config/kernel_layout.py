"""What the compiler must know of the layout of this project's kernels (`runtime/kernels`)."""

# Outputs of a product that a kernel computes together: `kTile` in `runtime/kernels/kernels.h`.
# Weights are laid out in tiles of so many columns, and ranks get whole tiles where they can.
TILE = 16
