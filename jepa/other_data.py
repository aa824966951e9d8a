"""Looking at a model with other data than its own: data=NAME and data.key=value on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.build import RecipeError, nearest, refuse_unknown
from jepa.recipe import flat, recipes_dir
from jepa.settings import DataSettings


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of a command, and those that are about data."""
    data = [a for a in arguments if a.startswith(("data=", "data."))]
    return [a for a in arguments if a not in data], data


def data_section(own: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The section `data` to look at a model with: its own, or another group with the model's size.

    Raises:
        RecipeError: an unknown group or key, or a missing value.
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
    merged = OmegaConf.merge(OmegaConf.load(groups[named[-1]]), {"size": own["size"]}, OmegaConf.from_dotlist(values))
    missing = [name for name, value in flat(OmegaConf.to_container(merged)) if value == "???"]
    if missing:
        raise RecipeError(f"data.{missing[0]} must be given, as in data.{missing[0]}=DIR")
    try:
        data = OmegaConf.to_container(OmegaConf.create({"data": merged}), resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"data={named[-1]}: {str(error).splitlines()[0]}") from error
    assert isinstance(data, dict)
    refuse_unknown(data["data"], DataSettings.model_fields, "data")
    # the encoder was trained on inputs normalised in its own way
    return {**data["data"], "batch_transform": own["batch_transform"]}
