"""Log-mel spectrograms of whole batches, made on the device, so that workers and the bus only carry waveforms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchaudio.functional import preemphasis
from torchaudio.transforms import MelSpectrogram

from jepa.types import JepaBatch

FULL_SCALE = 2.0**15  # of int16 samples
FLOOR = 1.1920929e-7  # least energy of a band before the logarithm, as in Kaldi and torchaudio.compliance.kaldi


class LogMel(nn.Module):
    """Waveforms (B, C, samples) to normalised spectrograms (B, C, time, frequency) with torchaudio's `MelSpectrogram`:
    a Hann window, energies, triangular bands on the HTK mel scale, natural logarithm.

    Frame k is centred on sample k * hop; the signal is mirrored at both ends. A crop of T * hop samples gives T frames:
    the one centred on its end is left out, as half of it would be the mirror. It follows its input's device.

    Args:
        rate: samples per second.
        size: (T, F), frames and mel bands.
        window, hop: seconds.
        n_fft: samples that each frame is padded to; None: the next power of two.
        low, high: Hz that the bands span; `high` None: half of the rate.
        preemphasis: x[t] - preemphasis * x[t - 1] before all; Kaldi's is 0.97.
        mean, std: of log energies, over all bands; both None: each spectrogram's own.

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
        points = n_fft or 1 << (length - 1).bit_length()
        if points < length:
            raise ValueError(f"n_fft={points} is shorter than the window of {length} samples")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero")  # refused below
            self.mel = MelSpectrogram(
                rate, n_fft=points, win_length=length, hop_length=self.hop, f_min=low, f_max=top, n_mels=bands
            )
        empty = (self.mel.mel_scale.fb.amax(0) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"mel bands {empty[:5]} of {bands} hold no frequency: fewer bands, or n_fft above {points}"
            )
        self.rate, self.frames, self.preemphasis = rate, frames, preemphasis
        self.mean, self.std = mean, std

    def forward(self, batch: JepaBatch) -> JepaBatch:
        """The batch with each of its inputs turned into a spectrogram."""
        return batch.map_inputs(self.normalize)

    def raw_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the waveforms from which it makes spectrograms (C, T, F)."""
        return (shape[0], shape[1] * self.hop)

    def normalize(self, x: Tensor) -> Tensor:
        """x: (B, C, samples), float or int16 -> (B, C, T, F) float32. (B, C, T, F) is taken as made already.

        Raises:
            ValueError: the waveforms are of another length.
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
        """Energy of each band: (B, C, samples) -> (B, C, T, F); errors as `normalize`."""
        if not x.is_floating_point() and x.dtype != torch.int16:
            raise TypeError(f"waveforms must be floats or int16, not {x.dtype}")
        if x.ndim != 3 or x.shape[2] != self.frames * self.hop:
            raise ValueError(
                f"{self.frames} frames need waveforms (B, C, {self.frames * self.hop}), got {tuple(x.shape)}: "
                f"set data.dataset.seconds={self.frames * self.hop / self.rate:g}, or the first number of data.size"
            )
        wave = x.float() if x.is_floating_point() else x.float() / FULL_SCALE
        if self.mel.mel_scale.fb.device != x.device:
            self.to(x.device)
        if self.preemphasis:
            wave = preemphasis(wave, self.preemphasis)
        return self.mel(wave)[..., : self.frames].transpose(-1, -2).contiguous()
