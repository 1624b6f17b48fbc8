"""Tiny towers of every kind, made in milliseconds: random but seeded weights, images of 32 pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from xrvlm.backbones import wrap_hf, wrap_openclip
from xrvlm.backbones.base import FrozenCLIP

# isort: split
# after xrvlm, which mends torchvision where its wheel does not fit torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from timm.models import register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.fastvit import FastVit
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, RobertaConfig, SiglipConfig, SiglipModel

PIXELS, EMBED_DIM, WINDOW, VOCABULARY = 32, 16, 16, 64      # of the small towers; the vocabulary is WORDS
VIT = {"image_size": PIXELS, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
RESNET = {"image_size": PIXELS, "layers": (1, 1, 1, 1), "width": 8, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
SMALL_TEXT = TEXT | {"context_length": WINDOW, "vocab_size": VOCABULARY}
BIDIRECTIONAL = SMALL_TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
WORDS = ("a", "photo", "of", "the", "bird", "dog", "cat", "house", "sparrow", "baird", "s", "and", "two", "in", "with",
         "red", "blue", "wing", "beak", ".", ",", "'")


@dataclass(frozen=True)
class Tiny:
    """A wrapped model beside what its own library says of it."""

    clip: FrozenCLIP
    model: Any
    tokenize: Callable[[list[str]], Tensor]        # padded ids (n, window)
    image: Callable[[Tensor], Tensor]              # (b, d) not normalised
    text: Callable[[Tensor], Tensor]               # (n, d) not normalised


def tiny_vit(**options: Any) -> FrozenCLIP:
    return openclip("tiny-vit", **options).clip


def tiny_resnet(**options: Any) -> FrozenCLIP:
    return openclip("tiny-resnet", RESNET, **options).clip


def openclip(name: str, vision: dict[str, Any] = VIT, text: dict[str, Any] = TEXT, *, tokenizer: Any = None,
             build: Callable[..., Any] = CLIP, embed_dim: int = EMBED_DIM, quick_gelu: bool = False,
             **options: Any) -> Tiny:
    """An open_clip model of these towers, wrapped on the CPU."""
    model = openclip_model(vision, text, build=build, embed_dim=embed_dim, quick_gelu=quick_gelu)
    tokenizer = tokenizer or simple_tokenizer(text["context_length"])
    clip = wrap_openclip(model, tokenizer, name=name, **{"device": "cpu"} | options)
    return Tiny(clip, model, tokenizer, partial(model.encode_image, normalize=False),
                partial(model.encode_text, normalize=False))


def openclip_model(vision: dict[str, Any] = VIT, text: dict[str, Any] = TEXT, *, build: Callable[..., Any] = CLIP,
                   embed_dim: int = EMBED_DIM, quick_gelu: bool = False) -> Any:
    return shaken(build(embed_dim, vision_cfg=dict(vision), text_cfg=dict(text), quick_gelu=quick_gelu))


def images(number: int, pixels: int = PIXELS, seed: int = 0) -> Tensor:
    """(number, 3, pixels, pixels) of a few blots each: white noise looks the same to a convolution everywhere."""
    coarse = torch.randn(number, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 2 * torch.nn.functional.interpolate(coarse, size=(pixels, pixels), mode="bilinear")


def hf_clip(**options: Any) -> Tiny:
    return _hf(hf_clip_model(), words_tokenizer("<s>"), "tiny-hf-clip", options)


def hf_siglip(**options: Any) -> Tiny:
    return _hf(hf_siglip_model(), words_tokenizer(""), "tiny-hf-siglip", options)


def hf_clip_model() -> CLIPModel:
    text = _HF_TEXT | {"eos_token_id": words_tokenizer("<s>").eos_token_id}
    return shaken(CLIPModel(CLIPConfig(text_config=text, vision_config=_HF_VISION, projection_dim=EMBED_DIM)))


def hf_siglip_model() -> SiglipModel:
    return shaken(SiglipModel(SiglipConfig(text_config=_HF_TEXT, vision_config=_HF_VISION)))


_HF_TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": WINDOW}
_HF_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": PIXELS, "patch_size": 8}


def _hf(model: Any, tokenizer: Any, name: str, options: dict[str, Any]) -> Tiny:
    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt").input_ids

    clip = wrap_hf(model, tokenizer, name=name, **{"device": "cpu"} | options)
    return Tiny(clip, model, tokenize, lambda images: model.get_image_features(images).pooler_output,
                lambda tokens: model.get_text_features(tokens).pooler_output)


def shaken(model: Any, seed: int = 0) -> Any:
    """The model in eval mode with seeded weights; what starts at 0 or 1 (biases, norms, statistics) is moved too."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_floating_point() or name in ("logit_scale", "logit_bias"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:    # embeddings at a scale that keeps texts apart, others by their fan-in
            tensor.copy_(noise * (0.5 if "embed" in name else tensor[0].numel() ** -0.5))
        else:
            tensor.copy_(1 + 0.3 * noise.abs() if tensor.mean() > 0.5 else 0.3 * noise)
    return model.eval()


@cache
def simple_tokenizer(window: int = 77) -> SimpleTokenizer:
    return SimpleTokenizer(context_length=window)


def words_tokenizer(start: str, end: str = "eos_token", padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Whole words between `start` (may be empty) and </s>, which the tokenizer calls its `end`."""
    ids = {word: index for index, word in enumerate(["[PAD]", "<unk>", "<s>", *WORDS, "</s>"])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    specials = [(token, ids[token]) for token in (start, "</s>") if token]
    inner.post_processor = processors.TemplateProcessing(f"{start} $A </s>".strip(), special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="[PAD]",
                                   padding_side=padding_side, **{end: "</s>"})


@cache
def saved_tokenizer(start: str, end: str = "eos_token", **options: Any) -> HFTokenizer:
    """open_clip's wrapper of such a tokenizer, by way of a folder."""
    folder = mkdtemp(prefix="xrvlm-test-")
    words_tokenizer(start, end).save_pretrained(folder)
    return HFTokenizer(folder, context_length=WINDOW, **options)


@cache
def roberta_folder() -> str:
    """A folder with the configuration of a tiny text encoder of transformers."""
    folder = mkdtemp(prefix="xrvlm-test-")
    RobertaConfig(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                  intermediate_size=48, max_position_embeddings=32, pad_token_id=0).save_pretrained(folder)
    return folder


@register_model
def xrvlm_test_vit(**options: Any) -> Any:
    options = {"class_token": options.get("global_pool") != "map"} | options
    return _trunk(VisionTransformer, options, img_size=PIXELS, patch_size=8, embed_dim=32, depth=3, num_heads=2)


@register_model
def xrvlm_test_eva(**options: Any) -> Any:
    return _trunk(Eva, options, img_size=PIXELS, patch_size=8, embed_dim=32, depth=3, num_heads=2,
                  use_rot_pos_emb=True, ref_feat_shape=(4, 4))


@register_model
def xrvlm_test_convnext(**options: Any) -> Any:
    return _trunk(ConvNeXt, options, depths=(1, 1, 1, 1), dims=(8, 8, 16, 32), patch_size=1)


@register_model
def xrvlm_test_swin(**options: Any) -> Any:
    return _trunk(SwinTransformer, options, img_size=PIXELS, patch_size=4, embed_dim=8, depths=(1, 1),
                  num_heads=(2, 2), window_size=2)


@register_model
def xrvlm_test_efficientnet(**options: Any) -> Any:
    return _trunk(EfficientNet, options, stem_size=8, num_features=32, block_args=decode_arch_def(
        [["ds_r1_k3_s2_e1_c8"], ["ir_r1_k3_s2_e2_c16"], ["ir_r1_k3_s1_e2_c24"]]))


@register_model
def xrvlm_test_mobilenet(**options: Any) -> Any:
    return _trunk(MobileNetV3, options, stem_size=8, num_features=24, block_args=decode_arch_def(
        [["ds_r1_k3_s2_e1_c8"], ["ir_r1_k3_s2_e2_c16"], ["cn_r1_k1_s1_c32"]]))


@register_model
def xrvlm_test_mobilenetv4(**options: Any) -> Any:
    return _trunk(MobileNetV3, options, stem_size=8, num_features=40, head_bias=False, head_norm=True,
                  block_args=decode_arch_def([["cn_r1_k3_s2_e1_c8"], ["uir_r1_a3_k3_s2_e2_c16"],
                                              ["uir_r1_a0_k3_s1_e2_c16"], ["cn_r1_k1_s1_c32"]]))


@register_model
def xrvlm_test_regnet(**options: Any) -> Any:
    return _trunk(RegNet, options, cfg=RegNetCfg(w0=8, wa=8.0, wm=1.6, group_size=8, depth=5))


@register_model
def xrvlm_test_fastvit(**options: Any) -> Any:
    return _trunk(FastVit, options, layers=(1, 1, 1, 2), embed_dims=(8, 8, 16, 32), mlp_ratios=(2, 2, 2, 2),
                  token_mixers=("repmixer",) * 4)


def _trunk(build: Callable[..., Any], options: dict[str, Any], **sizes: Any) -> Any:
    wanted = {name: options[name] for name in ("num_classes", "global_pool", "class_token") if name in options}
    trunk = build(**sizes, **wanted)    # timm hands in where to find weights too
    trunk.default_cfg = {}
    return trunk


def _timm(model: str, pool: str, proj: str) -> dict[str, Any]:
    return {"timm_model_name": model, "timm_pool": pool, "timm_proj": proj, "image_size": PIXELS}


def _coca(**options: Any) -> Tiny:
    decoder = {"width": 24, "heads": 2, "layers": 1, "context_length": WINDOW, "vocab_size": VOCABULARY}
    vision = VIT | {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True}
    return openclip("coca", vision, SMALL_TEXT | {"embed_cls": True, "output_tokens": True},
                    build=partial(CoCa, multimodal_cfg=decoder), tokenizer=saved_tokenizer("<s>"), **options)


def _siglip(**options: Any) -> Tiny:
    return openclip("siglip", _timm("xrvlm_test_vit", "map", "none"), BIDIRECTIONAL, embed_dim=32, build=CustomTextCLIP,
                    tokenizer=saved_tokenizer("", clean="canonicalize"), **options)


def _roberta(**options: Any) -> Tiny:
    text = {"hf_model_name": roberta_folder(), "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler",
            "context_length": WINDOW}
    return openclip("roberta", text=text, build=CustomTextCLIP, tokenizer=saved_tokenizer("<s>"), **options)


IMAGE_KINDS: dict[str, Callable[..., Tiny]] = {
    "vit": partial(openclip, "vit"),
    "vit quickgelu": partial(openclip, "vit", quick_gelu=True),
    "vit mean": partial(openclip, "vit", VIT | {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}),
    "resnet": partial(openclip, "resnet", RESNET | {"image_size": 96}),
    "coca": _coca,
    "timm map": _siglip,
    "timm class token": partial(openclip, "timm", _timm("xrvlm_test_vit", "token", ""), build=CustomTextCLIP),
    "timm mean": partial(openclip, "timm", _timm("xrvlm_test_vit", "avg", "linear")),
    "timm eva": partial(openclip, "eva", _timm("xrvlm_test_eva", "token", ""), build=CustomTextCLIP),
    "timm convnext": partial(openclip, "convnext", _timm("xrvlm_test_convnext", "", "mlp")),
    "timm efficientnet": partial(openclip, "efficientnet", _timm("xrvlm_test_efficientnet", "avg", "linear")),
    "timm mobilenet": partial(openclip, "mobilenet", _timm("xrvlm_test_mobilenet", "avg", "")),
    "timm mobilenetv4": partial(openclip, "mobilenetv4", _timm("xrvlm_test_mobilenetv4", "avg", "")),
    "timm regnet": partial(openclip, "regnet", _timm("xrvlm_test_regnet", "avg", "linear") | {"image_size": 64}),
    "timm fastvit": partial(openclip, "fastvit", _timm("xrvlm_test_fastvit", "avg", "linear") | {"image_size": 64}),
    "timm swin": partial(openclip, "swin", _timm("xrvlm_test_swin", "", "linear")),
    "hf clip": hf_clip,
    "hf siglip": hf_siglip,
}
TEXT_KINDS: dict[str, Callable[..., Tiny]] = {
    "causal": IMAGE_KINDS["vit"],
    "causal, quickgelu": IMAGE_KINDS["vit quickgelu"],
    "causal, own module": IMAGE_KINDS["timm class token"],
    "causal, custom blocks": partial(openclip, "vit", text=TEXT | {"qk_norm": True, "ls_init_value": 0.5}),
    "causal, hf tokenizer": lambda: openclip("vit", text=SMALL_TEXT | {"pool_type": "eos", "eos_id": len(WORDS) + 3},
                                             tokenizer=saved_tokenizer("<s>", clean="lower")),
    "bidirectional": _siglip,
    "bidirectional, stripped end": lambda: openclip(
        "clipa", text=BIDIRECTIONAL, tokenizer=saved_tokenizer("<s>", "sep_token", strip_sep_token=True)),
    "coca": _coca,
    "roberta": _roberta,
    "hf clip": hf_clip,
    "hf siglip": hf_siglip,
}
