"""Unit tests are many small tensors: one thread is faster, and leaves the machine to others."""

import torch

torch.set_num_threads(1)
