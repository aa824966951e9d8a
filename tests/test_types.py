"""Ragged indices and tokens, and moving whole batches."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.types import Indices, JepaBatch, Task, Tokens, UnreadableSample, View
from tests.ragged import random_indices

grids = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@settings(max_examples=40, deadline=None)
@given(grid=grids, sets=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_maps_and_indices_are_inverse(grid: tuple[int, ...], sets: int, seed: int) -> None:
    maps = torch.rand(sets, *grid, generator=torch.Generator().manual_seed(seed)) < 0.5
    maps.flatten(1)[:, -1] = True  # no set is empty
    index = Indices.from_maps(maps)
    assert index.maps().equal(maps)
    assert index.lengths.tolist() == maps.flatten(1).sum(1).tolist()
    assert (index.min_length, index.max_length) == (int(index.lengths.min()), int(index.lengths.max()))
    assert index.total == int(maps.sum())
    for number, own in enumerate(maps.flatten(1)):
        start, stop = index.offsets[number], index.offsets[number + 1]
        assert index.values[start:stop].equal(own.nonzero().flatten())  # row-major, ascending
        assert index.sets[start:stop].eq(number).all()


def test_all_positions_equal_full_maps() -> None:
    index, expected = Indices.all(3, (2, 4)), Indices.from_maps(torch.ones(3, 2, 4, dtype=torch.bool))
    assert index.values.equal(expected.values)
    assert index.lengths.equal(expected.lengths)
    assert index.complete
    assert not random_indices([8, 7], (2, 4)).complete


@pytest.mark.parametrize(
    ("values", "lengths", "message"),
    [
        ([0, 1, 2], [2, 2], "sum to 4"),
        ([[0, 1]], [2], "values hold"),
        ([0, 1], [2, 0], r"empty: sets \[1\] of 2"),
        ([0, 6], [2], r"0\.\.6 leave the grid \(2, 3\)"),
        ([-1, 2], [2], "leave the grid"),
    ],
)
def test_impossible_indices_are_refused(values: list, lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Indices.of(torch.tensor(values), torch.tensor(lengths), (2, 3))


def test_maps_must_be_boolean() -> None:
    with pytest.raises(ValueError, match="boolean maps"):
        Indices.from_maps(torch.ones(2, 3, 3))


def test_lookup_of_several_sets_per_sample() -> None:
    grid, samples = (2, 3), 2
    x = torch.arange(samples * 6.0)[:, None] * torch.tensor([1.0, 10.0])  # token value names sample and position
    query = Indices.of(torch.tensor([5, 0, 1, 2, 3, 4]), torch.tensor([1, 2, 2, 1]), grid)  # two sets per sample
    found = Tokens(x, Indices.all(samples, grid)).at(query)
    assert found[:, 0].tolist() == [5, 0, 1, 6 + 2, 6 + 3, 6 + 4]
    assert found[:, 1].equal(10 * found[:, 0])


def test_lookup_needs_every_position() -> None:
    partial = random_indices([3, 3], (2, 3))
    with pytest.raises(ValueError, match="keep every position"):
        Tokens(torch.zeros(6, 1), partial).at(partial)
    complete = Tokens(torch.zeros(12, 1), Indices.all(2, (2, 3)))
    with pytest.raises(ValueError, match="on grid"):
        complete.at(random_indices([3, 3], (3, 2)))
    with pytest.raises(ValueError, match="3 sets"):
        complete.at(random_indices([3, 3, 1], (2, 3)))


def test_dense_is_refused_for_ragged_sets() -> None:
    x = torch.arange(8.0).view(4, 2)
    assert Tokens(x, random_indices([2, 2], (2, 3))).dense().equal(x.view(2, 2, 2))
    with pytest.raises(ValueError, match=r"1\.\.3 tokens"):
        Tokens(x, random_indices([1, 3], (2, 3))).dense()


def batch_of(x: torch.Tensor) -> JepaBatch:
    keep, query = random_indices([2, 3], (2, 3), seed=1), random_indices([1, 2], (2, 3), seed=2)
    tasks = [Task(View(x, keep), query, share=0.5), Task(View(x), torch.ones(2, 4))]
    return JepaBatch(View(x), tasks, labels={"label": torch.arange(2)}, index=torch.arange(2), skipped=("a: b",))


def test_a_batch_moves_each_tensor_once() -> None:
    x, moved = torch.randn(2, 1, 2, 3), []

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor)
        return tensor.to("meta")

    batch = batch_of(x)
    there = batch.apply(move)
    assert sum(tensor is x for tensor in moved) == 1
    assert there.tasks[0].context.x is there.target.x
    assert there.tasks[1].context.x is there.target.x
    everything = [there.target.x, there.tasks[0].context.keep.values, there.tasks[0].context.keep.lengths]
    everything += [there.tasks[0].query.values, there.tasks[0].query.lengths, there.tasks[1].query]
    everything += [there.labels["label"], there.index]
    assert all(tensor.is_meta for tensor in everything)
    assert len(moved) == len(everything)
    assert there.tasks[0].share == 0.5
    assert there.skipped == batch.skipped


def test_changing_inputs_leaves_the_rest() -> None:
    batch = batch_of(torch.ones(2, 1, 2, 3))
    changed = batch.map_inputs(lambda x: x * 2)
    assert changed.target.x.eq(2).all()
    assert changed.tasks[0].context.x is changed.target.x
    assert changed.tasks[1].query is batch.tasks[1].query
    assert changed.tasks[0].query.values is batch.tasks[0].query.values
    assert changed.labels["label"] is batch.labels["label"]


def test_an_unreadable_sample_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(UnreadableSample("a/b.jpg", "truncated")))
    assert str(error) == "a/b.jpg: truncated"
    assert (error.name, error.reason) == ("a/b.jpg", "truncated")
