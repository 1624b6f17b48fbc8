"""Features on disk: shards in safetensors, memory-mapped, each written whole, so that an interruption loses one.

A *store* holds the features of every image that any run asked for; a *bank* is a selection of them in the order of one
subset of a data set. So the runs of a sweep over shots, seeds and methods encode each image once.
"""

import json
import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xrvlm.backbones.base import Features, FrozenCLIP, Need
from xrvlm.distributed import active_group, generator
from xrvlm.files import digest, parsed, sha256, write_atomically, write_json

log = logging.getLogger(__name__)
# of features and of their files: raised where a change alters their numbers or how they lie on disk. It is part of
# every cache key and of every run's identity, so that banks and runs from before are not used
FEATURES_REVISION = 2
SHARD_BYTES = 64e6
SHARD_IMAGES = 1024                      # at most, so that an interruption never loses hours
BLOCK = 65536                            # words of 8 bytes in a block of a checksum
IN_FULL = frozenset({"pooled", "unprojected", "second"})       # one vector a view: always float32 on disk
_CHECKED: set[tuple[Any, ...]] = set()   # shards whose checksums are right, see Store.read
# the rows of each shard -> the features (b, v, ...) of each batch, in this order
Encode = Callable[[Sequence[Sequence[int]]], Generator[dict[str, Tensor]]]


@dataclass
class FeatureBank:
    """Features of n images in v views, float32 when read. View 0 is the evaluation transform's."""

    shards: Sequence[Mapping[str, Tensor]]           # each (rows, v, ...), memory-mapped; or one on a GPU
    rows_per_shard: int
    ids: tuple[str, ...]
    labels: Tensor                                   # (n,)
    views: int                                       # augmented ones: v - 1
    seed: int
    addresses: Tensor | None = None                  # (n,) shard * rows_per_shard + row of each image; None: in order

    @property
    def device(self) -> torch.device:
        """Where the features are, and the batches."""
        return self.shards[0]["pooled"].device

    @property
    def pooled(self) -> Tensor:          # (n, d) of unit norm, in view 0
        alone = replace(self, shards=[{"pooled": shard["pooled"]} for shard in self.shards])   # no positions
        return torch.cat([x.pooled for x, _ in alone.in_order()])

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
        """The bank of images `rows` (k,) alone; no feature is copied."""
        addresses = rows if self.addresses is None else self.addresses.cpu()[rows]         # (k,)
        return replace(self, ids=tuple(self.ids[row] for row in rows.tolist()), labels=self.labels[rows],
                       addresses=addresses.to(self.device))

    def select(self, rows: Tensor, views: Tensor) -> Features:
        """float32 features of images `rows` (b,) in views `views` (b,)."""
        addresses = rows if self.addresses is None else self.addresses[rows]               # (b,)
        if len(self.shards) == 1:
            return Features(**{name: values[addresses, views].float() for name, values in self.shards[0].items()})
        shard, row = addresses // self.rows_per_shard, addresses % self.rows_per_shard     # (b,), (b,)
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
        """The same bank in the memory of `device`, as one shard that holds its images alone."""
        whole = {name: values.new_empty((len(self.labels), *values.shape[1:]), device=device)
                 for name, values in self.shards[0].items()}
        addresses = torch.arange(len(self.labels)) if self.addresses is None else self.addresses      # (n,)
        for index, shard in enumerate(self.shards):
            here = (addresses // self.rows_per_shard == index).nonzero().squeeze(1)                   # (k,)
            rows, target = addresses[here] % self.rows_per_shard, here.to(device)                     # (k,), (k,)
            for name, values in shard.items():       # shard by shard: there is no room for a second copy of the whole
                whole[name][target] = values[rows].to(device)
        return replace(self, shards=[whole], rows_per_shard=max(1, len(self.labels)), addresses=None)


@dataclass(frozen=True)
class Store:
    """A folder of shards with the features of images. Each image is known by a stamp, a hash of its contents."""

    root: Path                                       # holds a folder for each cache key
    key: Mapping[str, Any]                           # the cache key: all that features depend on beside the image
    row_shapes: Mapping[str, torch.Size]             # of an image's features that are asked for: (v, ...)
    dtype: torch.dtype                               # of positions; pooled features are float32
    batch: int                                       # images encoded at once
    mapped: dict[Any, dict[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)    # shards, see read

    @cached_property
    def name(self) -> str:
        """The hash of the cache key."""
        return digest(dict(self.key))

    @property
    def folder(self) -> Path:
        return self.root / self.name[:24]

    @property
    def rows_per_shard(self) -> int:
        row_bytes = sum(shape.numel() for shape in self.row_shapes.values()) * torch.finfo(self.dtype).bits // 8
        return max(1, min(SHARD_IMAGES, int(SHARD_BYTES / row_bytes)) // self.batch) * self.batch

    def find(self, stamps: Sequence[str], *, drop: bool = False) -> dict[str, tuple[Path, int]]:
        """{stamp: (shard file, row)} of those of `stamps` that the store holds. `drop` deletes damaged shards."""
        wanted, found = set(stamps), {}
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if not path.is_file():                   # no shard of ours: opening a pipe would wait
                continue
            try:
                held = self._stamps_in(path)
                if not wanted.isdisjoint(held):
                    self.read(path)
            except OSError:                          # such as a shard that another process has just deleted
                continue
            except (SafetensorError, ValueError, TypeError, AttributeError) as error:
                if drop:
                    log.warning("damaged feature shard %s (%s): its images are encoded again", path, error)
                    path.unlink(missing_ok=True)
                continue
            for row, stamp in enumerate(held):
                if stamp in wanted:
                    found.setdefault(stamp, (path, row))
        return found

    def missing(self, stamps: Sequence[str]) -> list[int]:
        """The rows of `stamps` that the store does not hold. Damaged shards are reported and deleted."""
        found = self.find(stamps, drop=True)
        return [row for row, stamp in enumerate(stamps) if stamp not in found]

    def _stamps_in(self, path: Path) -> list[str]:
        """The stamps of the images in a shard; none where the shard lacks a feature that is asked for."""
        with safe_open(path, framework="pt") as file:
            header = _header(file)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}    # noqa: SIM118
        stamps = header.get("images", [])
        wanted = {name: (len(stamps), *shape) for name, shape in self.row_shapes.items() if name in shapes}
        if header.get("key") != self.name or not wanted.items() <= shapes.items():
            raise ValueError("its key or its shapes do not match its folder")
        if path.name != _shard_name(shapes, stamps):
            raise ValueError("its name is not that of its images")
        return stamps if len(wanted) == len(self.row_shapes) else []

    def read(self, path: Path) -> dict[str, Tensor]:
        """The memory-mapped features of a shard that are asked for, each (rows, v, ...).

        Raises ValueError if they are not those that were written: checked once a process and state of the file.
        """
        status = path.stat()
        key = path, *self.row_shapes, status.st_size, status.st_mtime_ns, status.st_ino
        if key not in self.mapped:                   # mapped once: to map the pages again costs more than the checksum
            with safe_open(path, framework="pt") as file:
                features = {name: file.get_tensor(name) for name in self.row_shapes}
                sums = _header(file).get("checksums", {})          # none: of a version that wrote no checksums
            if key not in _CHECKED:
                broken = [name for name, values in features.items() if sums.get(name) != checksum(values)]
                if broken:
                    raise ValueError(f"the checksum of {', '.join(broken)} is wrong")
                _CHECKED.add(key)
            self.mapped[key] = features
        return self.mapped[key]

    def path_of(self, stamps: Sequence[str]) -> Path:
        """The file of the shard with these images."""
        return self.folder / _shard_name(self.row_shapes, stamps)


def open_bank(store: Store, stamps: Sequence[str], encode: Encode, *, ids: tuple[str, ...], labels: Tensor, seed: int,
              lock: str, progress: Callable[[int], Any]) -> FeatureBank:
    """The bank of the images `stamps`. Missing images are encoded by one call of `encode`: it gets the rows of each
    shard and yields batches in this order, none of which holds rows of two shards.

    Several processes may ask at once. Of those that use the same `lock`, one encodes what is missing; the others wait,
    then encode what is still missing. The ranks of one run encode together, each every world-size-th shard; what a
    shard holds does not depend on their number.
    """
    group = active_group()
    found = store.find(stamps)
    if group.from_first(lambda: len(found) < len(stamps)):
        with group.alone(store.folder / lock):
            # another process may have encoded some while this one waited
            missing: list[int] = group.from_first(lambda: store.missing(stamps))
            log.info("%d of %d images are encoded now", len(missing), len(stamps))
            size = store.rows_per_shard
            shards = [missing[start:start + size] for start in range(0, len(missing), size)]
            own = {store.path_of([stamps[row] for row in rows]): rows for rows in shards[group.rank::group.world]}
            progress(len(stamps) - len(missing))
            if own:
                with closing(encode(list(own.values()))) as batches:       # its processes end with it
                    _write_shards(own, store.name, stamps, batches, progress)
            group.meet()
            found = store.find(stamps)
            if group.first and not (store.folder / "key.json").exists():
                write_json(store.folder / "key.json", dict(store.key))     # for people and for `xrvlm cache list`
    lost = [item_id for item_id, stamp in zip(ids, stamps, strict=True) if stamp not in found]
    assert not lost, f"{store.folder} does not hold {lost[:3]} after they were written"
    paths = list(dict.fromkeys(found[stamp][0] for stamp in stamps))
    read = [store.read(path) for path in paths]
    most, number = max(len(shard["pooled"]) for shard in read), {path: index for index, path in enumerate(paths)}
    addresses = torch.tensor([number[found[stamp][0]] * most + found[stamp][1] for stamp in stamps])       # (n,)
    return FeatureBank(read, most, ids, labels, store.row_shapes["pooled"][0] - 1, seed, addresses)


def encoded(clip: FrozenCLIP, needs: Collection[Need], store: Store,
            loaded: Iterable[tuple[Tensor, Tensor]]) -> Generator[dict[str, Tensor]]:
    """Features (b, v, ...) as they go to disk, of each batch of (b,) rows and their views (b, v, 3, s, s).

    The tower always encodes a full batch, padded with empty images: then an image has the same features, bit for bit,
    whatever other images stand in its batch (tests/features/test_source.py; on CPUs, a GPU may choose other kernels).
    """
    for rows, images in loaded:
        empty = images.new_zeros(store.batch - len(images), *images.shape[1:])
        features = clip.encode_image(torch.cat([images, empty]).flatten(0, 1), needs)
        yield {name: (value if name in IN_FULL else value.to(store.dtype)).unflatten(0, (store.batch, -1))
               [:len(rows)].cpu() for name, value in vars(features).items() if value is not None}


def _write_shards(shards: Mapping[Path, Sequence[int]], name: str, stamps: Sequence[str],
                  batches: Iterator[dict[str, Tensor]], progress: Callable[[int], Any]) -> None:
    """Fill each of `shards` from the batches. A thread writes the files while the tower encodes the next."""
    writing = None
    with ThreadPoolExecutor(max_workers=1) as writer:
        for path, rows in shards.items():
            chunks, count = [], 0
            while count < len(rows):
                chunks.append(next(batches))
                count += len(chunks[-1]["pooled"])
                progress(len(chunks[-1]["pooled"]))
            if writing is not None:
                writing.result()         # raises what it raised; and never more than two shards are in memory
            header = {"key": name, "images": [stamps[row] for row in rows]}
            writing = writer.submit(_write, path, header, chunks)
        if writing is not None:
            writing.result()


def _write(path: Path, header: dict[str, Any], chunks: Sequence[Mapping[str, Tensor]]) -> None:
    tensors = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}      # (rows, v, ...)
    header = header | {"checksums": {key: checksum(values) for key, values in tensors.items()}}
    metadata = {"xrvlm": json.dumps(header)}
    if not path.is_file() and not path.is_dir():
        path.unlink(missing_ok=True)     # a pipe, which no writer of files replaces; the cache may
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def checksum(values: Tensor) -> str:
    """A hash of the sums of blocks of 512 KiB: as fast as memory is read, and no bit, page or block can change unseen.

    It is against damage, not against someone who would make two contents of one sum.
    """
    data = values.contiguous().reshape(-1).view(torch.uint8)                               # (bytes,)
    words = data[:len(data) // 8 * 8].view(torch.int64)                                    # (bytes / 8,)
    blocks = words[:len(words) // BLOCK * BLOCK].view(-1, BLOCK)
    # a few blocks at a time, so that a file is read from its begin to its end
    parts = *(few.sum(1) for few in blocks.split(8)), words[blocks.numel():], data[8 * len(words):]
    return sha256(b"".join(part.numpy().tobytes() for part in parts))[:16]


def _header(file: Any) -> dict[str, Any]:
    return parsed((file.metadata() or {}).get("xrvlm", "{}"))


def _shard_name(features: Iterable[str], stamps: Sequence[str]) -> str:
    """Equal shards have equal names, different ones different names."""
    return f"shard-{digest([sorted(features), *stamps])[:24]}.safetensors"
