"""Kernels of GPU targets: one file per op and direction, for every architecture."""
