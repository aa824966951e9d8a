"""Small videos whose frames carry their number, and what is read from them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8
CELL = 8  # pixels of a bit of the number


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3): a texture that moves, with the number in black and white along the top."""
    texture = np.random.default_rng(0).integers(80, 176, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    pixels = np.roll(texture.repeat(8, 0).repeat(8, 1), 2 * number, 1)
    for bit in range(BITS):
        pixels[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    return pixels


def numbers(clip: np.ndarray) -> list[int]:
    """Of the frames of a clip (3, T, H, W)."""
    centres = clip[:, :, CELL // 2, CELL // 2 : BITS * CELL : CELL].mean(0) > 127
    return [sum(int(on) << bit for bit, on in enumerate(frame)) for frame in centres]


def film(
    path: Path,
    count: int = 60,
    *,
    rate: int = 30,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (32, 64),
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """A video of `count` frames, at `times` (milliseconds) if they are given. MP4 files begin with their index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    muxer = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(path, "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "15", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        voice = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, size), "rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if voice is not None:
            hush = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            hush.sample_rate = 16000
            container.mux([*voice.encode(hush), *voice.encode()])
    return path


def talkie(
    path: Path, x: np.ndarray, rate: int, *, count: int = 60, fps: int = 30, begins: float = 0.0, codec: str = "aac"
) -> Path:
    """A video of `count` frames as above and a sound (1, samples) that begins `begins` seconds after them."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        voice = container.add_stream(codec, rate=rate, layout="mono")
        packets = []
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, (32, 64)), "rgb24")
            frame.pts = number
            packets += stream.encode(frame)
        heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(x), "fltp", "mono")
        heard.sample_rate, heard.pts, heard.time_base = rate, round(begins * rate), Fraction(1, rate)
        cut = av.AudioResampler(voice.format.name, "mono", rate, frame_size=voice.frame_size or None)
        for part in [*cut.resample(heard), *cut.resample(None)]:
            packets += voice.encode(part)
        packets += [*stream.encode(), *voice.encode()]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def every_frame(path: Path) -> np.ndarray:
    """(3, T, H, W) of a whole video, decoded from its start."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).transpose(3, 0, 1, 2)


def turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Overwrite the display matrix of an MP4 file: (x, y) is shown at (ax + cy, bx + dy)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2, version 0
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
