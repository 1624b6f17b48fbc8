"""The tiny CLIP: a CLIP of open_clip's architecture, small enough to ship with the package.

Its checkpoint holds fp16 weights. It stores only those rows of the token embedding that occur in pretraining. All other
rows are pseudo-random by a fixed rule, so that an unseen word, such as a species name, is the same on every machine.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xrvlm.backbones.base import DeviceName, FrozenCLIP, ImageTransform, Interpolation, PrecisionName
from xrvlm.backbones.openclip import wrap_openclip
from xrvlm.backbones.text_encoder import TextPath
from xrvlm.errors import UserError, typed
from xrvlm.files import write_atomically

FOLDER = Path(str(resources.files("xrvlm.demo")))
CHECKPOINT = FOLDER / "tiny_clip.safetensors"
TABLE, ROWS, IDS = "token_embedding.weight", "token_embedding.rows", "token_embedding.ids"
TRANSFORM = ImageTransform(64, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@typed
def load_tiny_clip(*, resize_to: int | None = None, interpolation: Interpolation | None = None,
                   text: TextPath = "fast", text_memory_gb: float | None = None, device: DeviceName = "auto",
                   precision: PrecisionName = "auto") -> FrozenCLIP:
    """Load the tiny CLIP and freeze it.

    Args:
        resize_to, interpolation, text, text_memory_gb, device, precision: as in `load_openclip`.

    Raises:
        UserError: the checkpoint is missing or damaged, or an option has a wrong value.
    """
    loader = {"name": "tiny", "options": {"resize_to": resize_to, "interpolation": interpolation}}
    return wrap_openclip(load(), tokenizer(), name="tiny", transform=TRANSFORM, resize_to=resize_to,
                         interpolation=interpolation, text=text, text_memory_gb=text_memory_gb, loader=loader,
                         device=device, precision=precision)


@cache
def tokenizer() -> SimpleTokenizer:
    """CLIP's tokenizer, which ships with open_clip."""
    return SimpleTokenizer()


def build() -> Any:
    """The architecture with random weights; the token embedding follows `token_rule`."""
    model = _architecture(**_config())
    model.token_embedding.weight.data.copy_(token_rule(*model.token_embedding.weight.shape))
    return model


def _config() -> dict[str, Any]:
    return json.loads((FOLDER / "tiny_clip.json").read_text(encoding="utf-8"))


def _architecture(embed_dim: int, vision_cfg: Any, text_cfg: Any) -> Any:
    return CLIP(embed_dim, vision_cfg, text_cfg)


def token_rule(rows: int, width: int) -> Tensor:
    """(rows, width) almost normal, standard deviation 0.02: sums of four 16-bit integers, exact on every machine."""
    raw = np.random.Philox(key=20250310).random_raw(rows * width)
    low = np.uint64(0x0000FFFF0000FFFF)                               # two of the four 16-bit integers of a draw
    pairs = (raw & low) + (raw >> np.uint64(16) & low)
    words = ((pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))).astype(np.float64)
    words -= 2 * 65535                                                # variance of each: (65536**2 - 1) / 12
    words /= 65536 / 3**0.5
    words *= 0.02
    return torch.from_numpy(words.astype(np.float32).reshape(rows, width))


def save(model: Any, path: Path, token_ids: Tensor, metadata: dict[str, str]) -> None:
    """Write the weights in fp16, of the token embedding only the rows `token_ids` (k,)."""
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != TABLE}
    tensors |= {ROWS: model.state_dict()[TABLE][token_ids].half(), IDS: token_ids.to(torch.int32)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load(path: Path = CHECKPOINT) -> Any:
    """The model in fp32 and eval mode; UserError if the file is missing or damaged."""
    config = _config()
    rows, width = config["text_cfg"]["vocab_size"], config["text_cfg"]["width"]
    table = token_rule(rows, width)
    config["text_cfg"]["vocab_size"] = 1                              # no random table only to be replaced
    model = _architecture(**config)
    model.vocab_size, model.token_embedding = rows, nn.Embedding.from_pretrained(table, freeze=False)
    with shipped_tensors(path, "xrvlm.demo.pretrain") as state:
        table[state.pop(IDS).long()] = state.pop(ROWS).float()
        model.load_state_dict({name: value.float() for name, value in state.items()} | {TABLE: table})
    return model.eval()


@contextmanager
def shipped_tensors(path: Path, program: str) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file that ships with xrvlm and that `program` made.

    Raises:
        UserError: the file is missing or damaged, or its tensors are not those that the `with` block needs.
    """
    fix = f"install xrvlm again, or make the file with `python -m {program}`"
    if not path.exists():
        raise UserError(f"there is no {path}; {fix}")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}    # noqa: SIM118 (not a dict)
        yield state
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); {fix}") from error
