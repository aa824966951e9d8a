"""Movements of a view: the eye moves, turns, steps back or looks into a mirror.

A movement is a code (A = 5) of numbers that a person can read:

    rotation   degrees, clockwise turn of the eye
    right      how far the eye moves to the right, as a share of the view's shorter side
    down       the same, downwards
    zoom       natural logarithm of the scale: positive, and the view covers more
    mirror     1: the view is mirrored left to right, 0: it is not

A point p of the view after the movement (x to the right, y down, from the centre, in shorter sides) shows what was at

    M(p) = scale R(rotation) F^mirror p + (right, down),   R(a) = [[cos a, -sin a], [sin a, cos a]],   F = diag(-1, 1)

in the view before it. These maps form a group: `inverse` and `compose` are exact, and the code of the inverse movement
is the code *of* the inverse, which is not the negated code (a rotated eye moves back along rotated axes).
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

NAMES = ("rotation", "right", "down", "zoom", "mirror")
FREQUENCIES = (10, 4, 4, 4, 1)  # L of each component's features; of rotation and translation as in LumenPallidium/jepa
UNITS = (180.0, 1.0, 1.0, 1.0, 1.0)  # of each component that count as 1 in its features
FEATURES = 2 * sum(FREQUENCIES)  # width of `features`


def linear(motion: Tensor) -> Tensor:
    """scale R F^mirror of movements (B, 5): (B, 2, 2)."""
    angle, scale = motion[:, 0].deg2rad(), motion[:, 3].exp()
    cosine, sine, flip = angle.cos() * scale, angle.sin() * scale, 1 - 2 * motion[:, 4]
    return torch.stack((cosine * flip, -sine, sine * flip, cosine), 1).view(-1, 2, 2)


def inverse(motion: Tensor) -> Tensor:
    """The movements (B, 5) that lead back."""
    rotation, zoom, mirror = motion[:, 0], motion[:, 3], motion[:, 4]
    back = torch.stack(((2 * mirror - 1) * rotation, zoom * 0, zoom * 0, -zoom, mirror), 1)
    shift = -(linear(back) @ motion[:, 1:3, None])[..., 0]
    return torch.cat((back[:, :1], shift, back[:, 3:]), 1)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The one movement (B, 5) that does both: `first`, and `then` as seen from where it led."""
    shift = first[:, 1:3] + (linear(first) @ then[:, 1:3, None])[..., 0]
    rotation = first[:, 0] + (1 - 2 * first[:, 4]) * then[:, 0]
    mirror = first[:, 4] + then[:, 4] - 2 * first[:, 4] * then[:, 4]
    return torch.stack((rotation, shift[:, 0], shift[:, 1], first[:, 3] + then[:, 3], mirror), 1)


def sincos(x: Tensor, frequencies: int) -> Tensor:
    """sin(pi 2^k x) for k = 0, ..., L - 1, then the cosines (NeRF, Mildenhall et al. 2020): (B,) -> (B, 2 L)."""
    angles = x[:, None] * (pi * 2.0 ** torch.arange(frequencies, device=x.device))
    return torch.cat((angles.sin(), angles.cos()), 1)


def features(motion: Tensor) -> Tensor:
    """What a predictor is told of movements (B, 5): `sincos` of each component in turn, (B, FEATURES)."""
    parts = zip(motion.float().unbind(1), UNITS, FREQUENCIES, strict=True)
    return torch.cat([sincos(x / unit, count) for x, unit, count in parts], 1)
