"""Order, slices, masks, substitutes and loading of batches."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa import seeding
from jepa.data import Batches, DataError, Normalize, SampleDataset, collate, fingerprint_of, loader
from jepa.interfaces import Masker
from jepa.seeding import Stream
from jepa.types import JepaBatch, Masks, Sample, UnreadableSample, View

GRID = (3, 4)


class Numbers(SampleDataset):
    """Sample i is filled with i; the positions in `broken` cannot be read."""

    def __init__(self, count: int = 10, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Sample:
        if i in self.broken:
            raise UnreadableSample(f"number {i}", "broken on purpose")
        return Sample(torch.full((3, 6, 8), i, dtype=torch.uint8), {"parity": i % 2, "half": i / 2}, f"number {i}")

    @property
    def fingerprint(self) -> str:
        return fingerprint_of([str(self.count)])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        return {"parity": ["even", "odd"], "half": None}


class Coins(Masker):
    """Context by coin flips, two target sets per sample, one cell always in each."""

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        maps = torch.rand(batch_size, 3, *grid, generator=generator) < 0.4
        maps[:, :, 0, 0] = True
        return [Masks(maps[:, 0], maps[:, 1:])]


class Holey(Coins):
    """Leaves a chosen set empty, or breaks the masks in another way."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        (masks,) = super().sample(batch_size, grid, generator)
        if self.fault == "context":
            masks.context[2] = False
        elif self.fault == "target":
            masks.targets[3, 1] = False
        elif self.fault == "shape":
            return [Masks(masks.context[:-1], masks.targets)]
        else:
            return []
        return [masks]


class AddNoise:
    """A transform that draws from torch's global generator."""

    def __call__(self, x: Tensor) -> Tensor:
        return x * 10 + torch.randint(0, 10, x.shape, dtype=torch.uint8)


def batches(**changes: object) -> Batches:
    parts = {"dataset": Numbers(), "transform": AddNoise(), "masker": Coins()}
    return Batches(**{**parts, "grid": GRID, "seed": 7, "batch_size": 4, **changes})


def same(a: JepaBatch, b: JepaBatch) -> bool:
    tensors = [flatten(a), flatten(b)]
    return len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors)) and a.skipped == b.skipped


def flatten(batch: JepaBatch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.apply(lambda tensor: (found.append(tensor), tensor)[1])
    return found


def test_a_batch_has_the_promised_parts() -> None:
    batch = batches()[0]
    (task,) = batch.tasks
    assert batch.target.x.shape == (4, 3, 6, 8)
    assert batch.target.x.dtype == torch.uint8
    assert batch.target.keep is None
    assert task.context.x is batch.target.x
    assert task.context.keep.grid == task.query.grid == GRID
    assert (len(task.context.keep), len(task.query)) == (4, 8)
    assert task.share == 1.0
    assert batch.labels["parity"].tolist() == [i % 2 for i in batch.index.tolist()]
    assert batch.labels["half"].tolist() == [i / 2 for i in batch.index.tolist()]
    assert (batch.target.x[:, 0, 0, 0] // 10).tolist() == batch.index.tolist()
    assert batch.skipped == ()


def test_items_do_not_depend_on_what_was_asked_before() -> None:
    fresh = [batches()[k] for k in range(6)]
    used = batches()
    for k in (5, 0, 3, 3, 1, 4, 2):
        assert same(used[k], fresh[k])
    assert not same(fresh[0], fresh[1])
    assert not same(fresh[0], batches(seed=8)[0])


def test_items_leave_the_global_generators_alone() -> None:
    before = torch.get_rng_state()
    batches()[0]
    next(iter(loader(batches(), 0, 1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_draw_from_every_generator_as_if_alone() -> None:
    def noise(x: Tensor) -> Tensor:
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])

    whole = batches(transform=noise)[1]
    for slot in range(4):
        with seeding.isolated(7, Stream.SAMPLE, 4 + slot):
            assert torch.equal(whole.target.x[slot], noise(whole.target.x))
    states = random.getstate(), np.random.get_state()[1].tolist()
    batches(transform=noise)[0]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_every_sample_comes_once_per_epoch_and_orders_differ() -> None:
    stream = torch.cat([batches(batch_size=4)[k].index for k in range(10)]).tolist()  # 40 samples of 10: 4 epochs
    epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_sample_is_transformed_anew_in_each_epoch() -> None:
    items = [batches(dataset=Numbers(4))[k] for k in range(2)]
    pictures = [{int(i): x for i, x in zip(item.index, item.target.x, strict=True)} for item in items]
    assert not any(torch.equal(pictures[0][i], pictures[1][i]) for i in range(4))


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 3)])
def test_slices_make_up_the_global_batch(world_size: int, accumulate: int) -> None:
    for step in (1, 2, 5):
        whole = batches(batch_size=12)[step - 1]
        parts = [
            batches(batch_size=12, rank=rank, world_size=world_size, accumulate=accumulate)[k]
            for k in range((step - 1) * accumulate, step * accumulate)
            for rank in range(world_size)
        ]
        assert torch.equal(torch.cat([part.target.x for part in parts]), whole.target.x)
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.labels["half"] for part in parts]), whole.labels["half"])
        for name in ("values", "lengths"):
            context = [getattr(part.tasks[0].context.keep, name) for part in parts]
            query = [getattr(part.tasks[0].query, name) for part in parts]
            assert torch.equal(torch.cat(context), getattr(whole.tasks[0].context.keep, name))
            assert torch.equal(torch.cat(query), getattr(whole.tasks[0].query, name))


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_shares_weigh_every_token_of_the_global_batch_alike(world_size: int, accumulate: int) -> None:
    parts = [
        batches(batch_size=12, rank=rank, world_size=world_size, accumulate=accumulate)[k].tasks[0]
        for k in range(accumulate)
        for rank in range(world_size)
    ]
    weights = [part.share / world_size / part.query.total for part in parts]  # of one token, averaged over processes
    total = sum(part.query.total for part in parts)
    assert weights == pytest.approx([1 / total] * len(parts))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_anywhere_with_any_workers(workers: int) -> None:
    expected = [batches(accumulate=2)[k] for k in range(7)]
    for start, stop in ((0, 7), (3, 6)):
        loaded = list(loader(batches(accumulate=2), start, stop, workers=workers))
        assert len(loaded) == stop - start
        assert all(map(same, loaded, expected[start:stop]))
        assert all(batch.tasks[0].context.x is batch.target.x for batch in loaded)


def test_an_error_in_a_worker_keeps_its_type_and_message() -> None:
    iterator = iter(loader(batches(masker=Holey("context")), 0, 1, workers=1))
    with pytest.raises(DataError, match=r"Holey.* step 1: the context of sample 2"):
        next(iterator)
    iterator._shutdown_workers()  # left to the garbage collector it waits five seconds


def test_unreadable_samples_are_replaced_and_named() -> None:
    readable = batches(dataset=Numbers(10), batch_size=10)[0].index.tolist()
    broken = (readable[3], readable[4], readable[9])
    batch = batches(dataset=Numbers(10, broken), batch_size=10)[0]
    expected = [*readable]
    expected[3] = expected[4] = readable[5]
    expected[9] = readable[0]
    assert batch.index.tolist() == expected
    names = [f"number {i}: broken on purpose" for i in (readable[3], readable[4], readable[4], readable[9])]
    assert list(batch.skipped) == names
    assert same(batch, batches(dataset=Numbers(10, broken), batch_size=10)[0])


def test_data_that_is_all_unreadable_is_an_error() -> None:
    with pytest.raises(DataError, match=r"10 samples in a row are unreadable \(the whole dataset\): number .*; \.\.\."):
        batches(dataset=Numbers(10, tuple(range(10))))[0]
    with pytest.raises(DataError, match="64 samples in a row are unreadable: number"):
        batches(dataset=Numbers(200, tuple(range(200))))[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10, "world_size": 4}, "10 cannot be cut in 4 processes x 1 .* nearest batch sizes: 8 or 12"),
        ({"batch_size": 3, "world_size": 2, "accumulate": 2}, "= 4 equal slices; nearest batch sizes: 4"),
        ({"batch_size": 0}, "nearest batch sizes: 1"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2"),
        ({"dataset": Numbers(0)}, "Numbers is empty"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        batches(**settings)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("context", "Holey, task 0 of step 3: the context of sample 2 of the global batch is empty"),
        ("target", "Holey, task 0 of step 3: the target set 1 of sample 3 of the global batch is empty"),
        ("shape", r"Holey, task 0 of step 3: expected boolean context maps \(4, 3, 4\), got .* \(3, 3, 4\)"),
        ("none", "Holey posed no task at step 3"),
    ],
)
def test_unusable_masks_name_the_masker(fault: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        batches(masker=Holey(fault))[2]


def test_samples_that_do_not_stack_are_named() -> None:
    a, b = Sample(torch.zeros(3, 4, 4), {"y": 1}, "a.png"), Sample(torch.zeros(3, 4, 5), {"y": 1}, "b.png")
    with pytest.raises(DataError, match=r"\(3, 4, 4\) of a.png and .*\(3, 4, 5\) of b.png; use a transform"):
        collate([a, b], [], [])
    with pytest.raises(DataError, match=r"a.png has labels \['y'\], but c.png has \[\]"):
        collate([a, Sample(a.x, {}, "c.png")], [], [])
    with pytest.raises(DataError, match=r"label 'y'.*a.png.*d.png"):
        collate([a, Sample(a.x, {"y": torch.zeros(2)}, "d.png")], [], [])


def test_an_error_in_a_transform_names_the_sample() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("cannot crop")

    with pytest.raises(RuntimeError, match="cannot crop") as caught:
        batches(transform=fail)[0]
    assert "sample number" in caught.value.__notes__[0]


@pytest.mark.parametrize("size", [(5,), (4, 6), (2, 4, 6)])
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_normalize_is_the_textbook_formula(size: tuple[int, ...], channels: int) -> None:
    mean, std = [0.1 + 0.05 * c for c in range(channels)], [0.2 + 0.01 * c for c in range(channels)]
    normalize = Normalize(mean, std)
    x = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    shape = (1, channels, *[1] * len(size))
    expected = (x.double() / 255 - torch.tensor(mean).view(shape).double()) / torch.tensor(std).view(shape).double()
    result = normalize.normalize(x)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert (result - expected).abs().max() < 1e-5
    assert normalize.normalize(result) is result
    assert (normalize.mean, normalize.std) == (tuple(mean), tuple(std))


def test_normalize_changes_shared_inputs_once() -> None:
    batch = Normalize([0.5] * 3, [0.5] * 3)(batches()[0])
    assert batch.target.x.dtype == torch.float32
    assert batch.tasks[0].context.x is batch.target.x
    assert batch.labels["parity"].dtype == torch.int64


def test_normalize_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"for 3 channels, but the batch is .*\(2, 4, 8, 8\)"):
        Normalize([0.5] * 3, [0.5] * 3)(JepaBatch(View(torch.zeros(2, 4, 8, 8, dtype=torch.uint8)), []))
    with pytest.raises(TypeError, match="int16"):
        Normalize([0.5], [0.5]).normalize(torch.zeros(2, 1, 8, 8, dtype=torch.int16))
    for mean, std in (([], []), ([0.5], [0.5, 0.5]), ([0.5], [0.0])):
        with pytest.raises(ValueError, match="one number per channel"):
            Normalize(mean, std)


def test_coverage_over_uneven_batches_is_exact() -> None:
    counts = Counter(torch.cat([batches(batch_size=3)[k].index for k in range(10)]).tolist())
    assert set(counts.values()) == {3}


def test_tasks_are_numbered_and_stay_so() -> None:
    context = torch.rand(2, 3, 4) < 0.5
    context[:, 0, 0], context[:, 0, 1] = True, False
    masks = Masks(context, ~context[:, None])
    samples = [Sample(torch.zeros(3, 6, 8), {}, "a.png"), Sample(torch.zeros(3, 6, 8), {}, "b.png")]
    batch = collate(samples, [masks, masks, masks], [1.0, 1.0, 1.0], 0.25)
    for found in (batch, batch.to("cpu"), batch.map_inputs(torch.clone)):
        assert [task.query.task for task in found.tasks] == [0, 1, 2]
        assert found.share == 0.25
