"""Train the text side of the photo tower on words alone: `python -m xrvlm.photo.pretrain --photos DIR`.

The trunk's classifier of ImageNet's 1,000 classes gives the joint space and, in it, a direction for each class. The
text tower learns to place names and definitions there: those of a class at its direction, those of any other synset of
WordNet among the classes that it stands for (`vocabulary`). One dimension is the same in all photos: a text lies along
it as far as its classes disagree, so that it claims little. No photo is needed, but for two numbers, from every second
class of a folder that holds one photo of each (`figures`): the mean length of their features, of which `OUTSIDE` is the
dimension that all share, and the logit scale, which is the one of highest likelihood.
"""

import platform
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from xrvlm.backbones.openclip_load import imagenet_classes
from xrvlm.demo.pretrain import optimizers, rate, settings_parser
from xrvlm.files import write_json
from xrvlm.photo import figures, photo_tower
from xrvlm.photo.photo_tower import TrunkName
from xrvlm.photo.vocabulary import WORDNET, Entry, entries

TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "{}", "{}.", "a close-up photo of a {}.", "a {} in the wild.",
             "a photo of a small {}.", "a photo of a {}, a type of animal or thing.", "a good photo of a {}.")
SHARE_OF_CLASSES = 0.65                  # of the texts of a step; the others are of synsets outside ImageNet
DEFINED = 0.25                           # share of the steps whose texts hold the definition
LOGIT_SCALE = 20.0                       # of the loss, in training
ALIGNMENT = 3.0                          # weight of the cosine beside the cross-entropy
DROPPED = 0.05                           # share of the tokens that training hides: an unknown one is no surprise then
LONGEST = 40                             # tokens of a text; later positions are as the last of these
OUTSIDE = 0.2                            # of a photo's length along the dimension of "none of the classes"; 0 favours
                                         # names of ImageNet, 1 others; chosen on training images of flowers17, dtd10
KEPT_BACK = 20                           # of the synsets outside ImageNet, every 20th is only measured on


@dataclass(frozen=True)
class Settings:
    steps: int = 4000
    batch_size: int = 192
    learning_rate: float = 2e-3
    seed: int = 0


def main(arguments: list[str] | None = None) -> None:
    parser = settings_parser(__doc__, Settings())
    parser.add_argument("--trunk", choices=get_args(TrunkName), default="lite0")
    parser.add_argument("--photos", type=Path, required=True, help="one photo of each class of ImageNet: SYNSET.jpg")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder of WordNet 3.0's files")
    parser.add_argument("--out", type=Path, help="file for the weights; left out: the shipped one")
    given = vars(parser.parse_args(arguments))
    trunk, photos, wordnet = given.pop("trunk"), given.pop("photos"), given.pop("wordnet")
    out = given.pop("out") or photo_tower.checkpoint(trunk)
    torch.set_num_threads(given.pop("threads"))
    pretrain(trunk, Settings(**given), entries(wordnet), photos, out)


def pretrain(trunk: TrunkName, settings: Settings, words: Sequence[Entry], photos: Path, out: Path) -> dict[str, Any]:
    """Train, write the weights to `out` and the record next to it; returns the record."""
    start = time.monotonic()
    torch.manual_seed(settings.seed)
    projection, bias, directions = joint_space(trunk)
    model = photo_tower.build(trunk, projection, bias)
    texts = _Texts(words, settings.seed)
    embedding = _train(model, texts, directions, settings)
    state = {f"text.{name}": value for name, value in model.text.state_dict().items()
             if not name.startswith("token_embedding")}
    state |= embedding | {"image_projection": projection, "image_bias": bias, "logit_scale": torch.zeros(())}
    minutes = round((time.monotonic() - start) / 60, 1)
    metadata = {"seed": str(settings.seed), "steps": str(settings.steps)}
    photo_tower.write_text_side(out, state, metadata)
    images, names = figures.features(photo_tower.load(trunk, out), trunk, photos)          # (1000, d) each
    bias[-1] = images[:, -1] = OUTSIDE * images[::2].norm(dim=1).mean()
    cosine = figures.cosines(images, names)
    state["logit_scale"] = figures.best_logit_scale(cosine).log()
    photo_tower.write_text_side(out, state, metadata)
    record = {
        "trunk": trunk, "settings": vars(settings), "texts_seen": settings.steps * settings.batch_size,
        "minutes": minutes, "threads": torch.get_num_threads(), "machine": platform.machine(),
        "torch": torch.__version__, "synsets": len(words), "classes": len(directions),
    } | figures.on_classes(cosine, float(state["logit_scale"].exp()))
    write_json(out.with_name(f"{out.stem}_record.json"), record)
    print(record)
    return record


def joint_space(trunk: TrunkName, width: int = photo_tower.EMBED_DIM) -> tuple[Tensor, Tensor, Tensor]:
    """The projection (e, width) of the trunk's pooled feature, its bias (width,), and the classes' directions.

    The classifier's weights, less their mean over the classes, span the space in which it tells classes apart; its
    first right singular vectors are the projection, all but one of the `width`; the last dimension is zero. The bias
    takes away the mean feature, which needs no photo: a feature is the ReLU6 of a batch-normalised one, whose mean and
    deviation are the layer's bias and weight.
    """
    state = photo_tower.trunk_state(trunk, classifier=True)
    assert state is not None, "the trunk's package must be installed"
    apart = state["classifier.weight"] - state["classifier.weight"].mean(dim=0)            # (1000, e)
    projection = torch.linalg.svd(apart.double(), full_matrices=False).Vh[:width - 1].T.float()
    projection = F.pad(projection, (0, 1))                                                 # (e, width)
    mean = relu6_mean(state["bn2.bias"], state["bn2.weight"].abs())                        # (e,)
    return projection, -(mean @ projection), F.normalize(apart @ projection, dim=1)


def relu6_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """The mean of min(max(x, 0), 6) for normal x."""
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = -mean / deviation, (6 - mean) / deviation
    inside = mean * (normal.cdf(high) - normal.cdf(low))
    return inside + deviation * (normal.log_prob(low).exp() - normal.log_prob(high).exp()) + 6 * (1 - normal.cdf(high))


class _Texts:
    """Draws texts of synsets, as token ids."""

    def __init__(self, words: Sequence[Entry], seed: int):
        self.words, self.random, self.tokenizer = words, random.Random(seed), SimpleTokenizer()
        self.inside = list(range(len(imagenet_classes())))
        rest = range(len(self.inside), len(words))
        self.kept_back = rest[::KEPT_BACK]
        self.outside = sorted(set(rest) - set(self.kept_back))
        self.known: dict[str, list[int]] = {}
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        ids = {start, end}
        for entry in words:
            for text in (*entry.names, entry.definition, *TEMPLATES):
                ids.update(self._ids(text), self._ids(text.lower()))
        self.token_ids = torch.tensor(sorted(ids))

    def draw(self, count: int) -> tuple[list[int], Tensor]:
        """`count` entries and a text of each, all with a definition or none: indices into `token_ids`, padded by -1."""
        classes = round(count * SHARE_OF_CLASSES)
        chosen = self.random.sample(self.inside, classes) + self.random.sample(self.outside, count - classes)
        defined = self.random.random() < DEFINED         # of a whole batch, as definitions are long
        return chosen, self.tokens([self._text(self.words[index], defined) for index in chosen])

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(n, t) indices into `token_ids`, start and end included, padded with -1."""
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        rows = [torch.tensor([start, *self._ids(text)[:LONGEST - 2], end]) for text in texts]
        rows = [torch.searchsorted(self.token_ids, row) for row in rows]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def _ids(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text)
        return self.known[text]

    def _text(self, entry: Entry, defined: bool) -> str:
        name = self.random.choice(entry.names[:1] * 2 + entry.names)
        if self.random.random() < 0.3:
            name = name.lower()
        if not defined:
            return self.random.choice(TEMPLATES).format(name)
        return self.random.choice((f"a photo of a {name}, {entry.definition}.", entry.definition))


class _Embedding(nn.Module):
    """A token embedding of low rank over the tokens that occur."""

    def __init__(self, count: int):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(count, photo_tower.RANK) * 0.1)
        self.widen = nn.Parameter(torch.randn(photo_tower.RANK, photo_tower.TEXT["width"]) * 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t, w); of the padding, -1, and of hidden tokens zero."""
        return (self.rows[tokens.clamp(min=0)] * (tokens >= 0)[..., None]) @ self.widen


def _train(model: Any, texts: _Texts, directions: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Train the text tower in place; returns its token embedding as `photo_tower.read_text_side` reads it."""
    text, embedding = model.text, _Embedding(len(texts.token_ids))
    text.token_embedding = embedding
    taught, chances = optimizers(text, settings.learning_rate), torch.Generator().manual_seed(settings.seed)
    text.train()
    bar = tqdm(range(settings.steps), desc="pretraining", unit="step", disable=None)
    for step in bar:
        chosen, tokens = texts.draw(settings.batch_size)
        loss = _loss(_encode(text, tokens, chances), _shares(texts, chosen), directions)
        for optimizer in taught:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, settings.learning_rate, settings.steps)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        for optimizer in taught:
            optimizer.step()
        if step % 50 == 0 or step == settings.steps - 1:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % 250 == 0 or step == settings.steps - 1:
            print(step, loss.item(), _kept_back(text, texts, directions), flush=True)
    text.positional_embedding.data[LONGEST:] = text.positional_embedding.data[LONGEST - 1]
    return {photo_tower.ROWS: embedding.rows.data, photo_tower.WIDEN: embedding.widen.data,
            photo_tower.IDS: texts.token_ids.to(torch.int32)}


def _encode(text: Any, tokens: Tensor, chances: torch.Generator | None = None) -> Tensor:
    """(b, d) of unit length, read at [EOS], the last that is not padding; with `chances` some tokens are hidden."""
    ends, length = (tokens >= 0).sum(dim=1) - 1, tokens.shape[1]
    if chances is not None:
        inner = (torch.arange(length) > 0) & (torch.arange(length) < ends[:, None])        # (b, t)
        tokens = tokens.masked_fill(inner & (torch.rand(tokens.shape, generator=chances) < DROPPED), -1)
    # unfused attention: on a CPU its backward pass is faster
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        x = text.token_embedding(tokens) + text.positional_embedding[:length]
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
        return F.normalize((x[torch.arange(len(x)), ends] @ text.text_projection).float(), dim=1)


def _shares(texts: _Texts, chosen: Sequence[int]) -> Tensor:
    """(n, 1000) of the classes in what the entries stand for; each sums to 1 at most."""
    shares = torch.zeros(len(chosen), len(texts.inside))
    for row, index in zip(shares, chosen, strict=True):
        numbers, values = zip(*texts.words[index].classes.items(), strict=True)
        row[list(numbers)] = torch.tensor(values)
    return shares


def _aims(shares: Tensor, directions: Tensor) -> Tensor:
    """(n, d) of unit length: the mean direction of the classes, filled up along the dimension that all photos share."""
    mean = shares @ directions
    mean[:, -1] = (1 - mean.square().sum(dim=1)).clamp(min=0).sqrt()
    return mean


def _loss(features: Tensor, shares: Tensor, directions: Tensor) -> Tensor:
    """() cross-entropy with each text's classes, what stands for none spread over all, and the cosine with its aim."""
    cosine = (features * _aims(shares, directions)).sum(dim=1)                             # (b,)
    wanted = shares + (1 - shares.sum(dim=1, keepdim=True)) / shares.shape[1]
    return F.cross_entropy(LOGIT_SCALE * features @ directions.T, wanted) + ALIGNMENT * (1 - cosine).mean()


@torch.no_grad()
def _kept_back(text: Any, texts: _Texts, directions: Tensor) -> float:
    """Mean cosine with their aims of the names of synsets that are not trained on."""
    names = [texts.words[index].names[0] for index in texts.kept_back]
    features = _encode(text, texts.tokens([f"a photo of a {name}." for name in names]))
    return (features * _aims(_shares(texts, texts.kept_back), directions)).sum(dim=1).mean().item()


if __name__ == "__main__":
    main()
