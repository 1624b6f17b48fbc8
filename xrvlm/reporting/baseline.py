"""The baseline of a table: the row, or rows, that the others are compared with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xrvlm.errors import UserError, option
from xrvlm.reporting.results import VARIANTS, Row, display_names, variant

ZERO_SHOT = "zero_shot"                  # the method's name


@dataclass(frozen=True)
class Baseline:
    """What the rows of a table are compared with: one method at each of its shots, or zero-shot of both kinds of text.

    `rows` is empty where the table has no such method, `title` names it in the text of a report.
    """

    rows: tuple[Row, ...] = ()
    title: str = ""

    def of(self, row: Row) -> Row | None:
        """The row that `row` is compared with; None if `row` belongs to the baseline or none fits.

        Zero-shot fits every number of shots. If it exists with class names and with descriptions, the one with the kind
        of text that `row` reads is taken.
        """
        fits = [other for other in self.rows if other.first.shots in (row.first.shots, 0)]
        alike = [other for other in fits if _reads_descriptions(other) == _reads_descriptions(row)]
        return None if row in self.rows else next(iter(alike or fits), None)


def baseline_of(rows: Sequence[Row], wanted: str | None) -> Baseline:
    """The baseline among one table's rows.

    Zero-shot may exist with class names and with descriptions: then the best of each is taken, and each row is compared
    with the one that reads the same kind of text.

    Args:
        rows: of one table.
        wanted: a name that `display_names` gives, or a label or the registry name of a method, then perhaps options:
            "zero_shot prompts=descriptions". None: the best zero-shot, a transductive one only where there is no other.

    Raises:
        UserError: `wanted` fits several trained methods.
    """
    names = display_names(rows)
    if wanted is None:
        return _baseline(_best_zero_shot(rows), names)
    found = _fitting(rows, wanted, names)
    if all(row.first.shots == 0 for row in found):
        kinds = ([row for row in found if _reads_descriptions(row) is kind] for kind in (False, True))
        return _baseline([row for kind in kinds for row in _best(kind)], names)
    if len(several := dict.fromkeys(names[row] for row in found)) > 1:
        raise UserError(f"{option('baseline', wanted)} fits several rows: {'; '.join(several)}; give one of these "
                        f"names in full{_hint(wanted, found, names)}")
    return _baseline(found, names)


def _best_zero_shot(rows: Sequence[Row]) -> list[Row]:
    zero_shot = [row for row in rows if row.first.shots == 0]
    plain = [row for row in zero_shot if row.first.method == ZERO_SHOT]
    return _best(plain or [row for row in zero_shot if not row.first.transductive] or zero_shot)


def _fitting(rows: Sequence[Row], wanted: str, names: Mapping[Row, str]) -> list[Row]:
    """The rows whose display name is `wanted`; else those with this label, else those of this method."""
    name, *pairs = re.split(r"\s+(?=\w+=\S*(?:\s|$))", wanted.strip())
    asked = [pair.strip().split("=", 1) for pair in pairs]
    having = [row for row in rows if all(_has(row, key, value) for key, value in asked)]
    fits = ([row for row in rows if wanted == names[row]],
            [row for row in having if name in (row.label, row.first.label)],
            [row for row in having if _plain(name) == _plain(row.first.label)],      # method=tip_adapter_f
            [row for row in having if name == row.first.method])
    return next(filter(None, fits), [])


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _hint(wanted: str, rows: Sequence[Row], names: Mapping[Row, str]) -> str:
    """An option that only the first of the rows has, as the end of a sentence."""
    first, others = rows[0], [row for row in rows if names[row] != names[rows[0]]]
    for key in (*VARIANTS, *first.first.options):
        value = str(_value(first, key))
        if not any(_has(other, key, value) for other in others) and not re.search(r"\s", value):
            return f", or add an option that only one has: \"{option('baseline', f'{wanted} {key}={value}')}\""
    return ""


def _value(row: Row, key: str) -> object:
    return variant(row.first, key) if key in VARIANTS else row.first.options.get(key)


def _has(row: Row, key: str, value: str) -> bool:
    return value.lower() == str(_value(row, key)).lower()


def _best(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.percent(row.headline)[0])[-1:]


def _baseline(rows: Sequence[Row], names: Mapping[Row, str]) -> Baseline:
    several = " or ".join(dict.fromkeys(names[row] for row in rows))
    both = len({_reads_descriptions(row) for row in rows}) > 1
    return Baseline(tuple(rows), f"zero-shot of the row's own kind of text ({several})" if both else several)


def _reads_descriptions(row: Row) -> bool:
    return "descriptions" in (row.first.prompts or "")
