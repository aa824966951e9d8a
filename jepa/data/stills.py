"""Pictures for models of clips."""

from __future__ import annotations

from torch import Tensor

from jepa.data.transforms import Transform


def stills(frames: int = 2, transform: Transform | None = None) -> Transform:
    """A picture as a clip that stands still: (C, H, W) -> (C, frames, H, W).

    Args:
        frames: of the clip; those of one tubelet are enough.
        transform: of the picture, before it is repeated.

    Raises:
        ValueError: `frames` is below 1.
    """
    if frames < 1:
        raise ValueError(f"frames={frames} must be at least 1")
    return _Stills(frames, transform)


class _Stills:
    def __init__(self, frames: int, transform: Transform | None) -> None:
        self.frames, self.transform = frames, transform

    def __call__(self, x: Tensor) -> Tensor:
        """x: (C, H, W) -> (C, frames, H, W)."""
        if x.ndim != 3:
            raise ValueError(f"stills are made of pictures (C, H, W), not {tuple(x.shape)}")
        x = x if self.transform is None else self.transform(x)
        return x[:, None].repeat(1, self.frames, 1, 1)
