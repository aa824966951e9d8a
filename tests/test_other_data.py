"""The data that a model is looked at with, where they are not its own."""

from __future__ import annotations

from typing import Any

import pytest

from jepa.build import RecipeError, build
from jepa.other_data import data_section
from jepa.recipe import load_recipe


def section(recipe: str, *overrides: str) -> dict[str, Any]:
    """The data of a run."""
    return load_recipe([f"recipe={recipe}", "data.root=DIR", *overrides, "dry_run=true"])["data"]


@pytest.mark.parametrize(
    ("recipe", "data", "expected"),
    [
        ("audio_jepa_vitb16", "audio", {"rate": 32000, "seconds": 10, "channels": 1, "short": "pad"}),
        ("ajepa_vitb16", "audio", {"rate": 16000, "seconds": 10.24, "short": "loop"}),
        ("ajepa_vitb16", "tones", {"rate": 16000, "seconds": 10.24}),
        ("ajepa_tiny", "audio", {"rate": 16000, "seconds": 1.024, "channels": 1}),
        ("avjepa_tiny", "films", {"rate": 16000, "frames": 16, "fps": 8, "duration": None, "channels": 1}),
        ("avjepa_vitb16", "films", {"rate": 16000, "frames": 16, "fps": None, "duration": 2.08}),
        ("avjepa_vitb16", "bouncing_sounds", {"rate": 16000, "frames": 16, "fps": 8}),  # which takes no duration
        ("vjepa_vitl16", "videos", {"fps": None, "stride": 4, "duration": None}),
    ],
)
def test_samples_of_other_data_are_cut_as_the_models_own(recipe: str, data: str, expected: dict[str, Any]) -> None:
    own = section(recipe)
    other = data_section(own, [f"data={data}", "data.root=DIR"])
    for node in (other["dataset"], other["labelled"]["train"]):
        assert {key: node[key] for key in expected} == expected
    assert other["batch_transform"] == own["batch_transform"]
    assert other["size"] == own["size"]


def test_the_command_line_says_otherwise() -> None:
    own = section("avjepa_vitb16", "data.dataset.rate=8000", "data.batch_transform.parts.sound.hop=0.02")
    films = data_section(own, ["data=films", "data.root=DIR", "data.dataset.fps=4", "data.dataset.duration=null"])
    assert (films["dataset"]["rate"], films["dataset"]["fps"], films["labelled"]["train"]["duration"]) == (
        8000,
        4,
        None,
    )
    films = data_section(own, ["data=films", "data.root=DIR", "data.size.clip=[8,224,224]"])
    assert films["dataset"]["frames"] == films["labelled"]["test"]["frames"] == 8


def test_sound_of_another_rate_is_refused() -> None:
    for recipe in ("audio_jepa_vitb16", "avjepa_vitb16"):
        own = section(recipe, "data.dataset.rate=32000")
        data = "films" if recipe.startswith("av") else "audio"
        with pytest.raises(
            RecipeError, match=r"^data.dataset.rate=16000: the model was trained at 32000, leave that out$"
        ):
            data_section(own, [f"data={data}", "data.root=DIR", "data.dataset.rate=16000"])


@pytest.mark.parametrize("recipe", ["ajepa_tiny", "avjepa_tiny", "avjepa_vitb16"])
def test_what_does_not_fit_is_refused_without_naming_keys_that_are_not_there(recipe: str) -> None:
    node = section(recipe)["batch_transform"]
    logmel = build(node.get("parts", {}).get("sound", node), "data.batch_transform")
    with pytest.raises(ValueError, match=r"\d+ frames need .* s at 16000 Hz, got") as refused:
        logmel._of_size(logmel.mel.mel_scale.fb.new_zeros(1, 1, 8000))
    assert not {"seconds", "duration", "fps"} & set(str(refused.value).replace(".", " ").split())
