"""Several datasets in given proportions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.types import Sample, UnreadableSample


class Mixture(SampleDataset):
    """Draws a dataset by weight and one of its samples evenly, with replacement: for training.

    What is drawn comes from the global generators, which are seeded for each position of the training stream. So every
    position of every epoch is a new draw, and the same one whatever the workers, processes or restarts; an epoch is as
    many draws as there are samples. `labels` are those that all datasets have, with the same classes.

    What cannot be read is named with its dataset ("k710/b.mp4: ..."), and another sample of the same dataset takes its
    place. So shares stay as they are, and a dataset of which nothing can be read is an error that names it (`Batches`
    tries all of it, or 64 samples), not silently replaced by the others.

    Args:
        datasets: by name, as in a recipe: `datasets: {k710: {_target_: ...}, ssv2: {_target_: ...}}`.
        weights: share of the draws by the same names; they are scaled to a sum of 1. By default each sample of each
            dataset is as likely.

    Raises:
        DataError: no dataset, an empty one, names that differ, or weights that cannot be shares.
    """

    def __init__(self, datasets: Mapping[str, SampleDataset], weights: Mapping[str, float] | None = None) -> None:
        sizes = {name: len(dataset) for name, dataset in datasets.items()}
        weights = sizes if weights is None else weights
        if set(weights) != set(sizes):
            raise DataError(f"datasets are named {', '.join(sizes)}, but weights {', '.join(weights)}")
        shares = np.array([weights[name] for name in sizes], np.float64)
        if not sizes or min(sizes.values()) < 1 or not np.isfinite(shares).all() or not (shares > 0).all():
            raise DataError(f"need datasets with samples and weights above 0; got sizes {sizes}, weights {weights}")
        self.datasets, self.shares = dict(datasets), shares / shares.sum()

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets.values())

    def __getitem__(self, i: int) -> Sample:
        """A drawn sample. With the same seeds, i = 0, 1, ... are samples of one dataset, each of them in turn.

        Raises:
            UnreadableSample: it cannot be used. Its name begins with that of its dataset.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"draw {i} of {len(self)}")
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        name = list(self.datasets)[rng.choice(len(self.shares), p=self.shares)]
        dataset = self.datasets[name]
        first = int(rng.integers(len(dataset)))
        try:
            sample = dataset[(first + i) % len(dataset)]
        except UnreadableSample as error:
            raise UnreadableSample(f"{name}/{error.name}", error.reason) from error
        return Sample(sample.x, {label: sample.labels[label] for label in self.label_names}, f"{name}/{sample.name}")

    @property
    def fingerprint(self) -> str:
        parts = (f"{name} {dataset.fingerprint}" for name, dataset in self.datasets.items())
        return fingerprint_of([*parts, str(self.shares.tolist())])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        first, *others = (dataset.label_names for dataset in self.datasets.values())
        absent = object()
        return {n: known for n, known in first.items() if all(other.get(n, absent) == known for other in others)}
