"""Looking at a model with other data than its own: data=NAME and data.key=value on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.build import RecipeError, nearest, refuse_unknown
from jepa.command_line import flat, recipes_dir
from jepa.recipe import read
from jepa.settings import DataSettings

DENSITY = ("fps", "stride", "duration")  # of frames in a clip: one of them is given
CUT = ("rate", "seconds", "channels", "short", "frames", *DENSITY)  # keys that say how a dataset cuts its samples


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of a command, and those that are about data."""
    data = [a for a in arguments if a.startswith(("data=", "data."))]
    return [a for a in arguments if a not in data], data


def data_section(own: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The section `data` to look at a model with: its own, or another group with the model's size, samples cut as its
    own are (where the command line does not say otherwise), and its normalisation.

    Raises:
        RecipeError: an unknown group or key, a missing value, or sound of another rate than the model's.
    """
    named = [o.removeprefix("data=") for o in overrides if o.startswith("data=")]
    values = [o.removeprefix("data.") for o in overrides if o.startswith("data.")]
    if values and not named:
        raise RecipeError(f"data.{values[0]}: say which data that is, as in data=images data.{values[0]}")
    if not named:
        if own["dataset"].get("root", "") is None:
            raise RecipeError("the model does not say where its data are: give data=NAME data.root=DIR")
        return dict(own)
    groups = {path.stem: path for path in (recipes_dir() / "data").glob("*.yaml")}
    if named[-1] not in groups:
        raise RecipeError(f"data={named[-1]}: there is no such data; {nearest(named[-1], groups)}")
    group = read(groups[named[-1]])
    kept = {"size": own["size"], "dataset": _cut(own["dataset"], group["dataset"], values)}
    merged = OmegaConf.merge(group, kept, OmegaConf.from_dotlist(values))
    missing = [name for name, value in flat(OmegaConf.to_container(merged)) if value == "???"]
    if missing:
        raise RecipeError(f"data.{missing[0]} must be given, as in data.{missing[0]}=DIR")
    try:
        data = OmegaConf.to_container(OmegaConf.create({"data": merged}), resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"data={named[-1]}: {str(error).splitlines()[0]}") from error
    assert isinstance(data, dict)
    refuse_unknown(data["data"], DataSettings.model_fields, "data")
    _check_rate(data["data"]["dataset"].get("rate"), own["batch_transform"])
    # the encoder was trained on inputs normalised in its own way
    return {**data["data"], "batch_transform": own["batch_transform"]}


def _cut(own: Mapping[str, Any], other: Mapping[str, Any], values: Sequence[str]) -> dict[str, Any]:
    """Settings of a dataset that say how its samples are cut, for another one that has them too."""
    given = [value.partition("=")[0].removeprefix("dataset.") for value in values]
    kept = {key: own[key] for key in CUT if key in other and own.get(key) is not None}
    if any(key in given for key in DENSITY):
        kept = {key: value for key, value in kept.items() if key not in DENSITY}
    elif any(key in kept for key in DENSITY):
        kept = {**{key: None for key in DENSITY if key in other}, **kept}
    if any(key.startswith("size") for key in given):
        kept.pop("frames", None)
    return kept


def _check_rate(rate: int | None, batch_transform: Mapping[str, Any]) -> None:
    """Spectrograms tell nothing of it: a sound of another rate would look like one of another pitch."""
    trained = [value for name, value in flat(batch_transform) if name.rpartition(".")[2] == "rate"]
    if rate is not None and trained and rate not in trained:
        raise RecipeError(f"data.dataset.rate={rate}: the model was trained at {trained[0]}, leave that out")
