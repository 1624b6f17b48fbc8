"""Pretrain the tiny CLIP on drawn birds that are in no world: `python -m xrvlm.demo.pretrain`.

Contrastive training with Muon for matrices and AdamW for other parameters, scheduled by step. The accuracies that are
printed and recorded are those of the written checkpoint on the training images of world 0.
"""

import argparse
import math
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from xrvlm.demo import drawn_birds, tiny_clip
from xrvlm.files import write_json

CAPTIONS = 3                             # per image; each step samples one
WARMUP_STEPS = 100


@dataclass(frozen=True)
class Settings:
    steps: int = 1100                    # chosen on training images of world 0
    images: int = 40_000
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0


def main(arguments: list[str] | None = None) -> None:
    parser = settings_parser(__doc__, Settings())
    parser.add_argument("--out", type=Path, default=tiny_clip.CHECKPOINT, help="file for the weights")
    given = vars(parser.parse_args(arguments))
    out, threads = given.pop("out"), given.pop("threads")
    torch.set_num_threads(threads)
    pretrain(Settings(**given), out)


def settings_parser(description: str | None, settings: Any) -> argparse.ArgumentParser:
    """A parser with an option for each field of the dataclass `settings`, and `--threads`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, value in vars(settings).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def pretrain(settings: Settings, out: Path) -> dict[str, Any]:
    """Draw images, train, write the weights to `out` and the record next to it; returns the record."""
    start = time.monotonic()
    images, captions = _draw(settings)
    tokens, token_ids = _tokenize(captions)
    torch.manual_seed(settings.seed)
    model = _train(tiny_clip.build(), images, tokens, token_ids, settings)
    tiny_clip.save(model, out, token_ids, {"seed": str(settings.seed), "steps": str(settings.steps)})
    record = {
        "settings": vars(settings), "benchmark_version": drawn_birds.VERSION,
        "images_seen": settings.steps * settings.batch_size, "minutes": round((time.monotonic() - start) / 60, 1),
        "threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__,
        "world_0_training_images": figures(tiny_clip.load(out)),
    }
    write_json(out.with_name(f"{out.stem}_record.json"), record)
    print(record)
    return record


def _draw(settings: Settings) -> tuple[np.ndarray, list[list[str]]]:
    """Images (n, 64, 64, 3) and the captions of each."""
    make = partial(drawn_birds.pretraining_item, settings.seed, captions=CAPTIONS)
    with ProcessPoolExecutor(max_workers=2) as pool:
        drawn = list(tqdm(pool.map(make, range(settings.images), chunksize=100), total=settings.images, desc="drawing",
                          disable=None))
    return np.stack([image for image, _ in drawn]), [captions for _, captions in drawn]


def _tokenize(captions: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Indices (n, captions, t) into the sorted token ids (k,) that occur, and these ids; padding is 0."""
    tokenizer = tiny_clip.tokenizer()
    tokens = torch.stack([tokenizer(texts) for texts in captions])                         # (n, captions, 77)
    longest = int((tokens != 0).sum(dim=-1).max())
    token_ids = tokens.unique()                                                            # (k,) sorted
    return torch.searchsorted(token_ids, tokens[..., :longest].contiguous()), token_ids


def _train(model: Any, images: np.ndarray, tokens: Tensor, token_ids: Tensor, settings: Settings) -> Any:
    """Train with the rows of the token embedding that occur, then copy them back into the full one."""
    table = model.token_embedding
    model.token_embedding = nn.Embedding.from_pretrained(table.weight[token_ids].detach().clone(), freeze=False)
    taught = optimizers(model, settings.learning_rate)
    rng = np.random.default_rng([settings.seed, 1])
    order = np.concatenate([rng.permutation(len(images))
                            for _ in range(math.ceil(settings.steps * settings.batch_size / len(images)))])
    model.train()
    bar = tqdm(range(settings.steps), desc="pretraining", unit="step", disable=None)
    for step in bar:
        rows = order[step * settings.batch_size:(step + 1) * settings.batch_size]
        x = _normalise(images[rows])                                                       # (b, 3, 64, 64)
        mirrored = torch.from_numpy(rng.random(len(rows)) < 0.5)
        x[mirrored] = x[mirrored].flip(-1)
        t = tokens[torch.from_numpy(rows), torch.from_numpy(rng.integers(0, CAPTIONS, len(rows)))]    # (b, t)
        loss = _contrastive_loss(model, x, t)
        for optimizer in taught:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, settings.learning_rate, settings.steps)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in taught:
            optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    table.weight.data[token_ids] = model.token_embedding.weight.data
    model.token_embedding = table
    return model.eval()


def optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for all else."""
    named = dict(model.named_parameters())
    matrices = [name for name, value in named.items() if value.ndim == 2 and "embedding" not in name]
    others = [value for name, value in named.items() if name not in matrices]
    return [torch.optim.Muon([named[name] for name in matrices], learning_rate, weight_decay=0.1,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def rate(step: int, learning_rate: float, steps: int) -> float:
    """The learning rate of a step: a linear warm-up times half a cosine."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _contrastive_loss(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    # unfused attention: on a CPU its backward pass is faster
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        image_features, text_features = model.encode_image(images), _encode_text(model, tokens)
    image_features, text_features = (F.normalize(x.float(), dim=-1) for x in (image_features, text_features))
    logits = model.logit_scale.exp() * image_features @ text_features.T                    # (b, b)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _encode_text(model: Any, tokens: Tensor) -> Tensor:
    """(b, d), read at [EOS], the largest id; positions after the last [EOS] of the batch are skipped."""
    ends = tokens.argmax(dim=-1)
    length = int(ends.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), ends] @ model.text_projection


@torch.no_grad()
def figures(model: Any) -> dict[str, float]:
    """Accuracies in % on 32 training images of each species of world 0 (the probe: 16 to fit, 16 to measure)."""
    kinds, tokenizer = drawn_birds.species(0), tiny_clip.tokenizer()
    images = np.stack([[drawn_birds.image_of(0, "train", kind, index) for index in range(32)]
                       for kind in range(len(kinds))])                                     # (c, 32, 64, 64, 3)
    x = F.normalize(model.encode_image(_normalise(images.reshape(-1, *images.shape[2:]))), dim=-1)
    y = torch.arange(len(kinds)).repeat_interleave(32)

    def best(texts: list[str]) -> Tensor:
        return (x @ F.normalize(model.encode_text(tokenizer(texts)), dim=-1).T).argmax(dim=1)

    described = best([drawn_birds.description(kind) for kind in kinds])
    named = best([f"a photo of a {kind.name}." for kind in kinds])
    genus = torch.arange(len(kinds)) // drawn_birds.SIBLINGS
    few = torch.arange(len(y)) % 32 < 16
    probe = LogisticRegression(C=1.0, max_iter=5000).fit((x[few] * 10).numpy(), y[few].numpy())
    scores = {"descriptions": described == y, "names": named == y, "genus_from_names": genus[named] == genus[y]}
    return {name: round(100 * right.float().mean().item(), 1) for name, right in scores.items()} | {
        "probe_16_shots": round(100 * float(probe.score((x[~few] * 10).numpy(), y[~few].numpy())), 1)}


def _normalise(images: np.ndarray) -> Tensor:
    """(n, 3, 64, 64) from uint8 (n, 64, 64, 3)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tiny_clip.TRANSFORM.mean, tiny_clip.TRANSFORM.std))
    return (x - mean) / std


if __name__ == "__main__":
    main()
