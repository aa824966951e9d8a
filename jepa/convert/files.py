"""Reading weights that others wrote: nothing in a file is ever run, and only the named files are opened."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jepa.convert.keys import ConversionError, Weights

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_pickle(path: Path) -> Mapping[str, Any]:
    """The dictionary of a file that `torch.save` wrote, tensors and plain values only.

    Raises:
        ConversionError: it holds anything else, is no such file, or is cut off.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} was not loaded: it holds more than tensors and plain values, or is no checkpoint of PyTorch. "
            f"Nothing in it was run. ({_first_line(error)})"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read, perhaps it is cut off: {_first_line(error)}") from error
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ConversionError(f"{path} holds a {type(found).__name__}, not a dictionary of named weights")
    return found


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_state(path: Path) -> Weights:
    """A flat state dict, from a .safetensors file or one that `torch.save` wrote.

    Raises:
        ConversionError: it is something else.
    """
    found = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    wrong = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ConversionError(f"{path} is not a flat state dict: {wrong[0]!r} is no tensor")
    return dict(found)


def read_safetensors(path: Path) -> Weights:
    """The tensors of a safetensors file.

    Raises:
        ConversionError: it is not there, damaged, or cut off.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error


def read_folder(folder: Path) -> Weights:
    """The weights of a folder as Hugging Face's libraries write it: one safetensors file, or shards and their index.

    Raises:
        ConversionError: there are none, only pickles, or the index names files elsewhere or keys that are not there.
    """
    if (folder / SAFETENSORS).is_file():
        return read_safetensors(folder / SAFETENSORS)
    if not (folder / INDEX).is_file():
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        also = f"; {pickles} was not opened: save it as safetensors" if pickles else ""
        raise ConversionError(f"{folder} holds no {SAFETENSORS}{also}")
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise ConversionError(f"{folder / INDEX} has no weight_map of file names")
    weights: Weights = {}
    for name in sorted(set(index.values())):
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise ConversionError(f"{folder / INDEX} names {name!r}: shards are .safetensors files in the same folder")
        shard = read_safetensors(folder / name)
        if shard.keys() != {key for key, where in index.items() if where == name}:
            raise ConversionError(f"{folder / name} does not hold the keys that {INDEX} says")
        weights |= shard
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConversionError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConversionError(f"{path} is not a JSON object")
    return found
