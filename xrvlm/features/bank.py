"""Features on disk: shards in safetensors, memory-mapped, each written whole, so an interruption loses one.

A *store* holds images of whoever asked before; a *bank* is a selection of them, in the order of one data set's part.
So the runs of a sweep over shots, seeds and methods encode an image once, however many of them read it.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xrvlm.backbones.base import Features
from xrvlm.distributed import together
from xrvlm.files import digest, write_atomically, write_json
from xrvlm.randomness import generator

log = logging.getLogger(__name__)
FORMAT = 2
SHARD_BYTES = 64e6
SHARD_IMAGES = 1024                      # at most, so that an interruption never loses hours
IN_FULL = frozenset({"pooled", "unprojected"})       # one vector a view: always float32 on disk


@dataclass
class FeatureBank:
    """Features of n images in v views, view 0 as the evaluation transform shows it; float32 when read."""

    shards: Sequence[Mapping[str, Tensor]]           # each (rows, v, ...), memory-mapped; or one on a GPU
    rows_per_shard: int
    ids: tuple[str, ...]
    labels: Tensor                                   # (n,)
    views: int                                       # augmented ones: v - 1
    seed: int
    places: Tensor | None = None                     # (n,) shard * rows_per_shard + row of each; None: one by one

    @property
    def device(self) -> torch.device:
        """Where the features are, and the batches."""
        return self.shards[0]["pooled"].device

    def batches(self, order: Sequence[Tensor], epoch: int) -> Iterator[tuple[Features, Tensor]]:
        """Each image in one of its augmented views, drawn anew for every epoch."""
        view = torch.zeros(len(self.labels), dtype=torch.long)                             # (n,)
        if self.views:
            view = torch.randint(1, self.views + 1, view.shape, generator=generator(self.seed, "view of", epoch))
        every, sizes = torch.cat(list(order)), [len(rows) for rows in order]
        of_epoch = torch.stack([every, view[every], self.labels[every]]).to(self.device)   # (3, all), one copy an epoch
        for rows, views, labels in of_epoch.split(sizes, dim=1):
            yield self.select(rows, views), labels

    def in_order(self, batch_size: int = 256) -> Iterator[tuple[Features, Tensor]]:
        every = torch.arange(len(self.labels), device=self.device)
        for rows, labels in zip(every.split(batch_size), self.labels.split(batch_size), strict=True):
            yield self.select(rows, torch.zeros_like(rows)), labels

    def take(self, rows: Tensor) -> "FeatureBank":
        """The bank of images `rows` (k,) alone; nothing is copied."""
        places = rows if self.places is None else self.places.cpu()[rows]                  # (k,)
        return replace(self, ids=tuple(self.ids[row] for row in rows.tolist()), labels=self.labels[rows],
                       places=places.to(self.device))

    def select(self, rows: Tensor, views: Tensor) -> Features:
        """float32 features of images `rows` (b,) in views `views` (b,)."""
        places = rows if self.places is None else self.places[rows]                        # (b,)
        if len(self.shards) == 1:
            return Features(**{name: values[places, views].float() for name, values in self.shards[0].items()})
        shard, row = places // self.rows_per_shard, places % self.rows_per_shard           # (b,), (b,)
        chosen: dict[str, Tensor] = {}
        for index in shard.unique().tolist():
            here = (shard == index).nonzero().squeeze(1)                                   # (k,)
            local = row[here]
            for name, values in self.shards[index].items():
                picked = values[local, views[here]].float()                                # (k, ...)
                chosen.setdefault(name, picked.new_empty(len(rows), *picked.shape[1:]))[here] = picked
        return Features(**chosen)

    @property
    def nbytes(self) -> int:
        return len(self.labels) * sum(values[:1].nbytes for values in self.shards[0].values())

    def resident(self, device: torch.device) -> "FeatureBank":
        """The same bank in the memory of `device`, as one shard of its images alone."""
        whole = {name: values.new_empty((len(self.labels), *values.shape[1:]), device=device)
                 for name, values in self.shards[0].items()}
        places = torch.arange(len(self.labels)) if self.places is None else self.places               # (n,)
        for index, shard in enumerate(self.shards):
            here = (places // self.rows_per_shard == index).nonzero().squeeze(1)                      # (k,)
            rows, there = places[here] % self.rows_per_shard, here.to(device)                         # (k,), (k,)
            for name, values in shard.items():           # shard by shard: a copy of the whole has no room beside it
                whole[name][there] = values[rows].to(device)
        return replace(self, shards=[whole], rows_per_shard=max(1, len(self.labels)), places=None)


@dataclass(frozen=True)
class Store:
    """A folder of shards with the features of images, each known by a stamp that tells its contents."""

    folder: Path
    key: Mapping[str, Any]                           # all that features depend on beside the image
    row_shapes: Mapping[str, torch.Size]             # of an image's features that are asked for: (v, ...)
    dtype: torch.dtype                               # of positions; pooled features are float32
    batch: int                                       # images encoded at once

    @cached_property
    def name(self) -> str:
        return digest({**self.key, "format": FORMAT})

    @property
    def place(self) -> Path:
        return self.folder / self.name[:24]

    @property
    def rows_per_shard(self) -> int:
        row_bytes = sum(shape.numel() for shape in self.row_shapes.values()) * torch.finfo(self.dtype).bits // 8
        return max(1, min(SHARD_IMAGES, int(SHARD_BYTES / row_bytes)) // self.batch) * self.batch

    def find(self, stamps: Sequence[str], *, drop: bool = False) -> dict[str, tuple[Path, int]]:
        """The shard and the row in it of each of `stamps`, those that are in none left out; `drop` damaged shards."""
        wanted, found = set(stamps), {}
        for path in sorted(self.place.glob("shard-*.safetensors")):
            try:
                held = self._images_of(path)
            except OSError:                          # such as one that another process has just dropped
                continue
            except (SafetensorError, ValueError) as error:
                if drop:
                    log.warning("damaged feature shard %s (%s): its images are encoded again", path, error)
                    path.unlink(missing_ok=True)
                continue
            for row, stamp in enumerate(held):
                if stamp in wanted:
                    found.setdefault(stamp, (path, row))
        return found

    def missing(self, stamps: Sequence[str]) -> list[int]:
        """Which of `stamps` must be made. What is damaged is told and goes."""
        found = self.find(stamps, drop=True)
        return [row for row, stamp in enumerate(stamps) if stamp not in found]

    def _images_of(self, path: Path) -> list[str]:
        """The stamps of the images in a shard; none where it lacks a feature that is asked for."""
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("xrvlm", "{}"))
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}    # noqa: SIM118
        stamps = header.get("images", [])
        wanted = {name: (len(stamps), *shape) for name, shape in self.row_shapes.items() if name in shapes}
        if header.get("key") != self.name or not wanted.items() <= shapes.items():
            raise ValueError("it is not what its place says")
        return stamps if len(wanted) == len(self.row_shapes) else []

    def read(self, path: Path) -> dict[str, Tensor]:
        """The memory-mapped features of a shard that are asked for, each (rows, v, ...)."""
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.row_shapes}

    def path_of(self, stamps: Sequence[str]) -> Path:
        """Where a shard of these images is written: equal shards have equal names, other ones other names."""
        return self.place / f"shard-{digest([sorted(self.row_shapes), *stamps])[:24]}.safetensors"


def open_bank(store: Store, stamps: Sequence[str], encode: Callable[[Sequence[Sequence[int]]], Iterable[Features]], *,
              ids: tuple[str, ...], labels: Tensor, seed: int, lock: str,
              progress: Callable[[int], Any]) -> FeatureBank:
    """The bank of the images `stamps`. Those that `store` lacks are made with one call of `encode`: it gets the rows of
    each shard and returns batches in this order, none of which holds rows of two shards.

    Several processes may ask at once: of those with one name of a `lock`, one makes what is missing and the others
    wait, then make what they lack still. Those of one run make it together, each every so many shards; what is in
    them does not depend on how many they are.
    """
    group = together()
    found = store.find(stamps)
    if group.from_first(lambda: len(found) < len(stamps)):
        with group.alone(store.place / lock):
            # others may have made some while this one waited
            missing: list[int] = group.from_first(lambda: store.missing(stamps))
            log.info("%d of %d images are encoded now", len(missing), len(stamps))
            size = store.rows_per_shard
            shards = [missing[start:start + size] for start in range(0, len(missing), size)]
            own = {store.path_of([stamps[row] for row in rows]): rows for rows in shards[group.rank::group.world]}
            progress(len(stamps) - len(missing))
            if own:
                _make(own, store.name, stamps, encode(list(own.values())), store.dtype, progress)
            group.meet()
            found = store.find(stamps)
            if group.first and not (store.place / "key.json").exists():
                write_json(store.place / "key.json", dict(store.key))      # for people: what this folder holds
    lost = [item_id for item_id, stamp in zip(ids, stamps, strict=True) if stamp not in found]
    assert not lost, f"{store.place} does not hold {lost[:3]} after they were written"
    paths = list(dict.fromkeys(found[stamp][0] for stamp in stamps))
    read = [store.read(path) for path in paths]
    most, index = max(len(shard["pooled"]) for shard in read), {path: number for number, path in enumerate(paths)}
    places = torch.tensor([index[found[stamp][0]] * most + found[stamp][1] for stamp in stamps])           # (n,)
    return FeatureBank(read, most, ids, labels, store.row_shapes["pooled"][0] - 1, seed, places)


def _make(shards: Mapping[Path, Sequence[int]], name: str, stamps: Sequence[str], encoded: Iterable[Features],
          dtype: torch.dtype, progress: Callable[[int], Any]) -> None:
    """Write each of `shards` from as many of the batches; a thread of its own does, while the tower goes on."""
    batches, writing = iter(encoded), None
    with ThreadPoolExecutor(max_workers=1) as writer:
        for path, rows in shards.items():
            parts, count = [], 0
            while count < len(rows):
                parts.append(_on_disk(next(batches), dtype))
                count += len(parts[-1]["pooled"])
                progress(len(parts[-1]["pooled"]))
            if writing is not None:
                writing.result()         # what it raised; and never more than two shards in memory
            header = {"key": name, "images": [stamps[row] for row in rows]}
            writing = writer.submit(_write, path, header, parts)
        if writing is not None:
            writing.result()


def _on_disk(batch: Features, dtype: torch.dtype) -> dict[str, Tensor]:
    """Converted where the tower ran, then brought to the CPU."""
    return {key: (value if key in IN_FULL else value.to(dtype)).cpu() for key, value in vars(batch).items()
            if value is not None}


def _write(path: Path, header: dict[str, Any], parts: Sequence[Mapping[str, Tensor]]) -> None:
    tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}          # (rows, v, ...)
    metadata = {"xrvlm": json.dumps(header)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))
