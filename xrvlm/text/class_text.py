"""The language side of a data set: class names, templates, descriptions and part sentences, by name or by path."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xrvlm.errors import UserError, unknown
from xrvlm.files import packaged, read_json, user_path


@dataclass(frozen=True)
class ClassText:
    """The language side of a data set, rendered once."""

    names: tuple[str, ...]                             # the classes as the data set calls them
    prompts: tuple[tuple[str, ...], ...]               # per class, full sentences: an ensemble
    parts: tuple[tuple[str, ...], ...] | None = None   # per class, one sentence a part
    part_names: tuple[str, ...] | None = None
    kind: Literal["names", "descriptions"] = "names"   # what `prompts` were made of: for the run's record


def class_text(classes: Sequence[str], *, templates: str | Sequence[str] = "photo",
               descriptions: str | Mapping[str, Any] | None = None,
               parts: str | Mapping[str, Any] | None = None) -> ClassText:
    """Sentences for `classes`: each name in each template, or its `descriptions` where these are given.

    `templates`: a shipped list, a .txt file, one template or several. `descriptions`: {class: sentence or sentences}.
    `parts`: {class: {part: sentence}}. Both as a .json file, by shipped name, or in memory; further classes in them
    are allowed, a missing one raises UserError.
    """
    names = tuple(classes)
    check_unique(names, "class names")
    prompts = _render(names, templates) if descriptions is None else _described(names, descriptions)
    part_names, sentences = (None, None) if parts is None else _part_sentences(names, parts)
    return ClassText(names, prompts, sentences, part_names, "names" if descriptions is None else "descriptions")


def templates(name_or_path: str) -> tuple[str, ...]:
    """A shipped template list (prompts/templates/<name>.txt) or a .txt file: one sentence a line, each with one {}."""
    path = _find(name_or_path, "templates", ".txt", "template list")
    found = _lines(path)
    if not found:
        raise UserError(f"{path} holds no template; write one a line, such as 'a photo of a {{}}.'")
    return tuple(_checked_template(line, f"in {path}") for line in found)


def class_names(name_or_path: str) -> tuple[str, ...]:
    """A shipped list of class names (prompts/class_names/<name>.txt) or a .txt file: one name a line."""
    path = _find(name_or_path, "class_names", ".txt", "class-name list")
    found = tuple(_lines(path))
    if not found:
        raise UserError(f"{path} holds no class name; write one a line, in the sorted order of the class folders")
    check_unique(found, f"class names in {path}")
    return found


def name_classes(folders: Sequence[str], names: str | Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...]:
    """What to call each of `folders`: their own names, a list in their order, a shipped list, or a .txt or .json file.

    Raises UserError that says what differs where the names do not fit the folders.
    """
    if names is None:
        return tuple(folders)
    origin = names if isinstance(names, str) else "data.class_names"
    if isinstance(names, str) and names.lower().endswith(".json"):
        names = _read_mapping(names, "class_names", "class-name list")
    if isinstance(names, Mapping):
        chosen = _by_folder(folders, names, origin)
    else:
        chosen = class_names(names) if isinstance(names, str) else tuple(names)
        if len(chosen) != len(folders):
            raise UserError(f"{origin} holds {len(chosen)} names for {len(folders)} classes; give one name a class, "
                            f"in this order: {few(folders, 10)}")
    wrong = [name for name in chosen if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise UserError(f"class name {wrong[0]!r} in {origin} is not a word; write every name as text")
    check_unique(chosen, f"class names in {origin}")
    return tuple(name.strip() for name in chosen)


def readable(name: str) -> str:
    """A class name as it stands in a sentence: `_` becomes a space, accents one character whatever the file system."""
    return unicodedata.normalize("NFC", name).replace("_", " ")


def few(names: Iterable[str], limit: int = 5) -> str:
    """`a, b, c and 7 more`: the first `limit` names."""
    known = list(names)
    return ", ".join(known[:limit]) + (f" and {len(known) - limit} more" if len(known) > limit else "")


def check_unique(names: Sequence[str], what: str) -> None:
    """UserError where two of `names` read the same."""
    seen: dict[str, str] = {}
    for name in names:
        if (key := readable(name)) in seen:
            raise UserError(f"duplicate {what}: {seen[key]!r} and {name!r}; give every class a name of its own")
        seen[key] = name


def _render(names: tuple[str, ...], wanted: str | Sequence[str]) -> tuple[tuple[str, ...], ...]:
    if not isinstance(wanted, str):
        chosen = tuple(_checked_template(line, "in text.templates") for line in wanted)
        if not chosen:
            raise UserError("text.templates is empty; give one template at least, such as 'a photo of a {}.'")
    elif "{" in wanted:    # no list is called so: the template itself
        chosen = (_checked_template(wanted, "in text.templates"),)
    else:
        chosen = templates(wanted)
    return tuple(tuple(template.format(readable(name)) for template in chosen) for name in names)


def _checked_template(line: str, where: str) -> str:
    if line.count("{}") != 1 or line.count("{") != 1 or line.count("}") != 1:
        raise UserError(f"template {line!r} {where} must hold exactly one {{}}, where the class name goes")
    return line


def _described(names: tuple[str, ...], descriptions: str | Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    table, where = _class_table(names, descriptions, "descriptions")
    sentences = []
    for name in names:
        given = table[readable(name)]
        found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
        if not found or not all(_is_sentence(sentence) for sentence in found):
            raise UserError(f"the descriptions of class {name!r} in {where} must be a sentence or a list of sentences, "
                            "none of them empty")
        sentences.append(found)
    return tuple(sentences)


def _part_sentences(names: tuple[str, ...], parts: str | Mapping[str, Any],
                    ) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    table, where = _class_table(names, parts, "parts")
    rows = [table[readable(name)] for name in names]
    for name, row in zip(names, rows, strict=True):
        if not isinstance(row, Mapping) or not row:
            raise UserError(f"the parts of class {name!r} in {where} must be {{part: sentence}}, one part at least")
        for part, text in row.items():
            if not _is_sentence(part) or not _is_sentence(text):
                raise UserError(f"part {part!r} of class {name!r} in {where} must have a name and a sentence, found "
                                f"{text!r}")
        _check_same_parts(tuple(rows[0]), tuple(row), f"class {name!r} in {where}")
    return tuple(rows[0]), tuple(tuple(row.values()) for row in rows)


def _check_same_parts(expected: tuple[str, ...], found: tuple[str, ...], whose: str) -> None:
    if missing := [part for part in expected if part not in found]:
        raise UserError(f"{whose} has no part {few(map(repr, missing))}; every class needs the same parts")
    if extra := [part for part in found if part not in expected]:
        raise UserError(f"{whose} has the part {few(map(repr, extra))}, which the classes before it lack; "
                        "every class needs the same parts")
    if found != expected:
        raise UserError(f"{whose} has its parts in the order {few(found, 20)}; write them as {few(expected, 20)}")


def _class_table(names: tuple[str, ...], given: str | Mapping[str, Any], kind: str) -> tuple[dict[str, Any], str]:
    """The entries of `given` by readable class name, and what to call it in an error. Every one of `names` is there."""
    where = given if isinstance(given, str) else f"text.{kind}"
    mapping = _read_mapping(given, kind, f"{kind} file") if isinstance(given, str) else given
    if wrong := [name for name in mapping if not _is_sentence(name)]:
        raise UserError(f"{wrong[0]!r} in {where} is no class name; write every name as text")
    check_unique(tuple(mapping), f"class names in {where}")
    table = {readable(name): entry for name, entry in mapping.items()}
    if missing := [name for name in names if readable(name) not in table]:
        raise UserError(f"no {kind} for {len(missing)} of {len(names)} classes in {where}: "
                        f"{few(map(repr, missing))}; add them, or call the classes as it does (data.class_names=)")
    return table, where


def _by_folder(folders: Sequence[str], names: Mapping[str, str], origin: str) -> tuple[str, ...]:
    if extra := [folder for folder in names if folder not in folders]:
        raise UserError(f"{origin} names classes that the data set does not have: {few(map(repr, extra))}; "
                        f"its classes are {few(folders, 10)}")
    if missing := [folder for folder in folders if folder not in names]:
        raise UserError(f"{origin} has no name for {len(missing)} of {len(folders)} classes: "
                        f"{few(map(repr, missing))}; add them")
    return tuple(names[folder] for folder in folders)


def _is_sentence(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lines(path: Path) -> list[str]:
    """The lines of a text file without blank ones and without the `#` comments at its head."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; save it as UTF-8 text") from error
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    return lines


def _read_mapping(name_or_path: str, folder: str, kind: str) -> Mapping[str, Any]:
    path = _find(name_or_path, folder, ".json", kind)
    content = read_json(path, "mend it or pass another file")
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold one JSON object with an entry for each class")
    return content


def _find(name_or_path: str, folder: str, suffix: str, kind: str) -> Path:
    """The file itself where a path was given, else the shipped one of that name."""
    if "/" in name_or_path or "\\" in name_or_path or name_or_path.lower().endswith((".txt", ".json")):
        path = user_path(name_or_path)
        if not path.is_file():
            raise UserError(f"no {kind} at {path}; check the path")
        return path
    shipped = {path.stem: path for path in (packaged("prompts") / folder).glob(f"*{suffix}")}
    if name_or_path not in shipped:
        raise unknown(kind, name_or_path, shipped, "or pass a path")
    return shipped[name_or_path]
