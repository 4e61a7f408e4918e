"""One thread for torch: the models are too small for two."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
