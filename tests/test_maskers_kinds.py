"""What draws for a masker: both kinds of a curriculum are tried and shown, however seldom one is drawn."""

from __future__ import annotations

import pytest
import torch

from jepa import dry_run
from jepa import recipe as recipes
from jepa.build import RecipeError
from jepa.maskers import Bands, Curriculum, Joint, JointTask, RandomPatches
from jepa.types import JointGrid

BOTH = JointTask(see=("clip", "sound"), predict=("clip", "sound"))


def described(*arguments: str) -> list[str]:
    return dry_run.describe(recipes.load_recipe([*arguments, "dry_run=true"])).splitlines()


def test_a_masker_that_draws_itself_is_its_only_kind() -> None:
    masker = RandomPatches()
    assert masker.kinds() == [(1.0, masker)]


def test_a_curriculum_is_two_kinds_in_shares_that_change() -> None:
    first, then = RandomPatches(), Bands()
    masker = Curriculum(first=first, then=then, start=0.2)
    assert masker.at(0.0).kinds() == [(0.8, first), (0.2, then)]
    assert masker.at(1.0).kinds() == [(0.0, first), (1.0, then)]
    nested = Curriculum(first=masker, then=then, start=0.5).at(0.0).kinds()
    assert [share for share, _ in nested] == pytest.approx([0.4, 0.1, 0.5])


def test_a_joint_masker_is_every_combination_of_kinds() -> None:
    change = Curriculum(
        first=RandomPatches(target_ratio=(0.25, 0.25)), then=RandomPatches(target_ratio=(0.75, 0.75)), start=0.25
    )
    still = Joint(maskers={"clip": RandomPatches(), "sound": RandomPatches()}, tasks={"both": BOTH})
    assert still.kinds() == [(1.0, still)]
    kinds = Joint(maskers={"clip": RandomPatches(), "sound": change}, tasks={"both": BOTH}).at(0.0).kinds()
    assert [share for share, _ in kinds] == pytest.approx([0.75, 0.25])
    grid = JointGrid({"clip": (2, 4), "sound": (4, 2)})
    drawn = [kind.sample(3, grid, torch.Generator().manual_seed(0))[0].targets[:, 1] for _, kind in kinds]
    assert [int(targets.sum()) for targets in drawn] == [3 * 2, 3 * 6]


def test_a_kind_that_is_hardly_ever_drawn_is_tried_before_training() -> None:
    seldom = "masker.first._target_=jepa.maskers.Pair"
    with pytest.raises(RecipeError, match="answers Indices, but masker Curriculum asks with Tensor"):
        described("recipe=ajepa_tiny", "masker=curriculum", seldom, "masker.start=0.999")


def test_a_dry_run_shows_both_kinds_with_their_shares() -> None:
    lines = described("recipe=ajepa_tiny", "masker=curriculum", "masker.start=0.3")
    place = next(i for i, line in enumerate(lines) if line.startswith("task 1 at first"))
    assert lines[place][22:].startswith("in 70% of batches: context ")
    assert "4 target sets" in lines[place]
    assert lines[place + 1].startswith(f"{'':<22}in 30% of batches: context ")
    assert "3 target sets" in lines[place + 1]
    assert lines[place + 2].startswith("task 1 at last        context ")


def test_a_masker_that_poses_what_it_may_not_is_one_clear_error() -> None:
    change = "masker.maskers.clip._target_=jepa.maskers.MultiBlock3D"
    with pytest.raises(RecipeError, match=r"^masker: maskers\.clip: MultiBlock3D does not pose one task of masks$"):
        described("recipe=avjepa_tiny", change)
