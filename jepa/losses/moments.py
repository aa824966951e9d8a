"""Sums, means and covariances over the rows of all processes, differentiable.

The gradient that each process gets is its own share times the number of processes: what DDP's average asks for.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def full_precision(x: Tensor) -> torch.autocast:
    """Products inside are not cut to half precision: moments are differences of large sums."""
    return torch.autocast(x.device.type, enabled=False)


def upcast(x: Tensor) -> Tensor:
    """Half precision as float32; other types as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def global_sum(x: Tensor) -> Tensor:
    """x of all processes, added up."""
    return all_reduce(x) if processes() > 1 else x


def global_count(x: Tensor) -> Tensor:
    """Rows of all processes' x, as a scalar of its type without gradient."""
    count = x.new_tensor(float(len(x)))
    if processes() > 1:
        dist.all_reduce(count)
    return count


def global_covariance(x: Tensor) -> Tensor:
    """Unbiased covariance (D, D) of the rows of all processes' x (N, D)."""
    count = global_count(x)
    mean = x.detach().sum(0)  # centring by a constant changes neither the value nor the gradient of the result
    if processes() > 1:
        dist.all_reduce(mean)
    x = x - mean / count
    moments = global_sum(torch.cat((x.T @ x, x.sum(0, keepdim=True))))
    second, first = moments[:-1], moments[-1]
    return (second - first[:, None] * first / count) / (count - 1)


def standardized(x: Tensor, eps: float) -> Tensor:
    """The rows of x (N, D) with mean 0 and variance 1 (biased, plus `eps`) over all processes, as batch norm does."""
    count = global_count(x)
    x = x - global_sum(x.sum(0)) / count
    return x / (global_sum(x.square().sum(0)) / count + eps).sqrt()
