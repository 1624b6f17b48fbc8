"""The text of a data set's classes: names, templates, descriptions and part sentences, by shipped name or path."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import unescape
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from xrvlm.errors import UserError, either, odd_sign, option, typed, unknown
from xrvlm.files import file_text, packaged, parsed, read_json, user_path

OF_OPEN_CLIP = {"openai": "SIMPLE_IMAGENET_TEMPLATES", "openai_imagenet": "OPENAI_IMAGENET_TEMPLATES"}
TEMPLATES = "photo"                      # the list of templates unless another is asked for
LONGEST_NAME = 500                       # characters of a class name; a tower reads far fewer


@dataclass(frozen=True)
class ClassText:
    """The text of a data set's classes, with the templates filled in."""

    names: tuple[str, ...]                             # class names, spelt as in the data set
    prompts: tuple[tuple[str, ...], ...]               # per class, sentences whose features are averaged
    parts: tuple[tuple[str, ...], ...] | None = None   # per class, one sentence for each part
    part_names: tuple[str, ...] | None = None
    kind: Literal["names", "descriptions"] = "names"   # the source of `prompts`, for the run's record


@typed
def class_text(classes: Sequence[str], *, templates: str | Sequence[str] = TEMPLATES,
               descriptions: str | Mapping[str, Any] | None = None,
               parts: str | Mapping[str, Any] | None = None) -> ClassText:
    """Sentences for `classes`: each name in each template, or the class's `descriptions` if given.

    Args:
        classes: class names; `_` is read as a space.
        templates: name of a shipped list, a .txt file, one template or several.
        descriptions: {class: sentence or sentences}, as a .json file, a shipped name or a mapping.
        parts: {class: {part: sentence}}, in the same forms. Both may have more classes than `classes`.

    Raises:
        UserError: a file or name is unknown, a template is malformed, a class has no entry, or classes differ in parts.
    """
    if not (names := tuple(classes)):
        raise UserError("classes is empty: give at least one class name")
    check_unique(names, "class names")
    prompts = _render(names, templates) if descriptions is None else _described(names, descriptions)
    part_names, sentences = (None, None) if parts is None else _part_sentences(names, parts)
    return ClassText(names, prompts, sentences, part_names, "names" if descriptions is None else "descriptions")


def text_maker(text: Callable[[Sequence[str]], ClassText] | Mapping[str, Any], roots: Sequence[Path | None] = (),
               ) -> Callable[[Sequence[str]], ClassText]:
    """A function from class names to their text: `text` itself, or `class_text` with the options in it.

    A file of descriptions or parts is looked for as it is named, then in the first of the folders `roots` that has it.
    """
    if not isinstance(text, Mapping):
        ours = (text.func if isinstance(text, partial) else text) is class_text
        return text if ours else partial(_own_text, text)
    found = {name: value for name, value in text.items() if value is not None}
    for name in ("descriptions", "parts"):
        value = found.get(name)
        if isinstance(value, str) and not user_path(value).is_file():
            paths = [root / value for root in roots if root is not None]
            found[name] = next((str(path) for path in paths if path.is_file()), value)
    return partial(class_text, **found)


def _own_text(text: Callable[[Sequence[str]], ClassText], names: Sequence[str]) -> ClassText:
    """What a function of the user's makes, if it is text of these classes."""
    made = text(names)
    if not isinstance(made, ClassText) or made.names != tuple(names):
        found = f"the classes {few(map(repr, made.names), 3)}" if isinstance(made, ClassText) else repr(made)[:100]
        raise UserError(f"{option('text')} must return the ClassText of the classes that it is given, in their order "
                        f"({few(map(repr, names), 3)} ...); it returned {found}")
    return made


def saved_text(text: Callable) -> dict[str, Any]:
    """The options of a `text_maker` that can be read again in another process: names, and absolute paths of files."""
    made, given = (text.func, text.keywords) if isinstance(text, partial) else (text, {})
    options = {"templates": TEMPLATES, **given} if made is class_text else {}
    return {name: str(user_path(value).resolve()) if user_path(value).is_file() else value
            for name, value in options.items() if isinstance(value, str)}


def templates(name_or_path: str) -> tuple[str, ...]:
    """A list of templates, each with one {}: a shipped one (prompts/templates/<name>.txt), or a .txt file, one a line.

    `openai_imagenet` is CLIP's list of 80 templates for ImageNet, `openai` the seven of them that its authors found to
    do as well; both are read from open_clip.
    """
    if name_or_path in OF_OPEN_CLIP:
        lists = import_module("open_clip.zero_shot_metadata")
        return tuple(fill("{}") for fill in getattr(lists, OF_OPEN_CLIP[name_or_path]))
    path = find_text(name_or_path, "templates", ".txt", "template list")
    found = lines(path)
    if not found:
        raise UserError(f"{path} holds no template; write one per line, such as 'a photo of a {{}}.'")
    return tuple(_checked_template(line, f"in {path}") for line in found)


def readable(name: str) -> str:
    """A class name for use in a sentence: `_` becomes a space, and accented letters are composed (Unicode NFC)."""
    return unicodedata.normalize("NFC", name).replace("_", " ")


def few(names: Iterable[str], limit: int = 5) -> str:
    """`a, b, c and 7 more`: the first `limit` names."""
    known = list(names)
    return ", ".join(known[:limit]) + (f" and {len(known) - limit} more" if len(known) > limit else "")


def check_unique(names: Sequence[str], what: str) -> None:
    """UserError if two of `names` read the same to a tokenizer that lower-cases, joins spaces and mends signs."""
    seen: dict[str, str] = {}
    check_words(names, what)
    for name in names:
        key = _as_read(name)
        if key in seen:
            alike = "" if readable(name) == readable(seen[key]) else ", which read the same to a tower"
            raise UserError(f"duplicate {what}: {seen[key]!r} and {name!r}{alike}; give every class its own name "
                            f"({option('data.class_names')}), or make them one class")
        seen[key] = name


def _as_read(name: str) -> str:
    """What a tokenizer and a reader see of a name: open_clip's mends curled quotes and text of a wrong encoding."""
    text = unescape(unescape(readable(name)))
    if not text.isascii():
        text = import_module("ftfy").fix_text(text)
        text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")       # not seen: zero-width ...
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def check_numbers(known: Sequence[str]) -> None:
    """UserError where classes are one number written in two ways, `1` and `1.0` and `01`, and nothing names each."""
    seen: dict[int, str] = {}
    for key in known:
        number = re.fullmatch(r"\s*\+?(-?\d+)(\.0*)?\s*", key)
        if number and len(key) < 300 and seen.setdefault(int(number[1]), key) != key:
            raise UserError(f"the classes {seen[int(number[1])]!r} and {key!r} are one number: write it in one way, or "
                            f"name both in {option('data.class_names')}, as {{class: name}} or a .json file of it")


def check_words(names: Sequence[str], what: str) -> None:
    """UserError where one of `names` is empty, endless, or holds what no name may hold."""
    for name in names:
        if odd := odd_sign(name):
            raise UserError(f"{name[:60]!r} in the {what} holds {odd}; write it without")
        if not readable(name).strip():
            raise UserError(f"one of the {what} is empty ({name!r}): name the class with a word")
        if len(name) > LONGEST_NAME:
            raise UserError(f"one of the {what} has {len(name):,} characters ({name[:40]!r}...): write a name of at "
                            f"most {LONGEST_NAME}")


def chosen_templates(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """The templates that `class_text` fills: of a list's name, of a .txt file, one template, or several."""
    if not isinstance(wanted, str):
        chosen = tuple(_checked_template(line, f"in {option('text.templates')}") for line in wanted)
        if not chosen:
            raise UserError(f"{option('text.templates')} is empty; give at least one template, such as "
                            "'a photo of a {}.'")
        return chosen
    if "{" in wanted:      # a template rather than the name of a list
        return (_checked_template(wanted, f"in {option('text.templates')}"),)
    return templates(wanted)


def _render(names: tuple[str, ...], wanted: str | Sequence[str]) -> tuple[tuple[str, ...], ...]:
    chosen = chosen_templates(wanted)
    return tuple(tuple(template.format(readable(name)) for template in chosen) for name in names)


def _checked_template(line: str, where: str) -> str:
    if line.count("{}") != 1 or line.count("{") != 1 or line.count("}") != 1:
        raise UserError(f"template {line!r} {where} must hold exactly one {{}}, for the class name")
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
            raise UserError(f"the parts of class {name!r} in {where} must be {{part: sentence}}, at least one")
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
        raise UserError(f"{whose} has the part {few(map(repr, extra))}, which earlier classes do not have; "
                        "every class needs the same parts")
    if found != expected:
        raise UserError(f"{whose} has its parts in the order {few(found, 20)}; write them as {few(expected, 20)}")


def _class_table(names: tuple[str, ...], given: str | Mapping[str, Any], kind: str) -> tuple[dict[str, Any], str]:
    """Entries of `given` by readable class name, and the name of its source for errors. Checks that none is missing."""
    where = given if isinstance(given, str) else option(f"text.{kind}")
    mapping = read_mapping(given, kind, f"{kind} file") if isinstance(given, str) else given
    if wrong := [name for name in mapping if not _is_sentence(name)]:
        raise UserError(f"{wrong[0]!r} in {where} is no class name; write every name as text")
    check_unique(tuple(mapping), f"class names in {where}")
    table = {readable(name): entry for name, entry in mapping.items()}
    if missing := [name for name in names if readable(name) not in table]:
        raise UserError(f"no {kind} for {len(missing)} of {len(names)} classes in {where}: "
                        f"{few(map(repr, missing))}; add them, or set {option('data.class_names')} to its names")
    return table, where


def _is_sentence(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def lines(path: Path) -> list[str]:
    """The texts in a file: its lines, without blank ones and `#` comments at the start; or those of a JSON list, or of
    a .json file's object.
    """
    try:
        text = file_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; save it as UTF-8 text") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    named = path.suffix.lower() == ".json"
    try:
        content = parsed(text)
    except ValueError as error:
        if named or lines[:1] in (["["], ["{"]):
            raise UserError(f"cannot read {path}: {error}; correct it, or write one text a line") from error
        return lines
    if not named and (content == {} or not isinstance(content, Mapping | list)):     # a line, such as {} or 2019
        return lines
    texts = list(content.values()) if named and isinstance(content, Mapping) else content
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise UserError(f"{path} must hold one text a line, or a JSON list of texts")
    return texts


def read_mapping(name_or_path: str, folder: str, kind: str) -> Mapping[str, Any]:
    path = find_text(name_or_path, folder, ".json", kind)
    content = read_json(path, "correct it or pass another file")
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold one JSON object with an entry for each class")
    return content


def find_text(name_or_path: str, folder: str, suffix: str, kind: str) -> Path:
    """The path, or the shipped file of that name."""
    if "/" in name_or_path or "\\" in name_or_path or name_or_path.lower().endswith((".txt", ".json")):
        path = user_path(name_or_path)
        if not path.is_file():
            raise UserError(f"no {kind} at {path}; check the path")
        return path
    shipped = {path.stem: path for path in (packaged("prompts") / folder).glob(f"*{suffix}")}
    if name_or_path not in shipped:
        if Path(name_or_path).is_file():
            raise UserError(f"{name_or_path} is no {kind}: write it as a {suffix} file"
                            f"{', one text a line' if suffix == '.txt' else ''}")
        if "," in name_or_path:
            listed = [word.strip() for word in name_or_path.split(",")]
            raise UserError(f"no {kind} is called {name_or_path[:60]!r}; a list is written "
                            f"{either(str(listed), f'[{chr(44).join(listed)}]')[:200]}")
        known = [*shipped, *(OF_OPEN_CLIP if folder == "templates" else ())]
        raise unknown(kind, name_or_path, known, "or pass a path")
    return shipped[name_or_path]
