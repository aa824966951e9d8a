"""Bands of time and frequency, and curricula of maskers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa import build, dry_run
from jepa import recipe as recipes
from jepa.build import RecipeError
from jepa.data import Batches
from jepa.interfaces import Masker
from jepa.maskers import Bands, BlockTask, Curriculum, MultiBlock, MultiBlock3D, RandomPatches
from jepa.maskers.bands import AXES
from tests.test_data_batches import Numbers, same
from tests.test_maskers import accepts, draw, generator, grids, overlap, ranges, refusal, seeds, sides, tokens

SPECTROGRAM = (64, 8)  # time, frequency: 10.24 s in patches of 16 x 16

# bands ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(AXES), st.integers(1, 5), ranges(0.01, 0.6), ranges(0.1, 1.0), grids, seeds)
def test_bands_keep_their_promises_or_refuse(axis, targets, scale, context_scale, grid, seed):
    masker = Bands(axis=axis, targets=targets, target_scale=scale, context_scale=context_scale)
    if not accepts(masker, grid):
        return
    masks = draw(masker, 8, grid, seed)
    assert masks.targets.shape[1] == targets
    assert not overlap(masks).any()
    assert tokens(masks.context).min() >= 1
    narrow = AXES.index(axis)
    widths = sides(masks.targets)
    assert (widths[1 - narrow] == grid[1 - narrow]).all()
    assert widths[narrow].min() >= max(1, scale[0] * grid[narrow] - 0.501)
    assert widths[narrow].max() <= max(1, scale[1] * grid[narrow] + 0.501)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), ranges(0.01, 0.3), grids, seeds)
def test_crosses_are_a_band_of_each_axis(targets, scale, grid, seed):
    masker = Bands(targets=targets, target_scale=scale, context_scale=(1.0, 1.0))
    if not accepts(masker, grid):
        return
    masks = draw(masker, 8, grid, seed)
    times, frequencies = masks.targets.all(-1), masks.targets.all(-2)  # (B, M, time), (B, M, frequency)
    assert torch.equal(masks.targets, times[..., None] | frequencies[..., None, :])
    seen = ~(times.any(1)[..., None] | frequencies.any(1)[:, None])
    assert torch.equal(masks.context, seen)  # all that shares neither a moment nor a frequency with a target


def test_every_step_and_width_is_drawn_alike():
    masker = Bands(axis="time", targets=1, target_scale=(0.25, 0.75), context_scale=(1.0, 1.0))
    width, _ = sides(draw(masker, 4000, (8, 3)).targets)
    counts = torch.bincount(width.flatten(), minlength=7)[2:7] / 4000
    assert (counts - torch.tensor([1, 2, 2, 2, 1]) / 8).abs().max() < 0.03
    first = draw(Bands(axis="frequency", targets=1, target_scale=(0.25, 0.25)), 4000, (3, 8)).targets[:, 0, 0].int()
    places = torch.bincount(first.argmax(-1), minlength=7) / 4000  # of a band of two frequencies
    assert (places - 1 / 7).abs().max() < 0.03


def test_the_published_values_hide_half_of_a_spectrogram():
    masks = draw(Bands(), 500, SPECTROGRAM)
    share = masks.targets.double().mean((2, 3))
    assert 0.16 < share.min() < share.max() < 0.20
    assert 0.45 < masks.context.double().mean() < 0.55


@pytest.mark.parametrize(
    ("key", "value"),
    [("axis", "rows"), ("targets", 0), ("target_scale", (0.5, 1.1)), ("context_scale", (0.0, 1.0))],
)
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        Bands(**{key: value})


def test_bands_that_could_hide_everything_are_refused_in_words():
    with pytest.raises(ValueError, match="can hide 9 of the 8 positions in frequency of grid 64x8"):
        Bands(axis="frequency", target_scale=(0.1, 0.4)).check(SPECTROGRAM)
    Bands(axis="time", target_scale=(0.1, 0.3)).check(SPECTROGRAM)
    with pytest.raises(ValueError, match="positions in time"):
        Bands(axis="time", target_scale=(0.1, 0.3), context_scale=(0.5, 1.0)).check(SPECTROGRAM)
    with pytest.raises(ValueError, match="2-D grid"):
        Bands().check((8, 8, 8))


# curricula ------------------------------------------------------------------------------------------------------------


def curriculum(start: float = 0.01) -> Curriculum:
    return Curriculum(first=MultiBlock(min_context=1), then=Bands(), start=start)


def hard(masker: Masker, batches: int = 400) -> float:
    """Share of batches with the second kind of masks: three targets in place of four."""
    drawn = [masker.sample(1, SPECTROGRAM, generator(seed))[0].targets.shape[1] for seed in range(batches)]
    return drawn.count(3) / batches


def test_hard_masks_become_more_frequent_by_the_root_of_progress():
    masker = curriculum()
    assert masker.at(0.0).share == pytest.approx(0.01)
    assert masker.at(0.25).share == pytest.approx(0.5, abs=1e-3)
    assert hard(masker.at(0.25)) == pytest.approx(0.5, abs=0.07)
    assert hard(masker.at(1.0), 50) == hard(masker, 50) == 1  # of whom nobody says where it is: the end
    assert hard(curriculum(start=0).at(0.0), 50) == 0
    assert masker.share == 1.0, "a masker is not changed by asking for another"


def test_a_curriculum_in_a_curriculum_is_told_too():
    masker = Curriculum(first=curriculum(), then=curriculum(), start=1.0).at(0.0)
    assert hard(masker) < 0.05


def test_a_curriculum_refuses_what_one_of_them_refuses():
    assert refusal(lambda: curriculum().check((4, 4))) is None
    message = refusal(lambda: Curriculum(first=RandomPatches(), then=Bands(target_scale=(0.5, 0.6))).check((8, 8)))
    assert message.startswith("then: 3 targets of target_scale")
    one = MultiBlock3D(tasks={"only": BlockTask(blocks=1, spatial_scale=(0.2, 0.2))})
    assert "poses 1 tasks on each sample and then 2" in refusal(
        lambda: Curriculum(first=one, then=MultiBlock3D()).check((4, 8, 8))
    )
    with pytest.raises(ValueError, match="start"):
        curriculum(start=1.5)


def test_batches_tell_the_masker_how_far_the_run_is():
    def kinds(steps: int | None, start: int) -> list[int]:
        batches = Batches(
            dataset=Numbers(), transform=None, masker=curriculum(), grid=SPECTROGRAM, seed=0, batch_size=4, steps=steps
        )
        return [len(batches[k].tasks[0].query) // 4 for k in range(start, start + 12)]

    assert kinds(10_000, 0).count(4) >= 11
    assert kinds(10_000, 9_900).count(3) >= 11
    assert set(kinds(None, 0)) == {3}


def test_a_batch_is_the_same_whatever_was_drawn_before():
    def batches() -> Batches:
        return Batches(
            dataset=Numbers(), transform=None, masker=curriculum(), grid=SPECTROGRAM, seed=0, batch_size=4, steps=20
        )

    ran = batches()
    through = [ran[k] for k in range(20)]
    assert len({len(batch.tasks[0].query) for batch in through}) == 2, "both kinds were drawn"
    for k in (0, 7, 19):
        same(through[k], batches()[k])


# in a recipe ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_both_ends_of_a_curriculum():
    recipe = recipes.load_recipe(["recipe=ajepa_tiny", "masker=curriculum", "dry_run=true"])
    lines = {line[:22].strip(): line[22:] for line in dry_run.describe(recipe).splitlines()}
    assert ", 4 target sets of" in lines["task 1 at first"]
    assert ", 3 target sets of" in lines["task 1 at last"]
    assert "task 1" not in lines


def test_a_curriculum_that_cannot_end_is_refused_at_the_start():
    arguments = ["recipe=ajepa_tiny", "masker=curriculum", "masker.then.target_scale=[0.2,0.4]", "dry_run=true"]
    with pytest.raises(RecipeError, match="masker: then: 3 targets of target_scale up to 0"):
        dry_run.describe(recipes.load_recipe(arguments))


def test_the_recipe_of_a_jepa_draws_as_published():
    recipe = recipes.load_recipe(["recipe=ajepa_vitb16", "dry_run=true"])
    masker = build.build(recipe["masker"], "masker")
    masker.check(SPECTROGRAM)
    assert (masker.first.targets, masker.first.target_scale, masker.first.min_context) == (4, (0.15, 0.2), 10)
    assert (masker.then.targets, masker.then.target_scale, masker.then.axis) == (3, (0.05, 0.075), "both")
