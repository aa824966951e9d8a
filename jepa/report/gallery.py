"""Pictures: masks, features as colours, attention, nearest neighbours, and a map of all embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor

from jepa.interfaces import Encoder
from jepa.pictures import enlarge, heat, task_pictures, to_rgb
from jepa.probes.attention_maps import attention_layers, attention_weights
from jepa.probes.neighbours import centred, nearest
from jepa.report.blocks import BITS, HEARD, Row, Section, player
from jepa.report.charts import COLOURS, Chart, scatter
from jepa.report.source import Material, Run
from jepa.types import Indices, View, each

MASKED, SHOWN, NEIGHBOURS, HEADS, MAPPED = 4, 8, 6, 4, 1000


def masks(run: Run, material: Material) -> Section:
    names, tasks = task_names(run, material), material.batch.tasks
    posed = [task_pictures(material.batch, task, MASKED) for task in tasks]
    rows = [
        Row(
            f"{material.names[number]}{f', task {name}' if len(tasks) > 1 else ''}",
            [material.picture(rgb, title) for title, rgb in pictures.items()],
        )
        for number, of_sample in enumerate(zip(*posed, strict=True))
        for name, pictures in zip(names, of_sample, strict=True)
    ]
    text = (
        "Nothing is hidden: the encoder sees one view, and the predictor is asked for the embedding of the other."
        if not isinstance(tasks[0].query, Indices)
        else "The context is all that the encoder sees. The predictor is asked for the embeddings at the marked "
        "places, one target set at a time, and is told nothing but where they are."
    )
    if len(tasks) > 1:
        text += f" {len(tasks)} tasks are posed on each sample, each with a context of its own: {', '.join(names)}."
    if material.spectrograms:
        text += " Time runs to the right, low frequencies are at the bottom."
    return Section("masks", "What is hidden and asked", [text], rows=rows)


def task_names(run: Run, material: Material) -> list[str]:
    """What the masker's settings call its tasks, or their numbers."""
    count, given = len(material.batch.tasks), run.recipe["masker"].get("tasks")
    if isinstance(given, Mapping) and len(given) == count:
        return list(given)
    return [str(number + 1) for number in range(count)]


def features(run: Run, material: Material) -> Section:
    """The encoder's tokens as colours, as they are and without what their position alone says."""
    count, size = SHOWN, material.x.shape[2:]
    if len(material.grid) != len(size):
        alone = "The encoder makes one embedding of each input: there are no patches to colour."
        return Section("features", "Patch features as colours", [alone])
    content, _ = centred(material.tokens)
    rows = [Row("input", [material.picture(rgb) for rgb in to_rgb(material.x[:count])])]
    for title, tokens in (("all features", material.tokens), ("content: less the mean at each position", content)):
        colours, share = principal_colours(tokens[:count])
        maps = enlarge(colours.unflatten(1, material.grid).movedim(-1, 1), size)
        rows.append(Row(f"{title} ({share:.0%} of the variance)", [material.picture(rgb) for rgb in maps]))
    text = (
        f"The three strongest principal components of the {run.pretrained.learned} encoder's patch features, as red, "
        "green and blue. All pictures share one basis: equal colours mean equal features. If the first row of colours "
        "is one gradient for every picture, features are mostly position; the second takes that away."
    )
    return Section("features", "Patch features as colours", [text], rows=rows)


def principal_colours(x: Tensor) -> tuple[Tensor, float]:
    """Three principal components of tokens (B, G, D), each in [0, 1], and the share of the variance they hold.

    Components are turned so that their largest weight is positive: the same features give the same colours.

    Returns:
        (B, G, 3), share
    """
    flat = x.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    basis = vectors[:, -3:].flip(1)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    scores = flat @ (basis * largest.sign())
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    scaled = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    share = float(values[-3:].sum() / values.sum().clamp_min(1e-30))
    missing = max(0, 3 - scaled.shape[1])
    return torch.nn.functional.pad(scaled, (0, missing)).float().unflatten(0, x.shape[:2]), share


def attention(run: Run, material: Material) -> Section:
    title = "Attention of the last block"
    encoder: Encoder = run.pretrained.encoder()
    if not attention_layers(encoder):
        return Section("attention", title, [f"{type(encoder).__name__} has no self-attention to show."])
    x = material.x[:SHOWN]
    device = next(encoder.parameters()).device

    def received_by(sample: int) -> Tensor:  # (1, H, G), mean over who attends
        one = each(material.source, lambda part: part[sample : sample + 1].to(device))
        return attention_weights(encoder, View(run.pretrained.normalize(one)))[0].mean(2).cpu()

    # one sample after the other: a clip has many tokens
    received = torch.cat([received_by(sample)[..., material.cells] for sample in range(len(x))])
    received = received.unflatten(-1, material.grid)  # (B, H, *grid)
    inputs = to_rgb(x)
    heads = {"all heads": received.mean(1)}
    heads |= {f"head {number + 1}": received[:, number] for number in range(min(HEADS, received.shape[1]))}
    rows = [Row("input", [material.picture(rgb) for rgb in inputs])]
    for name, maps in heads.items():
        large = enlarge(maps, x.shape[2:])
        shown = [material.picture(heat(rgb, values)) for rgb, values in zip(inputs, large, strict=True)]
        rows.append(Row(name, shown))
    text = (
        f"How much attention each patch receives from all patches of its picture, in the {run.pretrained.learned} "
        f"encoder; bright is much. {received.shape[1]} heads; each map runs from its own least to its own largest "
        "value."
    )
    return Section("attention", title, [text], rows=rows)


def neighbours(run: Run, material: Material) -> Section:
    """Samples with the nearest mean embeddings."""
    content, _ = centred(material.pooled)
    number = torch.arange(len(content))
    k = min(NEIGHBOURS, len(content) - 1)
    cosine, rows = nearest(content, content[:SHOWN], k, bank_sample=number, sample=number[:SHOWN])
    inputs = to_rgb(material.x[:SHOWN])
    shown = []
    for i, rgb in enumerate(inputs):
        found = to_rgb(material.x[rows[i]])
        pictures = [material.picture(rgb, label_text(run, material, i) or "query", heard(material, i))]
        for near, row, c in zip(found, rows[i].tolist(), cosine[i].tolist(), strict=True):
            caption = " · ".join(filter(None, (label_text(run, material, row), f"{c:.2f}")))
            pictures.append(material.picture(near, caption, heard(material, row)))
        shown.append(Row(material.names[i], pictures))
    text = (
        f"The first picture of each row, and those of {len(content):,} samples whose mean embedding is nearest: cosine "
        "after the mean of all embeddings is taken away."
    )
    if material.waves is not None:
        text += f" Players hold the first {HEARD} seconds at most, as Opus of {BITS // 1000} kbit/s and one channel."
    return Section("neighbours", "Nearest neighbours", [text], rows=shown)


def heard(material: Material, i: int) -> str:
    """Sample i for a player, if it is a sound or has one."""
    return "" if material.waves is None else player(material.waves[i], material.rate)


def label_text(run: Run, material: Material, i: int) -> str:
    """The names of a sample's first two classes, and of those of the first label that has several at once."""
    found, several = [], []
    for name, label in material.labels.items():
        classes = run.dataset.label_names.get(name)
        if label.ndim == 1 and not label.is_floating_point():
            code = int(label[i])
            found.append(str(classes[code]) if classes else f"{name} {code}")
        elif label.ndim == 2 and classes and len(classes) == label.shape[1]:
            several.append(" + ".join(classes[k] for k in label[i].nonzero().flatten().tolist()))
    return " ".join(filter(None, (*found[:2], *several[:1])))


def embedding_map(run: Run, material: Material) -> Section:
    """t-SNE of the mean embeddings, once for each label."""
    x = material.pooled[:MAPPED].numpy()
    tsne = TSNE(init="pca", perplexity=min(30.0, (len(x) - 1) / 3), random_state=0)
    places = [(float(a), float(b)) for a, b in tsne.fit_transform(x - x.mean(0))]
    names = material.names[: len(x)]
    charts = [
        labelled_map(name, label[: len(x)], run.dataset.label_names.get(name), places, names)
        for name, label in material.labels.items()
        if label.ndim == 1
    ]
    if not charts:
        charts = [scatter("no labels", places, names, ["c0"] * len(places), {})]
    text = (
        f"t-SNE of {len(x):,} mean embeddings of the {run.pretrained.learned} encoder. Near points are near "
        "embeddings; distances between groups mean little. Labels were never used in training."
    )
    return Section("map", "Map of embeddings", [text], charts)


def labelled_map(
    name: str, label: Tensor, classes: Sequence[str] | None, places: list[tuple[float, float]], names: Sequence[str]
) -> Chart:
    """Places coloured by class, or from low to high by a quantity."""
    if label.is_floating_point():
        steps = np.linspace(0, 1, 6)[1:-1]
        edges = torch.quantile(label.double(), torch.from_numpy(steps))
        codes = torch.bucketize(label.double(), edges)
        styles = [f"q{int(code)}" for code in codes]
        texts = [f"{n}: {name} {float(value):.3g}" for n, value in zip(names, label, strict=True)]
        low, high = float(label.min()), float(label.max())
        legend = {f"{low:.3g}": "q0", f"{high:.3g}": "q4"} if isfinite(low) and isfinite(high) else {}
        return scatter(name, places, texts, styles, legend)
    codes = label.long()
    called = {int(code): str(classes[int(code)]) if classes else str(int(code)) for code in codes.unique()}
    styles = [f"c{int(code) % COLOURS}" for code in codes]
    texts = [f"{n}: {called[int(code)]}" for n, code in zip(names, codes, strict=True)]
    legend = {called[code]: f"c{code % COLOURS}" for code in called} if len(called) <= COLOURS else {}
    return scatter(name, places, texts, styles, legend)
