"""Is it collapse? A verdict on a run from the history of its collapse panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Literal

Status = Literal["too early to tell", "healthy", "warning", "collapsed"]


@dataclass(frozen=True)
class Thresholds:
    """When a run is called collapsed, and when it is warned about.

    A new encoder looks collapsed by any fixed number: its target tokens span few directions (an effective rank share of
    .1 to .3, by its width and its data) and may be almost only their position (up to .97 of the variance). So a run is
    judged against its own beginning: collapsed is what spans a third of the directions that random weights spanned,
    and has lost half of the spread between tokens. Each alone happens to runs that learn, where ranks dip while content
    takes over from position. Nothing but a number that is not finite is judged before `warmup` measurements, and a
    reason counts only if it held at each of the last `persistence`. Ranks are shares of the largest possible one,
    min(D, tokens used). On which runs this was fitted and checked: docs/looking.md.

    Attributes:
        warmup: measurements before a verdict is given.
        persistence: measurements in a row that a reason must hold for.
        beginning: first measurements, whose median later ones are compared to.
        rank_left, spread_left: collapsed if the target's rank is below this share of where it began, and the spread of
            its tokens' directions (1 - their mean cosine) is below that share of where it began.
        rank_grown: collapsed too if the target's rank had grown to so many times where it began, and is below
            `rank_left` of its highest again: what was learned is lost.
        rank_collapsed: collapsed if the target's rank is below this and below where it began.
        rank_warning: warned about if the target's or the context's rank is below this.
        rank_drop: warned about if the target's rank is below this share of its highest: a partial collapse.
        rank_sinks, content_left: warned about if the target's rank is below that share of its highest, below where it
            began, and still falls, while what position does not explain of its variance is below this share of what it
            was at the beginning.
        cosine_collapsed: collapsed if two target tokens have a higher mean cosine: all are one vector.
        cosine_warning: the same, as a warning.
        position_collapsed: collapsed if position alone explains more of the target's variance than this and than at
            the beginning; warned about if it explains more than this.
        position_warning: warned about if it explains more than this and than at the beginning.
        gain_warning: warned about if predictions agree with their target by less than this more than with another
            sample's target at the same position, as a share of what was left to gain.
    """

    warmup: int = 20
    persistence: int = 5
    beginning: int = 3
    rank_left: float = 1 / 3
    spread_left: float = 1 / 2
    rank_grown: float = 2.0
    rank_collapsed: float = 0.08
    rank_warning: float = 0.10
    rank_drop: float = 0.5
    rank_sinks: float = 0.9
    content_left: float = 2 / 3
    cosine_collapsed: float = 0.98
    cosine_warning: float = 0.90
    position_collapsed: float = 0.95
    position_warning: float = 0.85
    gain_warning: float = 0.01

    def __post_init__(self) -> None:
        if self.warmup < self.beginning + self.persistence or min(self.persistence, self.beginning) < 1:
            raise ValueError(
                f"warmup={self.warmup} must cover beginning={self.beginning} and persistence={self.persistence}, "
                f"both at least 1"
            )


@dataclass(frozen=True)
class Verdict:
    """Whether a run learns.

    Attributes:
        status: the worst of what was found; "too early to tell" before `warmup` measurements.
        reasons: what was found, with its numbers.
        advice: what usually helps.
    """

    status: Status
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join((f"{self.status}: {self.reasons[0]}" if self.reasons else self.status, *self.reasons[1:]))


_RANK = (
    "add variance and covariance terms on the context tokens: it is what cures small runs",
    "lower the learning rate or lengthen its warmup, and keep the target's momentum at .996 or above",
)
_POSITION = (
    "make content weigh more beside position at the start: a smaller position table, a convolutional stem",
    "centre the targets per position, or add variance and covariance terms on the context tokens",
)
_PREDICTION = ("hide more or larger blocks, so that the context is needed; and give it time: this comes late",)
_FINITE = ("lower the learning rate, clip the gradient, or train in fp32 to find where it starts",)

History = Sequence[Mapping[str, float]]


def judge(history: History, thresholds: Thresholds | None = None) -> Verdict:
    """The verdict after the measurements of a `CollapsePanel`, oldest first. Names that are missing are not judged."""
    limits = thresholds or Thresholds()
    if history and not all(isfinite(value) for value in history[-1].values()):
        return Verdict("collapsed", ("the embeddings are not finite",), _FINITE)
    if len(history) < limits.warmup:
        return Verdict("too early to tell", (f"{len(history)} of the {limits.warmup} looks that a verdict needs",))
    collapsed, warnings = _collapsed(history, limits), _warnings(history, limits)
    found = collapsed or warnings
    if not found:
        return Verdict("healthy")
    advice = dict.fromkeys(line for _, lines in found for line in lines)  # each once, in order
    return Verdict("collapsed" if collapsed else "warning", tuple(reason for reason, _ in found), tuple(advice))


Found = list[tuple[str, tuple[str, ...]]]


def _recent(history: History, name: str, limits: Thresholds) -> list[float]:
    """The last values of `name`; empty where it was not measured."""
    values = [row[name] for row in history[-limits.persistence :] if name in row]
    return values if len(values) == limits.persistence else []


def _begin(history: History, name: str, limits: Thresholds) -> float:
    """The typical first value of `name`, which was measured."""
    return median([row[name] for row in history if name in row][: limits.beginning])


def _collapsed(history: History, limits: Thresholds) -> Found:
    found: Found = []
    rank, cosine = _recent(history, "target_rank_share", limits), _recent(history, "target_cosine", limits)
    if rank:
        began, peak = _begin(history, "target_rank_share", limits), _highest(history)
        lost = max(rank) < limits.rank_left * began and cosine and _closer(history, cosine, limits)
        undone = max(rank) < limits.rank_left * peak and peak > limits.rank_grown * began
        if lost or undone or max(rank) < min(limits.rank_collapsed, began):
            fell = f"fell from {peak if undone else began:.1%} to {rank[-1]:.1%} of the possible"
            found.append((f"the targets' effective rank {fell}", _RANK))
    if cosine and min(cosine) > limits.cosine_collapsed:
        found.append((f"all target tokens are nearly one vector: mean cosine {cosine[-1]:.3f}", _RANK))
    position = _recent(history, "position_share", limits)
    if position and min(position) > max(limits.position_collapsed, _begin(history, "position_share", limits)):
        found.append((f"position alone explains {position[-1]:.0%} of the targets' variance", _POSITION))
    return found


def _highest(history: History) -> float:
    """The highest rank share of targets."""
    return max((row.get("target_rank_share", 0.0) for row in history), default=0.0)


def _closer(history: History, cosine: list[float], limits: Thresholds) -> bool:
    """Whether the directions of target tokens lost most of their spread."""
    return 1 - min(cosine) < limits.spread_left * (1 - _begin(history, "target_cosine", limits))


def _content_sinks(history: History, limits: Thresholds) -> bool:
    """Whether the targets' rank still falls, over four times the usual stretch, and position explains ever more."""
    ranks = [row["target_rank_share"] for row in history if "target_rank_share" in row][-4 * limits.persistence :]
    half = 2 * limits.persistence
    position = _recent(history, "position_share", limits)
    if len(ranks) < 2 * half or not position or median(ranks[half:]) >= median(ranks[:half]):
        return False
    return 1 - min(position) < limits.content_left * (1 - _begin(history, "position_share", limits))


def _warnings(history: History, limits: Thresholds) -> Found:
    found: Found = []
    for name in ("target", "context"):
        rank = _recent(history, f"{name}_rank_share", limits)
        if rank and max(rank) < limits.rank_warning:
            found.append((f"the {name}'s effective rank is {rank[-1]:.1%} of the possible", _RANK))
    rank = _recent(history, "target_rank_share", limits)
    peak, began = _highest(history), _begin(history, "target_rank_share", limits) if rank else 0.0
    if rank and max(rank) < limits.rank_drop * peak:
        found.append((f"the targets' effective rank fell from {peak:.1%} to {rank[-1]:.1%} of the possible", _RANK))
    elif rank and max(rank) < min(limits.rank_sinks * peak, began) and _content_sinks(history, limits):
        now = f"{rank[-1]:.1%} of the possible, while position comes to explain {history[-1]['position_share']:.0%}"
        found.append((f"the targets' effective rank falls, from {peak:.1%} to {now} of their variance", _RANK))
    cosine = _recent(history, "target_cosine", limits)
    if cosine and min(cosine) > limits.cosine_warning:
        found.append((f"target tokens are much alike: mean cosine {cosine[-1]:.3f}", _RANK))
    position = _recent(history, "position_share", limits)
    begin = _begin(history, "position_share", limits) if position else 0.0
    if position and min(position) > min(limits.position_collapsed, max(limits.position_warning, begin)):
        found.append((f"position alone still explains {position[-1]:.0%} of the targets' variance", _POSITION))
    gain = _recent(history, "agreement_gain", limits)
    if gain and max(gain) < limits.gain_warning:
        reason = f"predictions fit their target hardly better than another sample's at the same place: {gain[-1]:.3f}"
        found.append((reason, _PREDICTION))
    return found
