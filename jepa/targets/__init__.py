"""Target updaters: how the target encoder follows the encoder."""

from jepa.targets.updaters import EMA, Frozen, Shared, StopGradient

__all__ = ["EMA", "Frozen", "Shared", "StopGradient"]
