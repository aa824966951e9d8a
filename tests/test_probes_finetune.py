"""Fine-tuning: learning rates by layer, and a task that it must learn."""

from __future__ import annotations

import pytest
import torch

from jepa.encoders import ViT
from jepa.probes.features import InOrder
from jepa.probes.finetune import Classifier, FinetuneSettings, finetune, layer_groups
from jepa.types import Sample, UnreadableSample


class Bright:
    """Noise that is darker or brighter by its class; one picture in ten cannot be read."""

    def __init__(self, seed: int, classes: int = 2) -> None:
        self.seed, self.classes = seed, classes

    def __getitem__(self, i: int) -> Sample:
        if i % 10 == 9:
            raise UnreadableSample(f"picture {i}", "made so")
        generator = torch.Generator().manual_seed(self.seed * 1000 + i)
        x = torch.randn(3, 16, 16, generator=generator) + 2.0 * (i % self.classes)
        return Sample(x, {"bright": i % self.classes}, f"picture {i}")


def small() -> ViT:
    torch.manual_seed(0)
    return ViT(dim=16, depth=3, heads=2, patch_size=8)


def test_every_parameter_has_the_rate_of_its_layer() -> None:
    model = Classifier(small(), classes=2)
    groups = layer_groups(model, FinetuneSettings(layer_decay=0.5))
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    assert len(scale) == sum(1 for _ in model.parameters())
    expected = {"encoder.patch_embed": 0.5**4, "head": 1.0, "encoder.transformer.norm": 1.0}
    expected |= {f"encoder.transformer.blocks.{i}": 0.5 ** (3 - i) for i in range(3)}
    for name, parameter in model.named_parameters():
        (layer,) = (part for part in expected if name.startswith(f"{part}."))
        assert scale[id(parameter)] == expected[layer], name
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_it_learns_what_can_be_learnt_and_leaves_the_encoder_alone() -> None:
    encoder = small().requires_grad_(False).eval()
    before = [parameter.clone() for parameter in encoder.parameters()]
    train, test = InOrder(Bright(0), None, range(80)), InOrder(Bright(1), None, range(40))
    settings = FinetuneSettings(lr=3e-3, epochs=6, batch_size=16)
    assert finetune(encoder, torch.Tensor.float, train, test, "bright", settings) > 0.95
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))


def test_one_class_is_refused() -> None:
    items = InOrder(Bright(0, classes=1), None, range(20))
    with pytest.raises(ValueError, match="need two"):
        finetune(small(), torch.Tensor.float, items, items, "bright")
