"""Pictures per second of one core: `python -m benchmarks.loading`.

Reads, decodes and crops 500 x 375 JPEG files, then normalises them, in two ways that take turns in one run, so that
other load on the machine hits both:

    jepa    Batches as in training: decode to bytes, crop, one normalisation of the whole batch
    usual   PIL -> RGB -> RandomResizedCrop -> ToTensor -> Normalize per picture, then stack

Also prints how far the two differ, and the rate of embedded data.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision.transforms as usual_transforms
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import resized_crop

from jepa.data import Batches, Digits, Images, Normalize, Shapes, random_resized_crop
from jepa.interfaces import Masker
from jepa.types import Masks

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224


class Everything(Masker):
    """Costs nothing: the usual way has no masks."""

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        return [Masks(torch.ones(batch_size, *grid, dtype=torch.bool), torch.ones(batch_size, 1, *grid).bool())]


def photograph(seed: int) -> Image.Image:
    """A 500 x 375 scene with objects and texture of all scales, about as hard to compress as a photograph."""
    generator = torch.Generator().manual_seed(seed)
    picture = Shapes(count=seed + 1, size=(375, 500), seed=1)[seed].x.float()
    for cells, strength in ((12, 22), (48, 12), (188, 8), (375, 4)):
        field = torch.randn(1, 3, cells, cells * 4 // 3, generator=generator)
        field = 0.8 * field.mean(1, keepdim=True) * 3**0.5 + 0.4 * field  # mostly brightness
        picture += strength * interpolate(field, (375, 500), mode="bicubic")[0]
    return Image.fromarray(picture.clamp(0, 255).byte().permute(1, 2, 0).numpy())


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process: other load on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(folder: Path, pictures: int, rounds: int) -> None:
    """Print the two rates and the distribution of their ratio."""
    for i in range(pictures):
        photograph(i).save(folder / f"{i:04d}.jpg", quality=90)
    kilobytes = sum(file.stat().st_size for file in folder.iterdir()) / pictures / 1e3
    batches = Batches(
        dataset=Images(folder), transform=random_resized_crop(SIZE), masker=Everything(), grid=(1, 1), seed=0,
        batch_size=pictures,
    )  # fmt: skip
    normalize = Normalize(MEAN, STD)
    usual = usual_transforms.Compose(
        [
            usual_transforms.RandomResizedCrop(SIZE, scale=(0.3, 1.0)),
            usual_transforms.ToTensor(),
            usual_transforms.Normalize(MEAN, STD),
        ]
    )
    files = sorted(folder.iterdir())

    def ours(k: int) -> Tensor:
        return normalize(batches[k]).target.x

    def theirs() -> Tensor:
        return torch.stack([usual(Image.open(file).convert("RGB")) for file in files])

    ours(0), theirs()
    times = []
    for k in range(rounds):
        order = (0, 1) if k % 2 else (1, 0)
        taken = {way: seconds((lambda: ours(k), theirs)[way]) for way in order}  # noqa: B023 - called at once
        times.append((taken[0], taken[1]))
    ratios = sorted(b / a for a, b in times)
    rates = [pictures / median(column) for column in zip(*times, strict=True)]
    best = [pictures / min(column) for column in zip(*times, strict=True)]
    print(f"{pictures} JPEG files of 500 x 375, {kilobytes:.0f} kB each, {rounds} rounds, 1 thread")
    print(f"  jepa   {rates[0]:7.0f} pictures/s, {best[0]:.0f} in the best round")
    print(f"  usual  {rates[1]:7.0f} pictures/s, {best[1]:.0f} in the best round")
    print(
        f"  ratio  {ratios[0]:.2f} min, {median(ratios):.2f} median, {ratios[-1]:.2f} max; best {best[0] / best[1]:.2f}"
    )
    print(f"  grey levels apart, same crops: {difference(files, normalize)}")


def difference(files: list[Path], normalize: Normalize) -> str:
    """Largest and mean distance of the two ways' results for equal crops, in 1/255."""
    images, apart = Images(files[0].parent), []
    rest = usual_transforms.Compose([usual_transforms.ToTensor(), usual_transforms.Normalize(MEAN, STD)])
    for i, file in enumerate(files[:16]):
        crop = random_resized_crop(SIZE)
        torch.manual_seed(i)
        ours = normalize.normalize(crop(images[i].x)[None])[0]
        torch.manual_seed(i)
        top, left, height, width = crop.box(375, 500)
        part = resized_crop(Image.open(file).convert("RGB"), top, left, height, width, [SIZE, SIZE])
        apart.append((ours - rest(part)).abs() * torch.tensor(STD).view(3, 1, 1) * 255)
    return f"{torch.stack(apart).max():.2f} at most, {torch.stack(apart).mean():.3f} on average"


def embedded() -> None:
    for name, data in {
        "shapes at 64": Shapes(size=64),
        "shapes at 224": Shapes(size=224),
        "placed digits at 32": Digits(placed=True),
    }.items():
        rate = max(200 / seconds(lambda: [data[i] for i in range(200)]) for _ in range(3))  # noqa: B023 - called at once
        print(f"{name:20s} {rate:7.0f} pictures/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments.pictures, arguments.rounds)
    embedded()


if __name__ == "__main__":
    main()
