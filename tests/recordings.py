"""Small sound files, and what decoding them from the start gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from jepa.data.waveform import RANGE


def wave(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    """(channels, samples): a tone that wanders, other in each channel, with noise, so that no two places are alike."""
    time, rng = np.arange(round(rate * seconds)) / rate, np.random.default_rng(0)
    tones = [0.3 * np.sin(2 * np.pi * (300 + 100 * np.sin(3 * (k + 1) * time)) * time) for k in range(channels)]
    return (np.stack(tones) + rng.normal(0, 0.03, (channels, len(time)))).astype(np.float32)


def record(
    path: Path,
    x: np.ndarray,
    rate: int,
    codec: str = "pcm_s16le",
    *,
    options: Mapping[str, str] | None = None,
    picture: bool = False,
) -> Path:
    """Write a waveform (channels, samples), with a second of moving pictures beside it on demand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = "mono" if len(x) == 1 else "stereo"
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=dict(options or {}))
        video = container.add_stream("libx264", rate=5) if picture else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        cut = av.AudioResampler(stream.format.name, layout, rate, frame_size=stream.frame_size or None)
        container.start_encoding()
        for part in [*cut.resample(frame), *cut.resample(None)] if x.shape[1] else []:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
        if video is not None:
            for number in range(5):
                shown = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 50 * number, np.uint8), "rgb24")
                shown.pts = number
                container.mux(video.encode(shown))
            container.mux(video.encode(None))
    return path


def everything(path: Path) -> Tensor:
    """(channels, samples): all frames, decoded from the start."""
    with av.open(path) as container:
        frames = list(container.decode(audio=0))
        count = frames[0].layout.nb_channels
    parts = [f.to_ndarray() if f.format.is_planar else f.to_ndarray().reshape(-1, count).T for f in frames]
    x = np.concatenate(parts, 1)
    if x.dtype.kind != "f":
        middle, scale = RANGE[x.dtype.str[1:]]
        x = (x.astype(np.float32) - middle) / scale
    return torch.from_numpy(x)
