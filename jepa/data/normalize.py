"""Normalisation of whole batches on the device, so that workers and the bus only carry bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.types import JepaBatch


class Normalize(nn.Module):
    """`(x / 255 - mean) / std` per channel, on the stacked bytes of a batch. It follows its input's device.

    Args:
        mean, std: one number per channel, on the scale 0..1.

    Raises:
        ValueError: the lengths differ, or a deviation is not positive.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(float(m) for m in mean), tuple(float(s) for s in std)
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean and std need one number per channel, std above 0; got {self.mean} and {self.std}")
        scale = 1 / torch.tensor(self.std, dtype=torch.float64)
        shift = -torch.tensor(self.mean, dtype=torch.float64) * scale
        self.register_buffer("scale", (scale / 255).float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, batch: JepaBatch) -> JepaBatch:
        """The batch with each of its inputs normalised."""
        return batch.map_inputs(self.normalize)

    def raw_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the samples from which it makes inputs (C, *size) of that shape."""
        return tuple(shape)

    def normalize(self, x: Tensor) -> Tensor:
        """x: (B, C, *size) uint8 -> float32. Floating-point input is taken as normalised already and returned as is.

        Raises:
            ValueError: the number of channels differs from that of `mean`.
            TypeError: x is neither uint8 nor floating point.
        """
        if x.is_floating_point():
            return x
        if x.dtype != torch.uint8:
            raise TypeError(f"can only normalise bytes (uint8), got {x.dtype}: scale it to float in the dataset")
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"data.batch_transform has mean and std for {len(self.mean)} channels, "
                f"but the batch is (B, C, *size) = {tuple(x.shape)}: give one mean and std per channel"
            )
        if self.scale.device != x.device:
            self.to(x.device)
        shape = (-1, *[1] * (x.ndim - 2))
        # in place, one allocation: mixed-type arithmetic would be one pass less but is 20 times slower on CPUs
        return x.float().mul_(self.scale.view(shape)).add_(self.shift.view(shape))
