"""What does the predictor think is there? Its predictions, shown as the nearest things that the target encoder saw."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.pictures import crop, cut, enlarge, frame_width, join, outline, shade, task_pictures, to_rgb
from jepa.probes.neighbours import centred, nearest
from jepa.report.blocks import Row, Section
from jepa.report.gallery import task_names
from jepa.report.source import Material, Run
from jepa.types import Indices, Task, Tokens

SHOWN, NEIGHBOURS = 6, 6
EXPLAINED = (
    "Predictions are embeddings. Here each predicted patch is replaced by the picture patch whose target embedding is "
    "nearest, from all other samples and all positions (“predicted”); beside it the same with the true embeddings "
    "(“best possible”): more cannot be seen this way. Then the first target set: the truth, and what other samples "
    "hold at the same place, nearest to the prediction first. Only content counts: the mean embedding of each position "
    "is taken away before."
)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How predictions, pooled over each target set, compare with the content of all samples at the same positions.

    Attributes:
        rank: (S,) place of the true sample among all m, 1 the best; of equally near ones the middle of their places.
        rows: (S, k) the nearest other samples.
        cosine: (S, k) to them.
        candidates: m.
    """

    rank: Tensor
    rows: Tensor
    cosine: Tensor
    candidates: int


def answers(run: Run, material: Material) -> Section:
    title = "What the predictor thinks is there"
    if material.output is None:
        return Section("answers", title, ["These weights came without a predictor."])
    tasks = zip(material.batch.tasks, material.output.intermediates["tasks"], task_names(run, material), strict=True)
    asked = [(task, found["prediction"], name) for task, found, name in tasks if "prediction" in found]
    if not asked:
        return Section("answers", title, ["No task asks for this modality."])
    if not isinstance(asked[0][0].query, Indices):
        return other_views(material, asked[0][1])
    asked = asked if material.modality else asked[:1]
    content, mean = centred(material.targets)  # (m, G, D), (G, D)
    rows: list[Row] = []
    numbers: list[str] = []
    for task, found, name in asked:
        index = found.index.apply(lambda tensor: tensor.cpu())
        said = Tokens(found.x.float().cpu() - mean[index.values], index)
        retrieval = retrieve(said, content, len(index) // len(material.batch.target), min(NEIGHBOURS, len(content) - 1))
        shown = max(1, SHOWN // len(asked))
        before = f"task {name}, " if len(asked) > 1 else ""
        rows += question_rows(material, task, said, content, retrieval, shown, before)
        numbers.append(f"{before.capitalize()}{in_numbers(retrieval)}")
    return Section("answers", title, [EXPLAINED, *numbers], rows=rows)


def question_rows(
    material: Material, task: Task, said: Tokens, content: Tensor, retrieval: Retrieval, count: int, before: str
) -> list[Row]:
    """Two for each of the first samples: what was asked and predicted, and the neighbours of the first target set."""
    index = said.index
    sets = len(index) // len(material.batch.target)
    posed = task_pictures(material.batch, task, count)
    blocks, pasted = index.maps(), collages(material, task, said, content, sets, count)
    rows = []
    for i, pictures in enumerate(posed):
        question = next(rgb for title, rgb in pictures.items() if title.startswith("asked"))
        first = i * sets
        shown = [material.picture(pictures["input"], "the truth"), material.picture(question, "asked")]
        shown += [material.picture(rgb, caption) for caption, rgb in pasted[i].items()]
        rows.append(Row(f"{before}{material.names[i]}", shown))
        others = zip(retrieval.rows[first].tolist(), retrieval.cosine[first].tolist(), strict=True)
        crops = [(i, "the truth"), *((j, f"{cosine:.2f}") for j, cosine in others)]
        shown = [material.picture(to_rgb(crop(material.x[j], blocks[first])[None])[0], line) for j, line in crops]
        rows.append(Row(f"target 1: the truth ranks {float(retrieval.rank[first]):g} of {retrieval.candidates}", shown))
    return rows


def other_views(material: Material, found: Tokens) -> Section:
    """Where nothing is hidden: which samples' other views are nearest to the prediction."""
    assert material.output is not None
    target, index = material.output.intermediates["target"], found.index.apply(lambda tensor: tensor.cpu())
    content, mean = centred(target.dense().float().cpu())  # (m, G, D), (G, D)
    retrieval = retrieve(
        Tokens(found.x.float().cpu() - mean[index.values], index), content, 1, min(NEIGHBOURS, len(content) - 1)
    )
    views = to_rgb(material.batch.target.signal)
    rows = []
    for i, pictures in enumerate(task_pictures(material.batch, material.batch.tasks[0], SHOWN)):
        shown = [material.picture(rgb, "the truth" if title == "input" else title) for title, rgb in pictures.items()]
        others = zip(retrieval.rows[i].tolist(), retrieval.cosine[i].tolist(), strict=True)
        shown += [material.picture(views[j], f"{cosine:.2f}") for j, cosine in others]
        rows.append(Row(f"the truth ranks {float(retrieval.rank[i]):g} of {retrieval.candidates}", shown))
    text = (
        "The predictor is told how the view changes and predicts the embedding of the other view. The truth is that "
        "view; then the views of other samples whose embeddings are nearest to the prediction, after the mean of all "
        "is taken away."
    )
    return Section("answers", "What the predictor thinks is there", [text, in_numbers(retrieval)], rows=rows)


def in_numbers(found: Retrieval) -> str:
    total, first = found.candidates, float((found.rank == 1).double().mean())
    return (
        f"In numbers: among {total:,} samples at the same place, the truth is the nearest to the prediction in "
        f"{first:.1%} of {len(found.rank):,} target sets (by chance {1 / total:.1%}), and its median rank is "
        f"{float(found.rank.double().quantile(0.5)):,.0f} (by chance {(total + 1) / 2:,.0f})."
    )


def retrieve(said: Tokens, content: Tensor, sets: int, k: int) -> Retrieval:
    """The place of the truth among all samples, and the nearest others, for each target set.

    Args:
        said: predictions less the mean at their position, `sets` sets for each of the first samples.
        content: (m, G, D) targets less the mean at their position.
    """
    ranks, rows, cosines = [], [], []
    offsets = said.index.offsets.tolist()
    for number, (start, stop) in enumerate(pairwise(offsets)):
        own = number // sets
        there = content[:, said.index.values[start:stop]].mean(1)  # (m, D)
        cosine = F.cosine_similarity(there, said.x[start:stop].mean(0, keepdim=True), dim=-1)
        nearer, equal = int((cosine > cosine[own]).sum()), int((cosine == cosine[own]).sum())
        ranks.append(nearer + (1 + equal) / 2)
        cosine[own] = -torch.inf
        best = cosine.topk(k)
        rows.append(best.indices)
        cosines.append(best.values)
    return Retrieval(torch.tensor(ranks), torch.stack(rows), torch.stack(cosines), len(content))


def collages(
    material: Material, task: Task, said: Tokens, content: Tensor, sets: int, count: int
) -> list[dict[str, Tensor]]:
    """The first samples, at most `count`, with every asked patch replaced by the nearest patch of another sample: to
    what was predicted, and to what is truly there."""
    shown = min(count, len(said.index) // sets)
    index = said.index
    stop = int(index.offsets[shown * sets])
    places, sample = index.values[:stop], index.sets[:stop] // sets
    bank, bank_sample = content.flatten(0, 1), torch.arange(len(content)).repeat_interleave(content.shape[1])
    wanted = torch.cat((said.x[:stop], content[sample, places]))
    _, rows = nearest(bank, wanted, 1, bank_sample=bank_sample, sample=sample.repeat(2))
    cells = cut(material.x[: len(content)], material.grid)
    there = index.maps()[: shown * sets].unflatten(0, (shown, sets)).any(1)
    keep = task.context.keep
    seen = there if keep is None else there | keep.maps()[:shown]
    found: list[dict[str, Tensor]] = [{} for _ in range(shown)]
    for caption, chosen in zip(("predicted", "best possible"), rows[:, 0].split(stop), strict=True):
        pasted = cells[:shown].clone()
        pasted[sample, places] = cells.flatten(0, 1)[chosen]
        whole = join(pasted, material.grid)
        size = whole.shape[2:]
        visible, blocks = enlarge(seen, size), enlarge(there, size)
        for i, rgb in enumerate(to_rgb(whole)):
            found[i][caption] = outline(shade(rgb, visible[i]), blocks[i], frame_width(size))
    return found
