"""One JSON line a run, and the files that stand in a run's folder."""

import csv
import io
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from xrvlm import files
from xrvlm.errors import UserError
from xrvlm.evaluation import metrics

logger = logging.getLogger(__name__)

RESULTS, PREDICTIONS, LOSSES, METRICS_FILE = "results.jsonl", "predictions.csv", "losses.csv", "metrics.json"
# what tables show: of every run, and of one that was also scored on classes that it was not trained on
METRICS = {"top1": "Top-1", "top5": "Top-5", "mean_per_class": "Per class", "macro_f1": "Macro-F1", "ece": "ECE"}
BASE_TO_NEW = {"top1": "Base", "new_top1": "New", "harmonic_mean": "Harmonic", "all_top1": "All"}


@dataclass(frozen=True)
class RunRecord:
    """One line of results.jsonl. The kinds of the fields are checked when a line is read."""

    method: str                 # the name of its configuration: "xr_vlm"
    label: str                  # the name that tables show
    head: str | None            # of the relations, where the method has one
    prompts: str | None         # "names", "descriptions", "learned", "part_descriptions" ...
    recipe: str | None
    data: str
    world: int | None           # which of the drawn worlds, where the data are drawn
    backbone: str
    shots: int | str            # images a class; "all"; 0 is zero-shot
    seed: int
    label_budget: int           # labelled images used, those of validation included
    transductive: bool
    selection: str | None       # "last" or "val"
    split: str                  # its fingerprint
    metrics: dict               # the five of METRICS, as fractions of 1; those of BASE_TO_NEW where it is the protocol
    train_seconds: float | int
    learned_parameters: int
    features: str | None        # "cached" or "online"
    versions: dict
    run: str                    # the run's folder, relative to the folder of results.jsonl
    setting: str = ""           # hash of all options but the seed: what may be averaged over seeds
    series: str = ""            # hash of all options but the seed and the shots: what may be joined over shots
    options: dict = field(default_factory=dict)    # of the method, where they are not its defaults
    # or "base_to_new": METRICS are of the base classes; "transfer": of other data; "all_images": there is no test part
    protocol: str = "few_shot"
    tested: str = ""            # hash of the test images
    trained_on: str = ""        # of a transfer: the data set that the run learned from

    def __post_init__(self) -> None:
        wrong = [field.name for field in fields(self) if not isinstance(getattr(self, field.name), field.type)]  # pyright: ignore
        wrong += [f"metrics.{name}" for name in (*METRICS, *self.shown) if "metrics" not in wrong
                  and not isinstance(self.metrics.get(name), float | int)]
        if isinstance(self.shots, str) and self.shots != "all":
            wrong.append("shots")
        if wrong:
            raise ValueError(f"missing or of the wrong kind: {', '.join(dict.fromkeys(wrong))}")

    @property
    def shown(self) -> dict[str, str]:
        """The metrics that a table shows of this run, with their headings."""
        return BASE_TO_NEW if self.protocol == "base_to_new" else METRICS


def append_record(folder: Path, record: RunRecord) -> None:
    """Add the record to `folder/results.jsonl`; it takes the place of an older line of the same run.

    Never refuses because of what stands there: lines that cannot be read are kept as they are, with a warning.
    """
    path, line = folder / RESULTS, json.dumps(asdict(record))    # ASCII: a line torn anywhere is still valid UTF-8

    def change(text: str) -> str:
        kept = [old for old in text.split("\n") if old.strip() and _run_of(old, path) != record.run]
        return "\n".join([*kept, line, ""])

    files.rewrite_locked(path, change)


def read_record(path: Path) -> RunRecord:
    """The record.json of a run's folder; UserError where it is damaged."""
    fix = "start this run again with force=true"
    try:
        return RunRecord(**files.read_json(path, fix))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); {fix}") from error


def read_records(path: Path) -> list[RunRecord]:
    """The records of a .jsonl file, or of every results.jsonl below a folder; each run once, the last line wins.

    Their `run` is relative to the folder `path`, or to the folder of the file. Keys of a newer version are ignored.
    """
    root, sources = (path, sorted(path.rglob(RESULTS))) if path.is_dir() else (path.parent, [path])
    found: dict[Path, RunRecord] = {}
    for source in sources:
        if not source.is_file():
            raise UserError(f"there is no {source}; pass a runs folder or a {RESULTS}")
        for number, line in enumerate(source.read_bytes().split(b"\n"), start=1):
            if line.strip():
                record = _parse(line, f"{source}, line {number}")
                folder = source.parent / record.run
                found[folder.resolve()] = replace(record, run=Path(os.path.relpath(folder, root)).as_posix())
    if not found:
        raise UserError(f"{path} holds no results yet; run `xrvlm adapt` first, or pass the folder that it wrote to")
    return list(found.values())


def _parse(line: bytes, where: str) -> RunRecord:
    try:
        value = json.loads(line.decode("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        known: dict[str, Any] = {field.name: value.get(field.name) for field in fields(RunRecord)}
        known |= {"setting": known["setting"] or "", "series": known["series"] or "",
                  "protocol": known["protocol"] or "few_shot", "trained_on": known["trained_on"] or "",
                  "tested": known["tested"] or "",
                  "options": {} if known["options"] is None else known["options"]}    # older lines
        return RunRecord(**known)
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); delete that line, then give the `xrvlm adapt` command of its "
                        "run again (a finished run is not trained twice, it only writes its line anew)") from error


def _run_of(line: str, path: Path) -> str | None:
    try:
        return json.loads(line)["run"]
    except (ValueError, TypeError, KeyError):
        logger.warning("%s holds a damaged line, which is kept as it is: %.60s", path, line)
        return None


def write_scores(folder: Path, ids: Sequence[str], labels: Tensor, probabilities: Tensor, classes: Sequence[str],
                 suffix: str = "") -> dict[str, float]:
    """metrics.json and predictions.csv of labelled images, `suffix` behind both names; returns the summary."""
    summary = metrics.summarise(probabilities, labels, classes)
    write_metrics(_suffixed(folder / METRICS_FILE, suffix), summary, metrics.details(probabilities, labels, classes))
    write_predictions(_suffixed(folder / PREDICTIONS, suffix), ids, labels, probabilities, classes)
    return summary


def _suffixed(path: Path, suffix: str) -> Path:
    return path.with_stem(path.stem + suffix)


def write_metrics(path: Path, summary: dict, details: dict) -> None:
    """metrics.json: {"summary": metrics.summarise(...), "per_class": [...], "most_confused": [...]}."""
    files.write_json(path, {"summary": summary, **details})


def write_predictions(path: Path, ids: Sequence[str], labels: Tensor | None, probabilities: Tensor,
                      classes: Sequence[str], *, topk: int = 5) -> None:
    """predictions.csv: image, label (empty where unknown), prediction, class_1, probability_1, ... class_k."""
    values, order = (part[:, :topk].tolist() for part in metrics.finite(probabilities).float().sort(
        dim=1, descending=True, stable=True))                                # both (n, k)
    truths = [""] * len(ids) if labels is None else [classes[label] for label in labels.tolist()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    places = range(1, min(topk, len(classes)) + 1)
    columns = (f"{word}_{place}" for place in places for word in ("class", "probability"))
    writer.writerow(["image", "label", "prediction", *columns])
    for image, truth, chances, indices in zip(ids, truths, values, order, strict=True):
        best = [(classes[index], f"{chance:.6f}") for index, chance in zip(indices, chances, strict=True)]
        writer.writerow([image, truth, best[0][0], *(cell for pair in best for cell in pair)])
    # file names of other encodings reach Python as lone surrogates, which UTF-8 cannot say
    files.write_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8"))


def write_losses(folder: Path, losses: Sequence[dict]) -> None:
    """losses.csv: epoch, loss, learning_rate and, where there is one, val_top1."""
    text = io.StringIO()
    columns = ["epoch", "loss", "learning_rate", *(["val_top1"] if any("val_top1" in row for row in losses) else [])]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(losses)
    files.write_text(folder / LOSSES, text.getvalue())
