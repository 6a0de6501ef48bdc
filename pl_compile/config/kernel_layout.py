"""What the compiler must know of the layout of this project's kernels (`runtime/kernels`)."""

# Outputs of a product that a kernel computes together: `kTile` in `runtime/kernels/kernels.h`.
# Weights are laid out in tiles of so many columns, and ranks get whole tiles where they can.
TILE = 16

# Entries of a block of a paged cache: `kBlock` in `runtime/kernels/kernels.h`. Attention reads so
# many keys at once, so no smaller blocks were tried.
ENTRIES_OF_BLOCK = 16
