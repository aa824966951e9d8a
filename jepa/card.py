"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from omegaconf import OmegaConf

TEMPLATE = """\
---
{{ metadata }}
---

# {{ title }}

A Joint-Embedding Predictive Architecture: its encoder turns inputs into embeddings, {{ parameters }} parameters.

```python
import jepa

model = jepa.Pretrained.from_pretrained("FOLDER OR HUB NAME")
x = model.features(inputs)  # (B, D), uint8 inputs are normalised with the statistics of training
```

| | |
|---|---|
{% for name, value in rows %}
| {{ name }} | {{ value }} |
{% endfor %}

## Probe results

{% if probes %}
Frozen features on held-out samples, means over seeds.

| probe | metric | this model | random weights | raw pixels | chance |
|---|---|---|---|---|---|
{% for row in probes %}
| {{ row | join(" | ") }} |
{% endfor %}
{% else %}
Not evaluated yet: `python -m jepa.evaluate run=FOLDER`, then save the model again.
{% endif %}

## Recipe

```yaml
{{ recipe }}
```
"""


def model_card(recipe: Mapping[str, Any], step: int, facts: Mapping[str, Any], parameters: int) -> ModelCard:
    """Data, recipe, steps, hardware, probe results and licence.

    Paths of the machine that trained it are left out.
    """
    data, licence = recipe["data"], facts.get("licence")
    unknown = "not known"
    rows = [
        ("licence", licence or "not stated: ask whoever made the weights"),
        ("data", _class(data["dataset"]) + f", inputs of {data['size']}"),
        ("recipe", recipe["recipe"]),
        ("steps", f"{step:,} optimiser steps" if step else unknown),
        ("samples", f"{facts['samples']:,}" if "samples" in facts else unknown),
        ("hardware", facts.get("hardware", unknown)),
        ("trained with", f"torch {facts['torch']}" if "torch" in facts else unknown),
    ]
    if "source" in facts:
        epochs = f", {facts['epochs']} epochs" if facts.get("epochs") else ""
        rows.insert(1, ("converted from", f"{facts['source']}{epochs}"))
    metadata = ModelCardData(license=licence, library_name="jepa", tags=["jepa", "self-supervised-learning"])
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE).render(
        metadata=metadata.to_yaml(),
        title=f"{recipe['recipe']}",
        parameters=f"{parameters:,}",
        rows=rows,
        probes=_probes(facts.get("evaluation") or []),
        recipe=OmegaConf.to_yaml(OmegaConf.create(without_paths(dict(recipe)))).strip(),
    )
    return ModelCard(text)


def _class(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _probes(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    found = []
    for key in dict.fromkeys((row["task"], row["probe"], row["metric"]) for row in rows):
        own = [row for row in rows if (row["task"], row["probe"], row["metric"]) == key]
        cells = []
        for source in ("model", "random_init", "pixels", "chance"):
            scores = [row["score"] for row in own if row["features"] == source]
            cells.append(f"{mean(scores):.3f}" if scores else "")
        found.append([f"{key[0]}, {key[1]}", key[2], *cells])
    return found


def without_paths(node: Any) -> Any:
    """A recipe without the places of the machine that it ran on."""
    if isinstance(node, dict):
        places = ("root", "test_root", "list_file", "run_dir", "init_from")
        return {key: None if key in places and value else without_paths(value) for key, value in node.items()}
    return node
