"""A compiler for prompt-tuned GPTs: train virtual tokens, export them, serve them."""

__version__ = "0.1.0"
