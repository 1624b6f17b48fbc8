"""A second look: the parts of a photo that agree most with the whole are shown to the tower again, larger.

After GLSim (Rios et al., preprint 2024, arXiv:2407.12891), which crops what agrees most with the class token, and the
non-maximum suppression of "saccadic vision". There a transformer of its own joins the looks; here the tower is frozen,
and the looks are averaged or handed to the method.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from xrvlm.backbones.base import DeviceName, Features, FrozenCLIP, Need, PrecisionName
from xrvlm.backbones.composed.on_tower import OnTower, Shown, resize_matrix
from xrvlm.backbones.registry import load_tower
from xrvlm.errors import UserError, check_fields, check_options, option, typed, unknown

Where = Literal["agreement", "random", "fixed"]
Use = Literal["average", "parts"]
CORNERS = ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0))    # of the windows `fixed`, in their order
DRAWS = 2 ** 31 - 1
FAR = 4.0                                # more than any two windows' scores differ


@dataclass(frozen=True)
class LookOptions:
    """How a tower looks again.

    Args:
        looks: k, windows a photo.
        where: `agreement`: where the positions agree most with the whole; the others are its controls, windows drawn
            for each photo (`random`), or the same of every photo, the centre first, then corners (`fixed`).
        use: `average`: the features of the whole and of the looks are averaged; `parts`: the features of the whole
            stay as they are, and the mean of the looks is `Features.second`, for methods that read it.
        share: side of a window as a share of the photo's.
        zoom: pixels of a side of the photo that is prepared, in multiples of the tower's: with 1 / `share` a window has
            as many pixels as the tower takes.
        overlap: windows whose intersection is more than this share of their union with one that is taken are left out.
    """

    looks: int = 3
    where: Where = "agreement"
    use: Use = "average"
    share: float = 0.5
    zoom: float = 2.0
    overlap: float = 0.3

    def __post_init__(self):
        check_fields(self, "look")
        for name, value, known in (("where", self.where, get_args(Where)), ("use", self.use, get_args(Use))):
            if value not in known:
                raise unknown(option(f"look.{name}"), value, known)
        for name, right, wanted in (("looks", 1 <= self.looks <= 16, "from 1 to 16"),
                                    ("share", 0 < self.share < 1, "between 0 and 1"),
                                    ("zoom", 1 <= self.zoom <= 4, "from 1 to 4"),
                                    ("overlap", 0 <= self.overlap <= 1, "from 0 to 1")):
            if not right:
                named = "second_look" if name == "looks" else f"look.{name}"
                raise UserError(f"{option(named, vars(self)[name])} must be {wanted}")
        if self.where == "fixed" and self.looks > len(CORNERS):
            raise UserError(f"{option('look.where', 'fixed')} has {len(CORNERS)} windows: use "
                            f"{option('second_look', len(CORNERS))} or fewer")


class LookingTower(OnTower):
    """`clip` that looks at each photo again, at `looks` windows of it.

    The windows lie on the grid of the tower's positions. Agreement is the cosine of a position with the image feature;
    that of a window is the mean over the positions that it covers. The window of the highest is taken, those that
    overlap with it are left out, and so on. Where none is left the first are taken again.

    Raises:
        UserError: the tower shows no positions, or has a second tower or look already: pair a tower that looks, not
            the other way round.
    """

    def __init__(self, clip: FrozenCLIP, options: LookOptions):
        super().__init__(clip)
        _check(clip)
        self.options, own = options, clip.transform
        side, size = round(own.image_size * options.zoom), own.image_size
        self.transform = own.scaled(side)
        self.shown = Shown(side, own, own).to(clip.device)
        blank = torch.zeros(1, 3, size, size, device=clip.device)
        self.cells = _grid(clip.encode_image(blank, {"tokens"})).shape[-1]                 # of a side
        self.covered = min(self.cells - 1, max(1, round(options.share * self.cells)))      # of a side of a window
        starts = self.cells - self.covered + 1                                             # along a side
        edges = [round(cell * side / self.cells) for cell in range(self.cells + 1)]
        crops = torch.stack([resize_matrix(side, edges[at], edges[at + self.covered], size, own.interpolation)
                             for at in range(starts)])                                     # (a, size, side)
        self.crops: Tensor
        self.register_buffer("crops", crops.to(clip.device), persistent=False)
        at = torch.cartesian_prod(torch.arange(starts), torch.arange(starts)).to(clip.device)          # (a * a, 2)
        self.at: Tensor
        self.clear: Tensor                   # (a * a, a * a) whether a window may be taken beside another
        self.register_buffer("at", at, persistent=False)
        apart = (self.covered - (at[:, None] - at[None]).abs()).clamp(min=0).prod(dim=-1).float()      # intersections
        clear = (apart / (2 * self.covered ** 2 - apart) <= options.overlap) & (apart < self.covered ** 2)
        self.register_buffer("clear", clear, persistent=False)
        self.chosen_by: set[Need] = {"tokens"} if options.where == "agreement" else set()
        self.second_need: Need = "unprojected" if clip.unprojected_width else "pooled"
        if options.use == "parts":
            self.second_width, self.second_name = clip.unprojected_width or clip.embed_dim, "second look"
        changed = {name: value for name, value in vars(options).items() if value != vars(LookOptions())[name]}
        others = " ".join(str(value) if name in ("where", "use") else f"{name} {value:g}"
                          for name, value in changed.items() if name != "looks")
        self.name = f"{clip.name} + {options.looks} looks{f' ({others})' if others else ''}"
        self.fingerprint = sha256(f"{clip.fingerprint} look {sorted(changed.items())}".encode()).hexdigest()
        if clip.loader is not None:
            self.loader = {"name": "look", "options": {"tower": clip.loader, "look": changed}}
        self.eval()

    @torch.no_grad()
    def encode_image(self, images: Tensor, needs: Collection[Need] = ("pooled",)) -> Features:
        images = images.to(self.device)
        own: set[Need] = {need for need in needs if need != "second"}
        if self.options.use == "parts" and "second" not in needs:
            return self.clip.encode_image(self.shown(images), own)
        reads = self.options.use == "parts" or "unprojected" in needs        # else the pooled feature is enough
        first = self.clip.encode_image(self.shown(images), {*own, *self.chosen_by})
        read_again: set[Need] = {"pooled", self.second_need} if reads else {"pooled"}
        looked = self._look(images, self._windows(first, images), read_again)
        if self.options.use == "parts":
            read = vars(looked)[self.second_need]                                          # (b * k, q)
            more: dict[str, Any] = {"second": read.unflatten(0, (-1, self.options.looks)).mean(dim=1)}
        else:
            more = {name: self._mean(vars(first)[name], vars(looked)[name])
                    for name in ("pooled", "unprojected") if vars(first)[name] is not None}
            more["pooled"] = F.normalize(more["pooled"], dim=-1)
        return replace(first, **more, **({} if "tokens" in needs else {"tokens": None}))

    def windows(self, images: Tensor) -> Tensor:
        """(b, k, 4) left, top, right and bottom of the windows of `images` (b, 3, s, s), as shares of a side."""
        with torch.no_grad():
            first = self.clip.encode_image(self.shown(images.to(self.device)), {"pooled", *self.chosen_by})
        top_left = self.at[self._windows(first, images.to(self.device))].flip(-1).float()              # (b, k, 2)
        return torch.cat([top_left, top_left + self.covered], dim=-1) / self.cells

    def _windows(self, first: Features, images: Tensor) -> Tensor:
        """(b, k) indices of the windows to look at."""
        if self.options.where == "fixed":
            last = self.cells - self.covered
            chosen = [round(down * last) * (last + 1) + round(right * last) for down, right in CORNERS]
            return torch.tensor(chosen[:self.options.looks], device=self.device).expand(len(images), -1)
        if self.options.where == "random":   # by the photo, so that it is looked at in the same way whenever it is seen
            seeds = (images * 64).round().long().sum(dim=(1, 2, 3))[:, None]               # (b, 1)
            numbers = torch.arange(1, len(self.at) + 1, device=self.device)                # (a * a,)
            score = ((seeds * 48271 + numbers * 69621) % DRAWS * 16807 % DRAWS).float() / DRAWS        # (b, a * a)
        else:
            agreement = F.cosine_similarity(_grid(first), first.pooled[:, :, None, None], dim=1)       # (b, h, w)
            score = F.avg_pool2d(agreement[:, None], self.covered, stride=1).flatten(1)    # (b, a * a)
        chosen = []
        for _ in range(self.options.looks):
            best = score.argmax(dim=1)                                                     # (b,)
            chosen.append(best)
            score = torch.where(self.clear[best], score, score - FAR)    # in the same order among themselves
        return torch.stack(chosen, dim=1)

    def _look(self, images: Tensor, windows: Tensor, needs: Collection[Need]) -> Features:
        """The features of the windows (b, k) of `images`, one after the other: (b * k, ...)."""
        down, right = self.at[windows.flatten()].unbind(dim=-1)                            # (b * k,)
        photos = images.repeat_interleave(windows.shape[1], dim=0)                         # (b * k, 3, side, side)
        seen = self.crops[down][:, None] @ photos @ self.crops[right][:, None].mT          # (b * k, 3, size, size)
        return self.clip.encode_image(self.shown.clamped(seen), needs)

    def _mean(self, whole: Tensor, looked: Tensor) -> Tensor:
        """(b, f) the mean of the whole's features (b, f) and of the looks' (b * k, f), each photo's k + 1."""
        looked = looked.unflatten(0, (-1, self.options.looks))                             # (b, k, f)
        return torch.cat([whole[:, None], looked], dim=1).mean(dim=1)


def _grid(x: Features) -> Tensor:
    """(b, d, h, w) the positions of the square grid, without a class token before them."""
    assert x.tokens is not None
    side = int(x.tokens.shape[1] ** 0.5)
    return x.tokens[:, -side * side:].mT.unflatten(2, (side, side))


def _check(clip: FrozenCLIP) -> None:
    """UserError for a tower that cannot look again."""
    if not clip.image_width:
        raise UserError(f"{clip.name} shows no positions, so it cannot tell where to look again: leave "
                        f"{option('second_look')} out, or take another backbone")
    if isinstance(clip, LookingTower):
        raise UserError(f"{clip.name} looks again already: ask it for more looks ({option('second_look', 5)})")
    if clip.second_width:
        raise UserError(f"{clip.name} has a second tower already: let its first tower look again, and pair that")


def load_look(tower: Mapping[str, Any], look: Mapping[str, Any], *, device: DeviceName = "auto",
              precision: PrecisionName = "auto") -> LookingTower:
    """Load the tower that is given as its `loader`; let it look again, with the options `look`."""
    return LookingTower(load_tower(tower, device=device, precision=precision), LookOptions(**look))


@typed
def second_look(clip: FrozenCLIP, looks: int = 3, **options: Any) -> FrozenCLIP:
    """`clip` that looks again at `looks` windows of each photo; `options` are those of `LookOptions`.

    Raises:
        UserError: an unknown option, a wrong value, or a tower that cannot look again.
    """
    check_options(LookOptions, options, "look")
    return LookingTower(clip, LookOptions(looks, **options))
