"""A feature bank on disk: shards in safetensors, memory-mapped, each written whole, so an interruption loses one."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xrvlm.backbone import Features
from xrvlm.distributed import together
from xrvlm.draws import generator
from xrvlm.files import digest, write_atomically, write_json

log = logging.getLogger(__name__)
FORMAT = 1
SHARD_BYTES = 64e6


@dataclass
class FeatureBank:
    """Features of n images in v views, view 0 as the evaluation transform shows it; float32 when read."""

    shards: Sequence[Mapping[str, Tensor]]           # each (rows, v, ...), memory-mapped; or one on a GPU
    rows_per_shard: int
    ids: tuple[str, ...]
    labels: Tensor                                   # (n,)
    views: int                                       # augmented ones: v - 1
    seed: int

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

    def select(self, rows: Tensor, views: Tensor) -> Features:
        """float32 features of images `rows` (b,) in views `views` (b,)."""
        if len(self.shards) == 1:
            return Features(**{name: values[rows, views].float() for name, values in self.shards[0].items()})
        shard = rows // self.rows_per_shard                                                # (b,)
        chosen: dict[str, Tensor] = {}
        for index in shard.unique().tolist():
            here = (shard == index).nonzero().squeeze(1)                                   # (k,)
            local = rows[here] - index * self.rows_per_shard
            for name, values in self.shards[index].items():
                picked = values[local, views[here]].float()                                # (k, ...)
                chosen.setdefault(name, picked.new_empty(len(rows), *picked.shape[1:]))[here] = picked
        return Features(**chosen)

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for shard in self.shards for values in shard.values())

    def resident(self, device: torch.device) -> "FeatureBank":
        """The same bank in the memory of `device`, as one shard."""
        whole = {name: values.new_empty((len(self.labels), *values.shape[1:]), device=device)
                 for name, values in self.shards[0].items()}
        for index, shard in enumerate(self.shards):
            for name, values in shard.items():           # shard by shard: a copy of the whole has no room beside it
                whole[name][index * self.rows_per_shard:][:len(values)].copy_(values)
        return replace(self, shards=[whole], rows_per_shard=max(1, len(self.labels)))


def open_bank(folder: Path, key: dict[str, Any], encode: Callable[[Sequence[range]], Iterable[Features]],
              row_shapes: Mapping[str, torch.Size], *, dtype: torch.dtype, labels: Tensor, seed: int,
              progress: Callable[[int], Any]) -> FeatureBank:
    """The bank of `key` below `folder`. Shards that are missing or damaged are made with one call of `encode`:
    it gets the rows of each and returns batches in this order, none of which holds rows of two shards.

    Several processes may ask for one bank: the first makes it, the others wait for it. Those of one run make it
    together, each every so many shards; what is in them does not depend on how many they are.
    """
    key = key | {"format": FORMAT}
    name, ids = digest(key), tuple(key["ids"])
    place = folder / name[:24]
    row_bytes = sum(shape.numel() for shape in row_shapes.values()) * torch.finfo(dtype).bits // 8
    rows_per_shard = max(1, int(SHARD_BYTES / row_bytes))
    every = {place / f"shard-{index:05d}.safetensors": range(start, min(start + rows_per_shard, len(ids)))
             for index, start in enumerate(range(0, len(ids), rows_per_shard))}
    group = together()
    with group.alone(place / ".lock"):
        own = {path: every[path] for path in [*every][group.rank::group.world]}
        shards = {path: _read(path, name, len(rows), row_shapes) for path, rows in own.items()}
        missing = {path: rows for path, rows in own.items() if shards[path] is None}
        progress(sum(map(len, own.values())) - sum(map(len, missing.values())))
        if missing:
            _make(missing, name, encode(list(missing.values())), dtype, progress)
        group.meet()
        for path, rows in every.items():
            shards[path] = shards.get(path) or _read(path, name, len(rows), row_shapes)
            assert shards[path] is not None, f"{path} cannot be read back"
        if group.first and not (place / "key.json").exists():
            write_json(place / "key.json", key)      # for people: what this folder holds
    whole = [shard for path in every if (shard := shards[path]) is not None]
    return FeatureBank(whole, rows_per_shard, ids, labels, row_shapes["pooled"][0] - 1, seed)


def _read(path: Path, name: str, rows: int, row_shapes: Mapping[str, torch.Size]) -> dict[str, Tensor] | None:
    """The memory-mapped shard, or None where there is none that fits."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("xrvlm", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}    # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("damaged feature shard %s (%s): its images are encoded again", path, error)
        return None
    shapes = {key: value.shape for key, value in tensors.items()}
    if header.get("key") != name or shapes != {key: (rows, *shape) for key, shape in row_shapes.items()}:
        log.warning("feature shard %s is not what its place says: its images are encoded again", path)
        return None
    return tensors


def _make(shards: Mapping[Path, range], name: str, encoded: Iterable[Features], dtype: torch.dtype,
          progress: Callable[[int], Any]) -> None:
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
            writing = writer.submit(_write, path, name, parts)
        if writing is not None:
            writing.result()


def _on_disk(batch: Features, dtype: torch.dtype) -> dict[str, Tensor]:
    """Converted where the tower ran, then brought to the CPU."""
    return {key: (value if key == "pooled" else value.to(dtype)).cpu() for key, value in vars(batch).items()
            if value is not None}


def _write(path: Path, name: str, parts: Sequence[Mapping[str, Tensor]]) -> None:
    tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}          # (rows, v, ...)
    metadata = {"xrvlm": json.dumps({"key": name})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))
