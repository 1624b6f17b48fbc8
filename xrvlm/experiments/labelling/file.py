"""The file of labels that `predict` writes: a table (.csv), or an object a line (.jsonl). docs/reference/files.md."""

import csv
import io
import json
import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from xrvlm.errors import UserError, option
from xrvlm.evaluation.metrics import as_cell, from_cell
from xrvlm.evaluation.unknown import UNKNOWN
from xrvlm.experiments.predict import Prediction
from xrvlm.files import append_text, check_replaceable, file_bytes, write_text
from xrvlm.views import SUFFIXES

log = logging.getLogger(__name__)
JSON_LINES = (".jsonl", ".ndjson")
MORE = ("known", "set", "taxon", "certainty")      # the columns of a calibrated model, before the error


class LabelFile:
    """Written as it goes to a file beside it, which becomes it in the end."""

    def __init__(self, path: Path, key: str, topk: int, *, more: bool, joint: bool = False):
        """`key` is of this model, these photos and what is asked, no others; `more`: with the columns `MORE`; `joint`:
        with a column of domains.
        """
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file with {option('out')}, such as {path / 'labels.csv'}")
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"{path} has the name of an image; name a .csv or .jsonl file with {option('out')}")
        if path.suffix.lower() not in ("", ".csv", ".txt", *JSON_LINES):
            raise UserError(f"{path} is written as a table (.csv) or as an object a line (.jsonl): name one of these "
                            f"with {option('out')}")
        check_replaceable(path)
        _check_written_here(path)
        self.path, self.topk, self.more, self.joint = path, topk, more, joint
        self.json = path.suffix.lower() in JSON_LINES
        self.part = path.with_name(f"{path.name}.{key[:10]}.part")

    @property
    def header(self) -> str:
        ranks = [f"{word}_{rank}" for rank in range(1, self.topk + 1) for word in ("class", "probability")]
        columns = ["image", "label", "prediction", *ranks, *(MORE if self.more else ()),
                   *(["domain"] if self.joint else []), "error"]
        return "" if self.json else ",".join(columns) + "\n"

    def begun(self, files: Collection[str], known: Collection[str]) -> dict[str, Prediction]:
        """What a call that was stopped has labelled of `files`. A line that was cut or damaged is dropped."""
        try:
            # not splitlines, which also ends a line at signs that a file name may hold
            *lines, _ = file_bytes(self.part).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            write_text(self.part, self.header)
            return {}
        except OSError as error:
            raise UserError(f"cannot read {self.part}: {error.strerror}; delete it") from error
        read = [self._read(f"{line}\n") for line in lines[0 if self.json else 1:]]
        found = {each.image: each for each in read if each is not None and each.image in files
                 and all(name in known and 0 <= chance <= 1 for name, chance in each.classes)}
        self.write(found.values())
        if found:
            log.info("going on: %d images are in %s", len(found), self.part)
        return found

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Replaces what was written by these."""
        write_text(self.part, self.header + "".join(map(self._line, predictions)))

    def add(self, prediction: Prediction) -> None:
        append_text(self.part, self._line(prediction))

    def _read(self, line: str) -> Prediction | None:
        """What `_line` wrote, of an image that could be read; None for a line that it would not write so."""
        try:
            found = _from_object(json.loads(line)) if self.json else self._from_cells(next(csv.reader([line])))
        except (ValueError, TypeError, KeyError, IndexError, csv.Error):
            return None                  # of an image that could not be read, too: it may be readable by now
        return found if self._line(found) == line else None

    def _line(self, prediction: Prediction) -> str:
        if self.json:
            # ASCII: a name may hold what UTF-8 cannot say
            return json.dumps(_object(prediction, self.more, self.joint)) + "\n"
        cells = [cell for name, probability in prediction.classes for cell in (as_cell(name), f"{probability:.6f}")]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(
            [as_cell(prediction.image), "", as_cell(prediction.prediction), *cells,
             *[""] * (2 * self.topk - len(cells)), *(_cells(prediction) if self.more else ()),
             *([as_cell(prediction.domain or "")] if self.joint else []), " ".join(prediction.problem.split())])
        return text.getvalue()

    def _from_cells(self, row: list[str]) -> Prediction:
        image, _, said, *cells = row[:3 + 2 * self.topk]
        chances = tuple((from_cell(name), float(chance)) for name, chance in zip(cells[::2], cells[1::2], strict=True))
        more = row[3 + 2 * self.topk:-1]
        domain = from_cell(more.pop()) if self.joint else None
        known, held, taxon, certainty = more if self.more else [""] * 4
        return Prediction(
            from_cell(image), chances, known=float(known) if known else None,
            unknown=bool(known) and from_cell(said) != chances[0][0], held=tuple(json.loads(held)) if held else None,
            taxon=(from_cell(taxon), float(certainty)) if certainty else None, domain=domain)


def _check_written_here(path: Path) -> None:
    """UserError where `path`, which would be replaced, is a file of something else, or was corrected by hand."""
    text = file_bytes(path).decode("utf-8-sig", "replace") if path.is_file() else ""
    if not text.strip():
        return
    try:
        changed = next((name for name, label, said, best in _answers_in(path, text)
                        if label or said not in ("", best, UNKNOWN)), None)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, csv.Error):
        raise UserError(f"{path} is there and is no file of answers, which would replace it: name another file with "
                        f"{option('out')}, or delete it") from None
    if changed is not None:
        raise UserError(f"{path} holds labels by hand, such as of {changed}, which would be lost: name another file "
                        f"with {option('out')}, or move it away")


def _answers_in(path: Path, text: str) -> Iterator[tuple[str, str, str, str]]:
    """(image, label, prediction, most probable class) of each line, also of a table that a spreadsheet saved."""
    if path.suffix.lower() in JSON_LINES:
        for value in map(json.loads, filter(str.strip, text.split("\n"))):
            best = value["classes"][0][0] if value["classes"] else ""
            yield value["image"], value.get("label") or "", value["prediction"] or "", best
        return
    first = text.split("\n", 1)[0]
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    if not {"image", "label", "prediction", "class_1"} <= {*(table.fieldnames or ())}:
        raise ValueError("no table of answers")
    for row in table:
        yield from_cell(row["image"]), row["label"], from_cell(row["prediction"]), from_cell(row["class_1"])


def _cells(prediction: Prediction) -> list[str]:
    taxon, certainty = prediction.taxon if prediction.taxon and prediction.taxon[0] else ("", None)
    return ["" if prediction.known is None else f"{prediction.known:.6f}",
            "" if prediction.held is None else json.dumps(prediction.held, ensure_ascii=False),
            as_cell(taxon), "" if certainty is None else f"{certainty:.6f}"]


def _object(prediction: Prediction, more: bool, joint: bool) -> dict[str, Any]:
    taxon, certainty = prediction.taxon if prediction.taxon and prediction.taxon[0] else (None, None)
    also = {"known": _rounded(prediction.known), "unknown": prediction.unknown,
            "set": None if prediction.held is None else list(prediction.held), "taxon": taxon,
            "certainty": _rounded(certainty)}
    return {"image": prediction.image, "prediction": prediction.prediction or None,
            "classes": [[name, _rounded(chance)] for name, chance in prediction.classes], **(also if more else {}),
            **({"domain": prediction.domain} if joint else {}),
            "error": " ".join(prediction.problem.split()) or None}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _from_object(value: dict[str, Any]) -> Prediction:
    held, certainty = value.get("set"), value.get("certainty")
    return Prediction(
        value["image"], tuple((name, chance) for name, chance in value["classes"]), known=value.get("known"),
        unknown=value.get("unknown", False), held=None if held is None else tuple(held),
        taxon=None if certainty is None else (value["taxon"], certainty), domain=value.get("domain"))
