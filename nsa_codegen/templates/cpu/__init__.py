"""Kernels of the CPU targets: loops and indexing in TileLang, vector work in the primitives of `tile/`."""
