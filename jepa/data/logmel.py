"""Log-mel spectrograms of whole batches, made on the device, so that workers and the bus only carry waveforms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchaudio.functional import preemphasis
from torchaudio.transforms import MelSpectrogram

from jepa.types import JepaBatch

FULL_SCALE = 2.0**15  # of int16 samples
FLOOR = 1.1920929e-7  # least energy of a band before the logarithm, as in Kaldi and torchaudio.compliance.kaldi
DOUBLINGS = 3  # of the transform, to leave no band empty: further padding only smooths the same spectrum

WindowType = Literal["hann", "hamming", "blackman", "povey"]
MelScale = Literal["htk", "slaney"]
Norm = Literal["slaney"]


def povey_window(length: int) -> Tensor:
    """(length,) Kaldi's own window."""
    return torch.hann_window(length, periodic=False) ** 0.85


WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "povey": povey_window,
}


class LogMel(nn.Module):
    """Waveforms (B, C, samples) to normalised spectrograms (B, C, time, frequency) with torchaudio's `MelSpectrogram`
    and the natural logarithm.

    Frame k is centred on sample k * hop; the signal is mirrored at both ends. A crop of T * hop samples gives T frames:
    the one centred on its end is left out, as half of it would be the mirror. It follows its input's device.

    Training takes crops of `size` alone; for features sounds may be of any length (see `normalize`).

    Args:
        rate: samples per second.
        size: (T, F), frames and mel bands.
        window, hop: seconds.
        n_fft: samples that each frame is padded to; None: the next power of two, or up to 8 times as many where a band
            would hold no frequency.
        low, high: Hz that the bands span; `high` None: half of the rate.
        preemphasis: x[t] - preemphasis * x[t - 1] before all; Kaldi's is 0.97.
        window_type: hann, hamming, blackman or povey (Kaldi's own).
        mel_scale: that the triangular bands lie evenly on, htk or slaney.
        norm: slaney divides each band by its width in Hz; None: their peaks are 1.
        power: of the magnitudes that bands sum up: 2 for energies, 1 for the magnitudes themselves.
        mean, std: of the logarithms, over all bands; both None: each spectrogram's own.

    Raises:
        ValueError: an argument is out of its range, or a band lies between two frequencies of the transform.
    """

    def __init__(
        self,
        *,
        rate: int,
        size: Sequence[int],
        window: float = 0.025,
        hop: float = 0.01,
        n_fft: int | None = None,
        low: float = 0.0,
        high: float | None = None,
        preemphasis: float = 0.0,
        window_type: WindowType = "hann",
        mel_scale: MelScale = "htk",
        norm: Norm | None = None,
        power: float = 2.0,
        mean: float | None = None,
        std: float | None = None,
    ) -> None:
        super().__init__()
        frames, bands = size
        length, self.hop = round(window * rate), round(hop * rate)
        top = rate / 2 if high is None else high
        if min(frames, bands, self.hop) < 1 or length < 2 or not 0 <= low < top <= rate / 2 or not 0 <= preemphasis < 1:
            raise ValueError(
                f"need size, hop and window of a sample or more, 0 <= low < high <= rate / 2 and 0 <= preemphasis < 1; "
                f"got size {list(size)}, hop {hop}, window {window}, low {low}, high {high}, rate {rate}, "
                f"preemphasis {preemphasis}"
            )
        if (mean is None) != (std is None) or (std is not None and std <= 0):
            raise ValueError(f"give mean and std > 0, or neither; got {mean} and {std}")
        _check(window_type, mel_scale, norm, power)
        if n_fft is not None and n_fft < length:
            raise ValueError(f"n_fft={n_fft} is shorter than the window of {length} samples")

        def spectrogram(points: int) -> MelSpectrogram:
            return MelSpectrogram(
                rate,
                n_fft=points,
                win_length=length,
                hop_length=self.hop,
                f_min=low,
                f_max=top,
                n_mels=bands,
                window_fn=WINDOWS[window_type],
                power=power,
                norm=norm,
                mel_scale=mel_scale,
            )

        self.mel = _without_gaps(spectrogram, [n_fft] if n_fft else _powers(length))
        self.rate, self.frames, self.preemphasis = rate, frames, preemphasis
        self.mean, self.std = mean, std

    def forward(self, batch: JepaBatch) -> JepaBatch:
        """The batch with each of its inputs turned into a spectrogram.

        Raises:
            ValueError: the waveforms are not those of T frames.
        """
        return batch.map_inputs(self._of_size)

    def raw_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the waveforms from which it makes spectrograms (C, T, F)."""
        return (shape[0], shape[1] * self.hop)

    def normalize(self, x: Tensor) -> Tensor:
        """x: (B, C, samples), float or int16 -> (B, C, samples / hop, F) float32. (B, C, T, F) is taken as made.

        Raises:
            ValueError: samples are no multiple of the hop, or too few for one transform.
            TypeError: they are neither floats nor int16.
        """
        if x.ndim == 4 and x.is_floating_point():
            return x
        x = self.energies(x).clamp_(min=FLOOR).log_()
        if self.mean is not None and self.std is not None:
            return x.sub_(self.mean).div_(self.std)
        axes = (1, 2, 3)
        return x.sub_(x.mean(axes, keepdim=True)).div_(x.std(axes, keepdim=True).clamp_(min=1e-5))

    def energies(self, x: Tensor) -> Tensor:
        """Energy of each band: (B, C, samples) -> (B, C, samples / hop, F); errors as `normalize`."""
        if not x.is_floating_point() and x.dtype != torch.int16:
            raise TypeError(f"waveforms must be floats or int16, not {x.dtype}")
        least = self.mel.n_fft // 2  # that the mirror needs
        if x.ndim != 3 or x.shape[2] % self.hop or x.shape[2] <= least:
            raise ValueError(
                f"waveforms must be (B, C, samples), a multiple of {self.hop} (the hop) and more than {least} samples "
                f"at {self.rate} Hz; got {tuple(x.shape)}"
            )
        wave = x.float() if x.is_floating_point() else x.float() / FULL_SCALE
        if self.mel.mel_scale.fb.device != x.device:
            self.to(x.device)
        if self.preemphasis:
            wave = preemphasis(wave, self.preemphasis)
        return self.mel(wave)[..., : x.shape[2] // self.hop].transpose(-1, -2).contiguous()

    def _of_size(self, x: Tensor) -> Tensor:
        samples = self.frames * self.hop
        if x.ndim == 3 and x.shape[2] != samples:
            raise ValueError(
                f"{self.frames} frames need waveforms (B, C, {samples}), which are {samples / self.rate:g} s at "
                f"{self.rate} Hz, got {tuple(x.shape)}: let data.dataset make those, or change data.size or "
                f"data.batch_transform"
            )
        return self.normalize(x)


def _check(window_type: str, mel_scale: str, norm: str | None, power: float) -> None:
    for name, value, valid in (
        ("window_type", window_type, (*WINDOWS,)),
        ("mel_scale", mel_scale, get_args(MelScale)),
        ("norm", norm, (None, *get_args(Norm))),
    ):
        if value not in valid:
            raise ValueError(f"{name}={value!r}: need one of {', '.join(map(str, valid))}")
    if not power > 0:
        raise ValueError(f"need power > 0, got {power}")


def _powers(length: int) -> list[int]:
    """Powers of two that hold a window of that length."""
    first = 1 << (length - 1).bit_length()
    return [first << times for times in range(DOUBLINGS + 1)]


def _without_gaps(spectrogram: Callable[[int], MelSpectrogram], sizes: Sequence[int]) -> MelSpectrogram:
    """The first of these sizes of the transform that leaves no band empty.

    Raises:
        ValueError: none does.
    """
    for points in sizes:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero")  # refused below
            mel = spectrogram(points)
        bands = mel.mel_scale.fb.amax(0)
        if (bands > 0).all():
            return mel
    empty = (bands == 0).nonzero().flatten().tolist()
    raise ValueError(
        f"mel bands {empty[:5]} of {len(bands)} hold no frequency: fewer bands, or n_fft above {sizes[-1]}"
    )
