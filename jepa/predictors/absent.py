"""In place of a predictor, where weights came without one."""

from __future__ import annotations

from torch import Tensor

from jepa.interfaces import Predictor
from jepa.types import Indices, Tokens


class NoPredictor(Predictor):
    """Of a model whose source has an encoder only, as timm and Hugging Face have of I-JEPA."""

    def __init__(self, *, embed_dim: int) -> None:
        super().__init__()

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        raise RuntimeError(
            "these weights came without a predictor: to train from them, give a recipe with one and init_mode=adapt"
        )
