"""Models that nobody wrote for torchcalc, from small configurations, with random weights.

They come from torch, transformers, timm and torchvision, which must be installed for those of
theirs; nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

VOCABULARY = 1000
CLASSES = 10
P = 0.1  # of every dropout


class Size(NamedTuple):
    """``image`` is the side of an image, ``patch`` of what is a token of it."""

    width: int
    heads: int
    layers: int
    batch: int
    tokens: int
    image: int
    patch: int

    @property
    def hidden(self) -> int:
        return 4 * self.width


TINY = Size(width=32, heads=4, layers=2, batch=2, tokens=16, image=32, patch=8)
FULL = Size(width=768, heads=12, layers=2, batch=8, tokens=128, image=224, patch=16)


@dataclass(frozen=True)
class Model:
    """``build`` makes the model, ``inputs`` the keywords that it is called with."""

    build: Callable[[Size], nn.Module]
    inputs: Callable[[Size], dict[str, Tensor]]
    package: str = "torch"
    computes_float32: bool = False  # in some layers, whatever its dtype


def loss_of(output: Any) -> Tensor:
    """The model's own loss, or a sum of its first tensor with fixed factors, which has gradients
    where a square behind a LayerNorm has none."""
    if not isinstance(output, Tensor):
        if getattr(output, "loss", None) is not None:
            return output.loss  # type: ignore[no-any-return]
        output = next(t for t in output.to_tuple() if isinstance(t, Tensor))
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(output.shape, generator=generator).to(output)
    total: Tensor = (output * factors).mean()
    return total


def _ids(size: Size) -> Tensor:
    return torch.randint(3, VOCABULARY, (size.batch, size.tokens))


def _text(size: Size) -> dict[str, Tensor]:
    return {"input_ids": _ids(size), "labels": _ids(size)}


def _image(size: Size) -> Tensor:
    return torch.randn(size.batch, 3, size.image, size.image)


def _vectors(size: Size) -> Tensor:
    return torch.randn(size.batch, size.tokens, size.width)


@functools.cache
def prepare() -> None:
    """Makes torchvision importable, which transformers and timm import, where its kernels are not:
    wheels for torch with CUDA do not load theirs beside torch for CPUs, and raise for want of ops.
    """
    if importlib.util.find_spec("transformers") is not None:
        # It tells of defaults that configurations leave open.
        importlib.import_module("transformers.utils.logging").set_verbosity_error()
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _library.append(torch.library.Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _library[0].define(schema)  # type: ignore[no-untyped-call]
        importlib.import_module("torchvision")


_library: list[torch.library.Library] = []  # while it lives the ops are defined


def _transformers(config: str, model: str, **settings: Any) -> Callable[[Size], nn.Module]:
    """``settings`` are the configuration's; a name of a size, or a function of it, means that."""

    def build(size: Size) -> nn.Module:
        prepare()
        import transformers

        values = {name: _value(value, size) for name, value in settings.items()}
        made = getattr(transformers, config)(**values)
        built: nn.Module = getattr(transformers, model)(made)
        return built

    return build


def _value(value: Any, size: Size) -> Any:
    if callable(value):
        return value(size)
    return getattr(size, value) if isinstance(value, str) and value in _SIZES else value


_SIZES = (*Size._fields, "hidden")
_EAGER = {"attn_implementation": "eager"}
_ENCODER = {
    "hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "intermediate_size": "hidden", **_EAGER,
}  # fmt: skip
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WORDS = {"vocab_size": VOCABULARY, **_TOKENS}


def _t5(**settings: Any) -> Callable[[Size], nn.Module]:
    return _transformers(
        "T5Config", "T5ForConditionalGeneration", **_WORDS, d_model="width", d_ff="hidden",
        d_kv=lambda size: size.width // size.heads, num_layers="layers", num_heads="heads",
        decoder_start_token_id=0, **_EAGER, **settings,
    )  # fmt: skip


def _whisper_encoder(size: Size) -> nn.Module:
    build = _transformers(
        "WhisperConfig", "WhisperModel", **_WORDS, num_mel_bins=8, d_model="width",
        encoder_layers="layers", decoder_layers=1, encoder_attention_heads="heads",
        decoder_attention_heads="heads", encoder_ffn_dim="hidden", decoder_ffn_dim="hidden",
        max_source_positions="tokens", decoder_start_token_id=0, dropout=P, activation_dropout=P,
        attention_dropout=P, **_EAGER,
    )  # fmt: skip
    return build(size).encoder  # type: ignore[return-value]


def _encoder(activation: str, norm_first: bool) -> Callable[[Size], nn.Module]:
    def build(size: Size) -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            size.width,
            size.heads,
            size.hidden,
            P,
            activation,
            batch_first=True,
            norm_first=norm_first,
        )
        return nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)

    return build


def _transformer(size: Size) -> nn.Module:
    return nn.Transformer(
        size.width, size.heads, size.layers, size.layers, size.hidden, P, batch_first=True
    )


def _sequential(size: Size) -> nn.Module:
    return nn.Sequential(
        nn.Linear(size.width, size.hidden),
        nn.GELU(),
        nn.Dropout(P),
        nn.Linear(size.hidden, size.width),
        nn.ReLU(inplace=True),
        nn.Linear(size.width, CLASSES),
    )


def _timm(name: str, kind: str, **settings: Any) -> Callable[[Size], nn.Module]:
    def build(size: Size) -> nn.Module:
        prepare()
        module = importlib.import_module(f"timm.models.{name}")
        values = {key: _value(value, size) for key, value in settings.items()}
        built: nn.Module = getattr(module, kind)(
            img_size=size.image, patch_size=size.patch, embed_dim=size.width, num_classes=CLASSES,
            drop_rate=P, proj_drop_rate=P, drop_path_rate=P, **values,
        )  # fmt: skip
        nn.init.normal_(built.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
        return built

    return build


def _torchvision_vit(size: Size) -> nn.Module:
    prepare()
    from torchvision.models.vision_transformer import VisionTransformer

    built: nn.Module = VisionTransformer(
        image_size=size.image, patch_size=size.patch, num_layers=size.layers,
        num_heads=size.heads, hidden_dim=size.width, mlp_dim=size.hidden, dropout=P,
        attention_dropout=P, num_classes=CLASSES,
    )  # fmt: skip
    nn.init.normal_(built.heads.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    return built


def _torchvision_swin(size: Size) -> nn.Module:
    prepare()
    from torchvision.models.swin_transformer import SwinTransformer

    built: nn.Module = SwinTransformer(
        patch_size=[size.patch // 4] * 2, embed_dim=size.width, depths=[2, 2],
        num_heads=[size.heads, 2 * size.heads], window_size=[4, 4], dropout=P,
        attention_dropout=P, stochastic_depth_prob=P, num_classes=CLASSES,
    )  # fmt: skip
    return built


MODELS: Mapping[str, Model] = {
    "sequential": Model(_sequential, lambda size: {"input": _vectors(size)}),
    "encoder": Model(_encoder("relu", False), lambda size: {"src": _vectors(size)}),
    "encoder-norm-first": Model(_encoder("gelu", True), lambda size: {"src": _vectors(size)}),
    "transformer": Model(
        _transformer, lambda size: {"src": _vectors(size), "tgt": _vectors(size)}
    ),
    "bert": Model(
        _transformers("BertConfig", "BertForMaskedLM", **_WORDS, **_ENCODER),
        _text,
        "transformers",
    ),
    "gpt2": Model(
        _transformers(
            "GPT2Config", "GPT2LMHeadModel", **_WORDS, n_embd="width", n_layer="layers",
            n_head="heads", n_positions="tokens", **_EAGER,
        ),
        _text,
        "transformers",
    ),
    "vit": Model(
        _transformers(
            "ViTConfig", "ViTForImageClassification", **_ENCODER, image_size="image",
            patch_size="patch", hidden_dropout_prob=P, num_labels=CLASSES,
        ),
        lambda size: {"pixel_values": _image(size)},
        "transformers",
    ),
    "llama": Model(
        _transformers("LlamaConfig", "LlamaForCausalLM", **_WORDS, **_ENCODER),
        _text,
        "transformers",
        computes_float32=True,
    ),
    "t5": Model(_t5(), _text, "transformers", computes_float32=True),
    "t5-gated": Model(
        _t5(feed_forward_proj="gated-gelu"), _text, "transformers", computes_float32=True
    ),
    "whisper": Model(
        _whisper_encoder,
        lambda size: {"input_features": torch.randn(size.batch, 8, 2 * size.tokens)},
        "transformers",
    ),
    "clip": Model(
        _transformers(
            "CLIPTextConfig", "CLIPTextModel", **_WORDS, **_ENCODER,
            max_position_embeddings="tokens",
        ),
        lambda size: {"input_ids": _ids(size)},
        "transformers",
    ),
    "timm-vit": Model(
        _timm(
            "vision_transformer", "VisionTransformer", depth="layers", num_heads="heads",
            attn_drop_rate=P,
        ),
        lambda size: {"x": _image(size)},
        "timm",
    ),
    "timm-mixer": Model(
        _timm("mlp_mixer", "MlpMixer", num_blocks="layers"),
        lambda size: {"x": _image(size)},
        "timm",
    ),
    "torchvision-vit": Model(
        _torchvision_vit, lambda size: {"x": _image(size)}, "torchvision"
    ),
    "torchvision-swin": Model(
        _torchvision_swin, lambda size: {"x": _image(size)}, "torchvision"
    ),
}  # fmt: skip
