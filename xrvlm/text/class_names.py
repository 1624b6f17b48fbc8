"""Other names for classes than their folders have: lists, whose order must be plain, and mappings."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from xrvlm.errors import UserError, option
from xrvlm.text.class_text import check_unique, check_words, few, find_text, lines, read_mapping

# words that have an order of their own, which is not that of their letters
COUNTED = tuple(words.split() for words in (
    "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx",
    "zero one two three four five six seven eight nine ten eleven twelve",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
    "monday tuesday wednesday thursday friday saturday sunday", "mon tue wed thu fri sat sun",
    "january february march april may june july august september october november december",
    "jan feb mar apr may jun jul aug sep oct nov dec", "spring summer autumn winter", "spring summer fall winter",
    "xs s m l xl xxl", "tiny small medium large huge", "low medium high", "none mild moderate severe",
    "no mild moderate severe proliferative"))


def read_list(name_or_path: str) -> tuple[str, ...]:
    """A shipped list of class names (prompts/class_names/<name>.txt), or a file: one name per line, or .json."""
    path = find_text(name_or_path, "class_names", ".txt", "class-name list")
    if path.suffix.lower() in (".csv", ".tsv"):
        raise UserError(f"{path} is a table: write the names alone, one per line, into a .txt file")
    found = tuple(lines(path))
    if not found:
        raise UserError(f"{path} holds no class name; write one per line, in the sorted order of the class folders")
    _check_no_columns(found, str(path))
    check_unique(found, f"class names in {path}")
    return found


def name_classes(folders: Sequence[str], names: str | Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...]:
    """The class name of each of `folders`.

    `names` is None (the folder names), a list in the order of `folders`, a mapping, a shipped list, or a .txt or .json
    file. Raises UserError if the names do not fit the folders.
    """
    if names is None:
        check_words(folders, "classes")
        return tuple(folders)
    origin = names if isinstance(names, str) else option("data.class_names")
    if isinstance(names, str) and names.lower().endswith(".json"):
        names = read_mapping(names, "class_names", "class-name list")
    if isinstance(names, Mapping):
        chosen = _by_folder(folders, names, origin)
    else:
        if isinstance(names, set | frozenset):
            raise UserError(f"{origin} is a set, which has no order; give a list, or {{class: name}}")
        chosen = read_list(names) if isinstance(names, str) else tuple(names)
        _check_count(chosen, folders, origin)
        check_no_permutation(folders, chosen)
        _check_no_columns(chosen, origin)
    wrong = [name for name in chosen if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise UserError(f"class name {wrong[0]!r} in {origin} is not a word; write every name as text")
    check_unique(chosen, f"class names in {origin}")
    return tuple(name.strip() for name in chosen)


def _check_count(names: Sequence[str], folders: Sequence[str], origin: str) -> None:
    if len(names) != len(folders):
        raise UserError(f"{origin} holds {len(names)} names for {len(folders)} classes; give one name per class, in "
                        f"this order: {few(folders, 10)}")


def names_of_sorted(known: Sequence[str], class_names: Any) -> tuple[str, ...]:
    """The name of each of `known`, sorted as text; a list of `class_names` is in the order of `list_order`."""
    if isinstance(class_names, str) and is_list(class_names):
        origin, class_names = class_names, read_list(class_names)
        _check_count(class_names, known, origin)
    listed = list_order(known, class_names)
    names = dict(zip(listed, name_classes(listed, class_names), strict=True))
    return tuple(names[key] for key in known)


def is_list(class_names: Any) -> bool:
    """Whether the names go by the order of the classes: a list, a shipped one or a .txt file, and no mapping."""
    return not (class_names is None or isinstance(class_names, Mapping) or str(class_names).lower().endswith(".json"))


def list_order(known: Sequence[str], class_names: Any) -> list[str]:
    """The classes in the order of a list of names; UserError where it is not plain whether 10 is before 2."""
    counted = sorted(known, key=lambda key: [(text, int(run or 0)) for text, run in re.findall(r"(\D*)(\d*)", key)])
    shown = sorted(known, key=_letters)      # as file managers and dictionaries sort: no capitals, accents, signs
    numbers = all(key.isdecimal() for key in known) and len({int(key) for key in known}) == len(known)
    orders = [counted, shown, sorted(known, key=lambda key: (key.casefold(), key)), _by_meaning(known), list(known)]
    unclear = orders.count(orders[-1]) < len(orders) or all(key.isdecimal() for key in known)
    if is_list(class_names) and not numbers and unclear:
        other = next((order for order in orders if order != list(known)), counted)
        apart = [place for place, (one, two) in enumerate(zip(other, known, strict=True)) if one != two]
        start = max(0, (apart or [0])[0] - 1)
        raise UserError(f"{option('data.class_names')} is a list, and the order of the classes is not plain: "
                        f"{few(other[start:], 3)} or {few(known[start:], 3)}? Give {{class: name}}, or a .json file "
                        "of it")
    return counted


def words_of(name: str) -> list[str]:
    """The words of "is_test", "isTest" or "grade IV", in small letters."""
    return [word.casefold() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _by_meaning(known: Sequence[str]) -> list[str]:
    """The classes in the order of `COUNTED`, where they differ in one such word: grade I, II ... IX; small, large."""
    words = [words_of(key) for key in known]
    columns = [column for column in zip(*words, strict=False) if len(set(column)) > 1]
    if len({len(row) for row in words}) == len(columns) == 1:
        for sequence in COUNTED:
            if set(columns[0]) <= set(sequence):
                place = {key: sequence.index(word) for key, word in zip(known, columns[0], strict=True)}
                return sorted(known, key=place.__getitem__)
    return list(known)


def _check_no_columns(names: Sequence[Any], origin: str) -> None:
    """UserError where a list of class names holds numbers or other columns beside the names: `0 daisy`, `0,daisy`."""
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        return
    counted = [found for name in names if (found := re.fullmatch(r"\s*(\d{1,9})[\s,;:.)\]-]+(\S.*)", name))]
    numbers, others = sorted(int(found[1]) for found in counted), {found[2] for found in counted}
    numbered = len(others) == len(names) and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])
    cells = [re.split(r"[\t,;]", name) for name in names]
    columns = list(zip(*cells, strict=True)) if len({len(row) for row in cells}) == 1 else []
    coded = any(all(re.fullmatch(r"\s*[a-z]*\d+\s*", cell) for cell in column[1:]) for column in columns)
    if numbered or "\t" in names[-1] or (coded and len(columns) > 1 and len(names) > 2):
        raise UserError(f"{origin} holds more than names, such as {names[-1]!r}: write the names alone, one for each "
                        "class in the order of the classes, or a .json file of {class: name}")


def _all_words(key: str) -> frozenset[str]:
    """In any script, numbers too, whatever the capitals."""
    return frozenset(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", key).casefold()))


def _letters(key: str) -> tuple[str, str]:
    plain = unicodedata.normalize("NFKD", key).casefold()
    return "".join(sign for sign in plain if sign.isalnum()), key


def check_no_permutation(known: Sequence[str], names: Sequence[Any]) -> None:
    """UserError where a list gives a class the name that another class has: a list in another order."""
    before = {_letters(key)[0]: key for key in known}
    for key, name in zip(known, names, strict=True):
        other = before.get(_letters(name)[0]) if isinstance(name, str) else None
        if other is not None and _letters(other)[0] != _letters(key)[0]:
            raise UserError(f"{option('data.class_names')} is a list that calls {key!r} {name!r}, which is another "
                            f"class: it is in another order than the classes ({few(known, 3)}). Correct the order, or "
                            "give {class: name} or a .json file of it")
    words = {key: _all_words(key) for key in known}
    called = {key: _all_words(name) for key, name in zip(known, names, strict=True) if isinstance(name, str)}
    strange = [key for key in called if words[key] and not words[key] <= called[key]]        # without its own words
    for key in strange:
        if other := next((each for each in strange if words[each] <= called[key]), None):
            raise UserError(f"{option('data.class_names')} is a list that calls {key!r} by words of another class, "
                            f"{other!r}, which it calls otherwise: it is in another order than the classes "
                            f"({few(known, 3)}). Correct the order, or give {{class: name}} or a .json file of it")


def _by_folder(folders: Sequence[str], names: Mapping[str, str], origin: str) -> tuple[str, ...]:
    if extra := [folder for folder in names if folder not in folders]:
        raise UserError(f"{origin} names classes that the data set does not have: {few(map(repr, extra))}; "
                        f"its classes are {few(folders, 10)}")
    if missing := [folder for folder in folders if folder not in names]:
        raise UserError(f"{origin} has no name for {len(missing)} of {len(folders)} classes: "
                        f"{few(map(repr, missing))}; add them")
    return tuple(names[folder] for folder in folders)
