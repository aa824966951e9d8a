"""Key maps: whose weight is whose. Every key of both sides ends up in a report, or the conversion fails.

A map has a rule for each kind of weight, from this project's name to the other's. `{i}` stands for the number of a
block, `{p}` for `weight` or `bias`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Status = Literal["loaded", "renamed", "converted", "missing", "unused"]
Weights = dict[str, Tensor]


class ConversionError(ValueError):
    """Weights cannot be converted. The message names the file or key, and what to do."""


@dataclass(frozen=True)
class Rule:
    """One kind of weight.

    Attributes:
        theirs: templates of the other side's keys; several are joined along their first axis.
        change: "same", "kernel" (their convolution's kernel is our matrix), "stack" (each of theirs is a row of ours;
            the one template has `{n}` for its number), or "axis0" and "axis1" (theirs has one more axis there, of
            length 1).
    """

    theirs: tuple[str, ...]
    change: Literal["same", "kernel", "stack", "axis0", "axis1"] = "same"


KeyMap = Mapping[str, Rule]


def same(theirs: str) -> Rule:
    return Rule((theirs,))


def kernel(theirs: str) -> Rule:
    return Rule((theirs,), "kernel")


def joined(*theirs: str) -> Rule:
    return Rule(theirs)


def stacked(theirs: str) -> Rule:
    return Rule((theirs,), "stack")


def one_more_axis(theirs: str, axis: Literal[0, 1]) -> Rule:
    return Rule((theirs,), "axis0" if axis == 0 else "axis1")


def under(ours: str, theirs: str, rules: KeyMap) -> dict[str, Rule]:
    """The same rules with prefixes on both sides."""
    return {
        f"{ours}{key}": Rule(tuple(f"{theirs}{name}" for name in rule.theirs), rule.change)
        for key, rule in rules.items()
    }


@dataclass(frozen=True)
class Entry:
    """What became of a key: `ours` is empty where it is not used, `theirs` where it is missing."""

    status: Status
    theirs: str
    ours: str
    note: str = ""


@dataclass
class Report:
    """Every key of a conversion, and the conventions that were taken from the source.

    Attributes:
        title: what was converted.
        conventions: e.g. the epsilon of LayerNorm, as "name: value (where it comes from)".
        entries: of every key.
    """

    title: str
    conventions: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def add(self, status: Status, theirs: str, ours: str, note: str = "") -> None:
        self.entries.append(Entry(status, theirs, ours, note))

    def of(self, status: Status) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == status]

    def __str__(self) -> str:
        """A few lines: conventions, how many of each status, and why something is missing or unused."""
        lines = [self.title, *(f"  {line}" for line in self.conventions)]
        for status in ("loaded", "renamed", "converted", "missing", "unused"):
            found = self.of(status)
            if found:
                lines.append(f"  {status:<10}{len(found):>5} keys")
            if status in ("missing", "unused"):
                for note in dict.fromkeys(entry.note for entry in found):
                    keys = [entry.theirs or entry.ours for entry in found if entry.note == note]
                    lines.append(f"    {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}: {note}")
        return "\n".join(lines)

    def table(self) -> str:
        """One line for each key."""
        return "\n".join(f"{e.status:<10}{e.theirs or '-'} -> {e.ours or '-'}  {e.note}".rstrip() for e in self.entries)


def to_ours(
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, torch.Size],
    rules: KeyMap,
    report: Report,
    *,
    prefix: str = "",
    their_prefix: str = "",
    unused: Mapping[str, str] | None = None,
) -> Weights:
    """The other side's weights under this project's names and shapes.

    Args:
        theirs: their weights.
        ours: our names, with shapes.
        rules: the map.
        report: takes an entry for every key.
        prefix: of our names, for the report and the result.
        their_prefix: of their names, for the report.
        unused: patterns of their keys that nothing here needs, with the reason.

    Raises:
        ConversionError: a key is missing, not accounted for, or has another shape or type.
    """
    found: Weights = {}
    left, absent = dict(theirs), []
    for key, shape in ours.items():
        rule, names = _their_names(key, shape, rules)
        lacking = [name for name in names if name not in left]
        if lacking:
            absent += [f"{their_prefix}{name}" for name in lacking]
            continue
        parts = [_float32(left.pop(name), f"{their_prefix}{name}") for name in names]
        value = _join(parts, rule, shape, f"{their_prefix}{names[0]}")
        cast = any(theirs[name].dtype != torch.float32 for name in names)
        status: Status = "converted" if rule.change != "same" or len(names) > 1 or cast else "renamed"
        for name in names:
            same_name = status == "renamed" and their_prefix + name == prefix + key
            report.add("loaded" if same_name else status, their_prefix + name, prefix + key)
        found[prefix + key] = value
    for name in list(left):
        reason = next((why for pattern, why in (unused or {}).items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            report.add("unused", their_prefix + name, "", reason)
            del left[name]
    if absent or left:
        raise ConversionError(
            f"{report.title}: {len(absent)} keys are missing {absent[:4]}, and {len(left)} are not accounted for "
            f"{[their_prefix + name for name in list(left)[:4]]}: is this another kind of checkpoint?"
        )
    return found


def to_theirs(
    ours: Mapping[str, Tensor],
    rules: KeyMap,
    report: Report,
    *,
    kernel_shape: Sequence[int],
    prefix: str = "",
    their_prefix: str = "",
) -> Weights:
    """Our weights under the other side's names and shapes: the inverse of `to_ours`.

    Args:
        ours: our weights, without `prefix`.
        kernel_shape: (C, *patch) of the patch embedding's convolution.

    Raises:
        ConversionError: a weight of ours has no place there.
    """
    found: Weights = {}
    for key, value in ours.items():
        rule, names = _their_names(key, value.shape, rules)
        if rule.change == "kernel":
            parts: Iterable[Tensor] = (value.reshape(len(value), *kernel_shape),)
        elif rule.change == "stack":
            parts = (row[None] for row in value)
        elif rule.change.startswith("axis"):
            parts = (value.unsqueeze(int(rule.change[-1])),)
        else:
            parts = value.chunk(len(names))
        changed = rule.change != "same" or len(names) > 1
        for name, part in zip(names, parts, strict=True):
            status: Status = "converted" if changed else "loaded" if their_prefix + name == prefix + key else "renamed"
            report.add(status, their_prefix + name, prefix + key)
            found[their_prefix + name] = part.detach().clone(memory_format=torch.contiguous_format)
    return found


def shapes(theirs: Mapping[str, Tensor], rules: KeyMap) -> dict[str, torch.Size]:
    """Under our names, the shape of the first of their tensors that makes each of ours; what no rule knows is left out.

    For "stack" the first axis counts the tensors.
    """
    found: dict[str, torch.Size] = {}
    for ours, rule in rules.items():
        for name, tensor in theirs.items():
            match = re.fullmatch(_pattern(rule.theirs[0]), name)
            if match:
                key = ours.format(**match.groupdict())
                stacked_before = found[key][0] if rule.change == "stack" and key in found else 0
                found[key] = (
                    torch.Size((stacked_before + 1, *tensor.shape[1:])) if "n" in match.groupdict() else tensor.shape
                )
    return found


def _pattern(template: str) -> str:
    known = {r"\{i\}": r"(?P<i>\d+)", r"\{n\}": r"(?P<n>\d+)", r"\{p\}": "(?P<p>weight|bias)"}
    pattern = re.escape(template)
    for place, group in known.items():
        pattern = pattern.replace(place, group)
    return pattern


def _their_names(key: str, shape: Sequence[int], rules: KeyMap) -> tuple[Rule, list[str]]:
    for ours, rule in rules.items():
        match = re.fullmatch(_pattern(ours), key)
        if match:
            if rule.change == "stack":
                return rule, [rule.theirs[0].format(n=n) for n in range(shape[0])]
            return rule, [name.format(**match.groupdict()) for name in rule.theirs]
    raise ConversionError(f"{key} has no counterpart there")


def _join(parts: list[Tensor], rule: Rule, shape: torch.Size, name: str) -> Tensor:
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    if rule.change == "kernel" and value.ndim > 2 and len(value) == shape[0]:
        value = value.flatten(1)
    elif rule.change.startswith("axis"):
        axis = int(rule.change[-1])
        value = value.squeeze(axis) if value.ndim == len(shape) + 1 else value
    if value.shape != shape:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        raise ConversionError(f"{name} has shape {shapes}, expected was what gives {tuple(shape)}")
    return value.contiguous()


def _float32(tensor: Tensor, name: str) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ConversionError(f"{name} holds {tensor.dtype}: weights are float32, float16 or bfloat16")
    return tensor.float()


def strip(weights: Mapping[str, Tensor], prefix: str, where: str) -> Weights:
    """The weights without a prefix that all of them must have.

    Raises:
        ConversionError: one lacks it.
    """
    for key in weights:
        if not key.startswith(prefix):
            raise ConversionError(
                f"{where}: {key!r} does not begin with {prefix!r}: is this another kind of checkpoint?"
            )
    return {key.removeprefix(prefix): value for key, value in weights.items()}
