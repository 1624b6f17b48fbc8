"""Which setting each row of a table is compared with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xrvlm.errors import UserError
from xrvlm.reporting.results import VARIANTS, Setting, names, variant

ZERO_SHOT = "zero_shot"                  # the method's name


@dataclass(frozen=True)
class Baseline:
    """What the rows of a table are compared with: one method at each of its shots, or zero-shot of both kinds of text.

    `settings` is empty where the table has no such method, `title` says in words what it is.
    """

    settings: tuple[Setting, ...] = ()
    title: str = ""

    def of(self, row: Setting) -> Setting | None:
        """The setting that the row is compared with, None for one of the baseline's own and where none fits.

        Zero-shot fits every number of shots; of two kinds of text the row's own counts.
        """
        fits = [other for other in self.settings if other.first.shots in (row.first.shots, 0)]
        alike = [other for other in fits if _reads_descriptions(other) == _reads_descriptions(row)]
        return None if row in self.settings else next(iter(alike or fits), None)


def baseline_of(rows: Sequence[Setting], wanted: str | None) -> Baseline:
    """The baseline among one table's rows.

    `wanted` is a name of `settings.names`, or a label or a method's name and perhaps what tells its rows apart:
    "zero_shot prompts=descriptions". Zero-shot that is there by names and by descriptions stands for both, a row's own
    kind of text counting; of several of a kind the best does, for no method should look good beside a weak one.
    None: the best zero-shot of all, a transductive one only where there is no other. Raises UserError where `wanted`
    fits several trained methods.
    """
    told = names(rows)
    if wanted is None:
        free = [row for row in rows if row.first.shots == 0]
        plain = [row for row in free if row.first.method == ZERO_SHOT]
        return _told(_best(plain or [row for row in free if not row.first.transductive] or free), told)
    found = _fitting(rows, wanted, told)
    if all(row.first.shots == 0 for row in found):
        kinds = ([row for row in found if _reads_descriptions(row) is kind] for kind in (False, True))
        return _told([row for kind in kinds for row in _best(kind)], told)
    if len(several := dict.fromkeys(told[row] for row in found)) > 1:
        raise UserError(f"baseline={wanted} may be any of: {'; '.join(several)}; give one of these names whole"
                        f"{_hint(wanted, found, told)}")
    return _told(found, told)


def _fitting(rows: Sequence[Setting], wanted: str, told: Mapping[Setting, str]) -> list[Setting]:
    """By the first that fits any: the whole name, the label, the method's name."""
    name, *pairs = re.split(r"\s+(?=\w+=\S*(?:\s|$))", wanted.strip())
    asked = [pair.strip().split("=", 1) for pair in pairs]
    having = [row for row in rows if all(_has(row, option, value) for option, value in asked)]
    fits = ([row for row in rows if wanted == told[row]],
            [row for row in having if name in (row.label, row.first.label)],
            [row for row in having if _plain(name) == _plain(row.first.label)],      # method=tip_adapter_f
            [row for row in having if name == row.first.method])
    return next(filter(None, fits), [])


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _hint(wanted: str, rows: Sequence[Setting], told: Mapping[Setting, str]) -> str:
    """What would be enough to mean the first of the rows."""
    first, others = rows[0], [row for row in rows if told[row] != told[rows[0]]]
    for option in (*VARIANTS, *first.first.options):
        value = str(_value(first, option))
        if not any(_has(other, option, value) for other in others) and not re.search(r"\s", value):
            return f", or add what only it has: \"baseline={wanted} {option}={value}\""
    return ""


def _value(row: Setting, option: str) -> object:
    return variant(row.first, option) if option in VARIANTS else row.first.options.get(option)


def _has(row: Setting, option: str, value: str) -> bool:
    return value.lower() == str(_value(row, option)).lower()


def _best(rows: Sequence[Setting]) -> list[Setting]:
    return sorted(rows, key=lambda row: row.percent(row.headline)[0])[-1:]


def _told(rows: Sequence[Setting], told: Mapping[Setting, str]) -> Baseline:
    several = " or ".join(dict.fromkeys(told[row] for row in rows))
    both = len({_reads_descriptions(row) for row in rows}) > 1
    return Baseline(tuple(rows), f"zero-shot of the row's own kind of text ({several})" if both else several)


def _reads_descriptions(row: Setting) -> bool:
    return "descriptions" in (row.first.prompts or "")
