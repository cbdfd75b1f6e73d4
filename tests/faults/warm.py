"""Imported by the server that jobs are forked from: one small layer, so that no job has to load compiled code first."""

from __future__ import annotations

import torch

from oaem.config.geometry import Geometry
from oaem.config.settings import LayerSettings
from oaem.quantization.layer import quantize_layer

torch.set_num_threads(1)
quantize_layer(
    torch.eye(16), torch.eye(16), Geometry(2, 4, 4), init="oaem", beam_width=2, max_epochs=1,
    settings=LayerSettings(), seed=0,
)  # fmt: skip
