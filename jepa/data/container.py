"""Media files, opened with every precaution: what clips and sounds share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Stream

from jepa.types import UnreadableSample

PROBED = 2**15  # bytes of a WAV file that libav searches for DTS in disguise; its default, 5 MB, takes 25 ms, this 4 ms
PROBED_MONO = 2**11  # DTS poses as stereo: nothing to search for
UNKNOWN_SIZE = 2**32 - 1  # in a RIFF header: written by a program that could not go back to its start


@contextmanager
def opened(path: Path, name: str, what: str) -> Iterator[tuple[InputContainer, int]]:
    """The container of a media file and its size in bytes. What libav complains about inside is a damaged file.

    Args:
        path: the file.
        name: what to call it in an error.
        what: it should be, for the error: "video".

    Raises:
        UnreadableSample: the file is missing, empty, cut off, damaged or of no known kind.
    """
    try:
        with open(path, "rb") as file:
            head, size = file.read(64), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UnreadableSample(name, error.strerror or str(error)) from error
    if not size:
        raise UnreadableSample(name, "empty file")
    if (end := _end(head)) > size + 1:  # some leave out a last byte of padding
        raise UnreadableSample(name, f"cut off: {size} bytes of {end}")
    options = {"protocol_whitelist": "file"}
    if head[8:12] == b"WAVE":
        mono = head[12:16] == b"fmt " and head[22:24] == b"\1\0"
        options["probesize"] = str(PROBED_MONO if mono else PROBED)
    try:
        # as "file:", since libav would take a name with a colon for an address
        container = av.open(f"file:{path}", options=options, metadata_errors="ignore")
    except av.FFmpegError as error:
        raise UnreadableSample(
            name, f"cut off, damaged or not a {what} of a known kind ({error.strerror}), starts with {head[:12]!r}"
        ) from error
    with container:
        try:
            yield container, size
        except av.FFmpegError as error:
            raise UnreadableSample(name, f"damaged: {error.strerror}") from error


def kinds(container: InputContainer) -> str:
    """What a file without the stream that is looked for holds, for messages."""
    found = sorted({stream.type for stream in container.streams})
    return f"{'only ' * bool(found)}{' and '.join(found) or 'nor anything else'}"


def codec_of(container: InputContainer, stream: Stream) -> str:
    """The codec of a stream that libav has no decoder for, and the tag that the file gives it, for messages."""
    described: Any = container  # PyAV's types leave out `dumps_format`
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # PyAV knows no name without a decoder, and libav only logs it
    try:
        found = re.search(rf"Stream #0:{stream.index}\b.*?: \w+: ([^,\n]+)", described.dumps_format())
    finally:
        av.logging.set_level(level)
    return found[1].replace("none", "unknown", 1) if found else "unknown"


def mp3_samples(path: Path, size: int) -> int | None:
    """Samples of all frames of an MP3 file, encoder's delay and padding included.

    None unless the file starts with a Xing header, which says so, and has the number of bytes that the header states.
    """
    with open(path, "rb") as file:
        head, start = file.read(10), 0
        if head.startswith(b"ID3"):
            start = 10 + sum(byte << 7 * (3 - k) for k, byte in enumerate(head[6:10]))
        file.seek(start)
        frame = file.read(52)
    if len(frame) < 52 or frame[0] != 255 or frame[1] & 0xE6 != 0xE2:  # layer III
        return None
    first, mono = frame[1] & 0x18 == 0x18, frame[3] >> 6 == 3  # MPEG 1, rather than 2 or 2.5
    at = 4 + (17 if first == mono else 32 if first else 9)  # after the side information
    flags, frames, stated = (int.from_bytes(frame[at + k : at + k + 4], "big") for k in (4, 8, 12))
    if frame[at : at + 4] not in (b"Xing", b"Info") or flags & 3 != 3:
        return None
    whole = size - start - stated in (0, 128)  # with an ID3v1 tag
    return frames * (1152 if first else 576) if whole else None


def _end(head: bytes) -> int:
    """Bytes of a whole RIFF (AVI, WAV) or Matroska file, which say so in their first ones; 0 where that is unknown."""
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if size < UNKNOWN_SIZE else 0
    if not head.startswith(b"\x1aE\xdf\xa3"):
        return 0
    at, size = _ebml_size(head, 4)
    if head[at + size : at + size + 4] != b"\x18S\x80g":  # the segment, which is the rest of the file
        return 0
    at, size = _ebml_size(head, at + size + 4)
    return at + size


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """(where it ends, its value) of the size of an element (RFC 8794, section 4); 0 for unknown."""
    length = 9 - head[at].bit_length() if at < len(head) and head[at] else 1
    value = int.from_bytes(head[at : at + length], "big") & (1 << 7 * length) - 1
    return at + length, value if value < (1 << 7 * length) - 1 else 0
