"""Image towers without a text side, as a second tower: any trunk of timm, any vision model of transformers."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrvlm.backbones.base import DeviceName, Features, ImageTransform, Need, Precision, PrecisionName
from xrvlm.backbones.tower import DTYPES, choose_device, choose_precision, hash_state
from xrvlm.errors import UserError, option, typed


class ImageTower(nn.Module):
    """A frozen image model of which one feature an image is read.

    Args:
        model: maps images (b, 3, s, s), normalised by `transform`, to features (b, d) by `read`.
        name: for people and error messages.
        transform: pixels and normalisation; the second tower of a pair sees the photo framed as the first does.
        read: from the model and the images to the features.
        loader: {"name", "options"} for `registry.load_tower`; None: made in memory, so a run of it cannot be opened
            without it.
    """

    unprojected_width = 0

    def __init__(self, model: nn.Module, *, name: str, transform: ImageTransform,
                 read: Callable[[nn.Module, Tensor], Tensor], loader: Mapping[str, Any] | None = None,
                 device: DeviceName = "auto", precision: PrecisionName = "auto"):
        super().__init__()
        chosen = choose_device(device)
        self.name, self.transform, self.loader, self.read = name, transform, loader, read
        self.fingerprint = hash_state(model, f"{name} {transform.image_size}")
        self.precision: Precision = choose_precision(precision, chosen)
        self.model = model.to(chosen, DTYPES[self.precision])
        self.requires_grad_(False).eval()
        side = transform.image_size
        self.embed_dim = self.encode_image(torch.zeros(1, 3, side, side)).pooled.shape[1]

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def state_hash(self) -> str:
        return hash_state(self)

    @torch.no_grad()
    def encode_image(self, images: Tensor, needs: Collection[Need] = ("pooled",)) -> Features:
        """The feature (b, d) of `images` (b, 3, s, s), of unit norm, float32. It has no other (`needs` is not read)."""
        images = images.to(self.device, DTYPES[self.precision])
        return Features(F.normalize(self.read(self.model, images).float(), dim=-1))


@typed
def load_timm_trunk(model: str, *, pretrained: bool = True, image_size: int | None = None, device: DeviceName = "auto",
                    precision: PrecisionName = "auto") -> ImageTower:
    """Load a trunk of timm, such as DINOv2, without its classifier; the weights are fetched from the hub.

    Args:
        model: a name of `timm.list_pretrained()`, such as `vit_small_patch14_dinov2.lvd142m`.
        pretrained: False: random weights, seeded, for tests.
        image_size: pixels; None: the trunk's own. A ViT interpolates its position embedding.

    Raises:
        UserError: timm has no such trunk, it cannot have this size, or its weights cannot be fetched.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    _check_size(image_size)
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    make = partial(timm.create_model, model, pretrained=pretrained, num_classes=0)
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            try:
                trunk = make(**sized)
            except TypeError:                # a trunk of convolutions has no size of its own: it takes any
                trunk = make()
    except Exception as error:               # of timm, the hub, safetensors
        raise _unusable(model, "timm", error, "a name of timm.list_pretrained(), a size that it can have "
                        f"({option('second.image_size')}), and the network") from error
    own = resolve_model_data_config(trunk)
    side = image_size or own["input_size"][-1]
    return ImageTower(trunk, name=model, transform=ImageTransform(side, tuple(own["mean"]), tuple(own["std"])),
                      read=_called, device=device, precision=precision,
                      loader={"name": "timm_trunk", "options": {"model": model, "pretrained": pretrained,
                                                                "image_size": image_size}})


@typed
def load_hf_trunk(model: str | Path, *, image_size: int | None = None, device: DeviceName = "auto",
                  precision: PrecisionName = "auto") -> ImageTower:
    """Load a vision model of transformers, from the hub or a folder, such as `facebook/dinov2-small`.

    Its feature is the pooled one of the model (of DINOv2 the class token after the last norm); a model that pools
    nothing gives the mean over its positions.

    Args:
        image_size: pixels; None: those of its image processor.

    Raises:
        UserError: the model cannot be fetched or read, is no vision model, or cannot have this size.
    """
    from transformers import AutoImageProcessor, AutoModel

    from xrvlm.backbones.hf import folder_or_name, mean_and_std

    _check_size(image_size)
    model = str(model)
    source = folder_or_name(model, "second.model")
    try:
        network = AutoModel.from_pretrained(source, dtype=torch.float32)
        processor: Any = AutoImageProcessor.from_pretrained(source)
        size = dict(getattr(processor, "crop_size", None) or processor.size)
        side = image_size or size.get("height") or size["shortest_edge"]
        transform = ImageTransform(side, *mean_and_std(model, processor))
        return ImageTower(network, name=model, transform=transform, read=_pooled, device=device, precision=precision,
                          loader={"name": "hf_trunk", "options": {"model": model, "image_size": image_size}})
    except UserError:
        raise
    except Exception as error:               # of the hub, JSON, safetensors, a model that takes no images
        raise _unusable(model, "transformers", error, "a vision model of the hub or a folder of one, and the "
                        "network") from error


def _check_size(image_size: int | None) -> None:
    if image_size is not None and image_size < 1:
        raise UserError(f"{option('second.image_size')} must be at least 1 pixel, found {image_size}")


def _called(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    found = model(pixel_values=images)
    pooled = getattr(found, "pooler_output", None)
    return (found.last_hidden_state.mean(dim=1) if pooled is None else pooled).flatten(1)


def _unusable(model: str, library: str, error: Exception, wanted: str) -> UserError:
    reason = shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
    return UserError(f"cannot load {model} with {library} as a second tower: {reason}; it takes {wanted}")
