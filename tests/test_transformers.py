"""The encoder and predictor of V-JEPA 2 in Hugging Face transformers give the same numbers with the same weights."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from jepa.encoders import ViT
from jepa.predictors import ViTPredictor
from jepa.types import Indices, Tokens, View
from tests.published import relative_error

transformers = pytest.importorskip("transformers")

PUBLISHED = {"position": "rope", "rope_style": "tiled"}
RENAMED = [
    (r"^embeddings\.patch_embeddings\.", "patch_embed."),
    (r"^embeddings\.predictor_embeddings\.", "embed."),
    (r"^embeddings\.mask_tokens$", "mask_token"),
    (r"^layer\.", "transformer.blocks."),
    (r"^layernorm\.", "transformer.norm."),
    (r"\.attention\.", ".attn."),
]


def load(part: nn.Module, theirs: nn.Module) -> None:
    """Every weight, strictly: their query, key and value are our joint projection."""
    state: dict[str, Tensor] = {}
    for key, value in theirs.state_dict().items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        joined = re.sub(r"\.attn\.(query|key|value)\.", ".attn.qkv.", key)
        state[joined] = torch.cat((state[joined], value)) if joined != key and joined in state else value
    shapes = {key: value.shape for key, value in part.state_dict().items()}
    part.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()})


@pytest.mark.parametrize(("heads", "token"), [(2, 1), (3, 2)])
def test_vjepa2_model(heads: int, token: int) -> None:
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=6,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=heads,
        num_hidden_layers=3,
        pred_hidden_size=24,
        pred_num_attention_heads=heads,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=token + 1,
        initializer_range=0.2,  # far from uniform attention
    )
    reference = transformers.VJEPA2Model(config).eval()
    for norm in (m for m in reference.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.normal_(norm.weight, 1.0, 0.2)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    nn.init.normal_(reference.predictor.embeddings.mask_tokens)
    encoder = ViT(dim=48, depth=3, heads=heads, patch_size=(2, 8, 8), **PUBLISHED)
    predictor = ViTPredictor(embed_dim=48, dim=24, depth=2, heads=heads, mask_tokens=token + 1, **PUBLISHED)
    load(encoder, reference.encoder)
    load(predictor, reference.predictor)

    x, grid = torch.randn(2, 3, 6, 32, 32), (3, 4, 4)
    context = torch.stack([torch.randperm(48)[:20].sort().values for _ in range(2)])
    target = torch.stack([torch.randperm(48)[:9].sort().values for _ in range(2)])
    with torch.no_grad():
        seen = encoder(View(x))
        theirs = reference(x.transpose(1, 2), context_mask=[context], target_mask=[target])
        assert relative_error(seen.dense(), theirs.last_hidden_state) <= 1e-5

        def indices(values: Tensor) -> Indices:
            return Indices.of(values.flatten(), torch.full((2,), values.shape[1]), grid)

        query = replace(indices(target), task=1)  # the token that transformers uses
        found = predictor(Tokens(seen.at(indices(context)), indices(context)), query)
        assert relative_error(found.dense(), theirs.predictor_output.last_hidden_state) <= 1e-5
