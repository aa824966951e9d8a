"""The layouts of released weights, as data: whose key is whose, and what their code holds fixed.

Sources: the released checkpoints and configurations of I-JEPA (Assran et al. 2023), V-JEPA (Bardes et al. 2024) and
V-JEPA 2 (Assran et al. 2025); `IJepaModel` and `VJEPA2Model` of Hugging Face's transformers; timm's VisionTransformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jepa.convert.keys import KeyMap, Rule, joined, kernel, one_more_axis, same, stacked, under

_PARTS = ("norm1.{p}", "attn.qkv.{p}", "attn.proj.{p}", "norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}", "mlp.fc3.{p}")
_BLOCK = {name: same(name) for name in _PARTS}
_PATCHES = {
    "patch_embed.proj.weight": kernel("patch_embed.proj.weight"),
    "patch_embed.proj.bias": same("patch_embed.proj.bias"),
}
_VIT: dict[str, Rule] = {
    **_PATCHES,
    "position.table": one_more_axis("pos_embed", 0),
    **under("transformer.blocks.{i}.", "blocks.{i}.", _BLOCK),
    "transformer.norm.{p}": same("norm.{p}"),
}
_PREDICTOR: dict[str, Rule] = {
    "embed.{p}": same("predictor_embed.{p}"),
    **under("transformer.blocks.{i}.", "predictor_blocks.{i}.", _BLOCK),
    "transformer.norm.{p}": same("predictor_norm.{p}"),
    "proj.{p}": same("predictor_proj.{p}"),
}
_HF_IJEPA_BLOCK = {
    "norm1.{p}": same("layernorm_before.{p}"),
    "attn.qkv.{p}": joined(*(f"attention.attention.{name}.{{p}}" for name in ("query", "key", "value"))),
    "attn.proj.{p}": same("attention.output.dense.{p}"),
    "norm2.{p}": same("layernorm_after.{p}"),
    "mlp.fc1.{p}": same("intermediate.dense.{p}"),
    "mlp.fc2.{p}": same("output.dense.{p}"),
}
_HF_VJEPA2_BLOCK = {
    **{name: same(name) for name in ("norm1.{p}", "norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}")},
    "attn.qkv.{p}": joined(*(f"attention.{name}.{{p}}" for name in ("query", "key", "value"))),
    "attn.proj.{p}": same("attention.proj.{p}"),
}


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Attributes:
        name: for messages.
        encoder, predictor: key maps; an empty predictor means that the format has none.
        recipe: shipped recipe that a converted model starts from.
        options: arguments of the encoder that their code fixes; `predictor_options` the predictor's.
        heads: attention heads by width, where the checkpoint does not say; those of the predictor are
            `predictor_heads`, or else the encoder's.
        prefix: of every key in the published file.
        unused: patterns of encoder or predictor keys that the published models do not use, with the reason.
        axes: of their inputs.
        learned: whether their positions are trained, so that a table may be other than the fixed one.
    """

    name: str
    encoder: KeyMap
    predictor: KeyMap
    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    predictor_options: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[int, int] = field(default_factory=dict)
    predictor_heads: int | None = None
    prefix: str = ""
    unused: Mapping[str, str] = field(default_factory=dict)
    axes: int = 2
    learned: bool = False


_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
_FIXED = {"norm_eps": 1e-6, "activation": "gelu"}
_SINCOS = {**_FIXED, "position": "sincos", "uniform_power": True}
_ROPE = {**_FIXED, "position": "rope", "rope_style": "tiled", "depth_rescale": True}
_NO_TABLE = {r"(predictor_)?pos_embed": "the model has rotary positions and never reads its table"}

IJEPA = Family(
    name="I-JEPA checkpoint",
    encoder=_VIT,
    predictor={**_PREDICTOR, "mask_token": same("mask_token")},
    recipe="ijepa_vith14",
    options={**_SINCOS, "axis_order": "last_first"},
    predictor_options={**_SINCOS, "axis_order": "last_first"},
    heads=_HEADS,
    prefix="module.",
)
VJEPA = Family(
    name="V-JEPA checkpoint",
    encoder=_VIT,
    predictor={**_PREDICTOR, "mask_token": stacked("mask_tokens.{n}")},
    recipe="vjepa_vitl16",
    options={**_SINCOS, "axis_order": "first_first"},
    predictor_options={**_SINCOS, "axis_order": "first_first"},
    heads=_HEADS,
    prefix="module.backbone.",
    axes=3,
)
VJEPA2 = Family(
    name="V-JEPA 2 checkpoint",
    encoder=_VIT,
    predictor={**_PREDICTOR, "mask_token": stacked("mask_tokens.{n}")},
    recipe="vjepa2_vitl16",
    options=_ROPE,
    predictor_options=_ROPE,
    heads={**_HEADS, 1408: 22, 1664: 26},
    predictor_heads=12,
    prefix="module.backbone.",
    unused=_NO_TABLE,
    axes=3,
)
HF_IJEPA = Family(
    name="Hugging Face I-JEPA",
    encoder={
        "patch_embed.proj.weight": kernel("embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": same("embeddings.patch_embeddings.projection.bias"),
        "position.table": one_more_axis("embeddings.position_embeddings", 0),
        **under("transformer.blocks.{i}.", "encoder.layer.{i}.", _HF_IJEPA_BLOCK),
        "transformer.norm.{p}": same("layernorm.{p}"),
    },
    predictor={},
    recipe="ijepa_vith14",
    options={"position": "sincos", "axis_order": "last_first"},
    unused={
        r"embeddings\.mask_token": "I-JEPA's encoder has no mask token",
        r"pooler\..*": "a pooler of Hugging Face's own, which I-JEPA does not have",
    },
    learned=True,
)
HF_VJEPA2 = Family(
    name="Hugging Face V-JEPA 2",
    encoder={
        **{
            key: Rule((f"encoder.embeddings.patch_embeddings.proj.{key.rpartition('.')[2]}",), rule.change)
            for key, rule in _PATCHES.items()
        },
        **under("transformer.blocks.{i}.", "encoder.layer.{i}.", _HF_VJEPA2_BLOCK),
        "transformer.norm.{p}": same("encoder.layernorm.{p}"),
    },
    predictor={
        "embed.{p}": same("predictor.embeddings.predictor_embeddings.{p}"),
        "mask_token": one_more_axis("predictor.embeddings.mask_tokens", 1),
        **under("transformer.blocks.{i}.", "predictor.layer.{i}.", _HF_VJEPA2_BLOCK),
        "transformer.norm.{p}": same("predictor.layernorm.{p}"),
        "proj.{p}": same("predictor.proj.{p}"),
    },
    recipe="vjepa2_vitl16",
    options={"position": "rope", "rope_style": "tiled", "depth_rescale": True},
    predictor_options={"position": "rope", "rope_style": "tiled", "depth_rescale": True},
    axes=3,
)
TIMM = Family(
    name="timm ViT",
    encoder=_VIT,
    predictor={},
    recipe="ijepa_vith14",
    options={**_SINCOS, "axis_order": "last_first"},
    heads=_HEADS,
    unused={r"(fc_norm|head|attn_pool)\..*": "of a classifier, not of the encoder"},
    learned=True,
)
_CROSS = ("norm1.{p}", "norm2.{p}", "xattn.q.{p}", "xattn.kv.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}")
_PROBE: dict[str, Rule] = {
    "pooler.query_tokens": same("pooler.query_tokens"),
    **{f"pooler.cross_attention_block.{name}": same(f"pooler.cross_attention_block.{name}") for name in _CROSS},
    "linear.{p}": same("linear.{p}"),
}
_HF_PROBE_PART = {
    "norm1.{p}": same("layer_norm1.{p}"),
    "norm2.{p}": same("layer_norm2.{p}"),
    "mlp.fc1.{p}": same("mlp.fc1.{p}"),
    "mlp.fc2.{p}": same("mlp.fc2.{p}"),
}
_HF_CROSS = {
    **_HF_PROBE_PART,
    "xattn.q.{p}": same("cross_attn.q_proj.{p}"),
    "xattn.kv.{p}": joined("cross_attn.k_proj.{p}", "cross_attn.v_proj.{p}"),
}
_HF_SELF = {
    **_HF_PROBE_PART,
    "attn.qkv.{p}": joined(*(f"self_attn.{name}_proj.{{p}}" for name in "qkv")),
    "attn.proj.{p}": same("self_attn.out_proj.{p}"),
}


@dataclass(frozen=True)
class ProbeLayout:
    """A kind of file with a trained attentive probe.

    Attributes:
        name: for messages.
        keys: the key map.
        part: the entry of a published file that holds it; `several`: as a list of probes.
        heads: attention heads by width; `any_heads`: at any other.
        unused: patterns of keys that the probe does not use, with the reason.
    """

    name: str
    keys: KeyMap
    part: str = ""
    several: bool = False
    heads: Mapping[int, int] = field(default_factory=dict)
    any_heads: int | None = None
    unused: Mapping[str, str] = field(default_factory=dict)


PROBES: Mapping[str, ProbeLayout] = {
    "vjepa_probe": ProbeLayout(
        name="V-JEPA probe",
        keys=_PROBE,
        part="classifier",
        heads=_HEADS,
        unused={r"pooler\.cross_attention_block\.xattn\.proj\..*": "declared in their code and never applied"},
    ),
    "vjepa2_probe": ProbeLayout(
        name="V-JEPA 2 probe",
        keys={**_PROBE, **under("pooler.blocks.{i}.", "pooler.blocks.{i}.", _BLOCK)},
        part="classifiers",
        several=True,
        any_heads=16,
    ),
    "hf_probe": ProbeLayout(
        name="Hugging Face V-JEPA 2 classifier",
        keys={
            "pooler.query_tokens": same("pooler.query_tokens"),
            **under("pooler.cross_attention_block.", "pooler.cross_attention_layer.", _HF_CROSS),
            **under("pooler.blocks.{i}.", "pooler.self_attention_layers.{i}.", _HF_SELF),
            "linear.{p}": same("classifier.{p}"),
        },
        unused={r"vjepa2\..*": "of the model that the probe reads: kind=hf reads it"},
    ),
}
META: Mapping[str, Family] = {"ijepa": IJEPA, "vjepa": VJEPA, "vjepa2": VJEPA2}
