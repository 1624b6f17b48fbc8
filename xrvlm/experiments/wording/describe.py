"""`xrvlm describe`: a question to any language model about the looks of the classes, and its answer, checked."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xrvlm.errors import CONTROL, UserError, option, typed
from xrvlm.experiments.saved import check_writable
from xrvlm.files import as_file_name, file_text, user_path, write_json, write_text
from xrvlm.text.class_text import check_unique, few, readable

log = logging.getLogger(__name__)
AT_ONCE = 25                             # classes in a question: answers to longer ones are cut off
WORDS = 40                               # of a sentence: a CLIP reads 77 tokens, and a word is one to two
LISTED = 20                              # faults that an error names
TWICE = object()                         # the value of a key that occurs twice in an object of an answer
QUESTION = """\
I want to tell these {kind} apart in photos, and need sentences that say how each one looks.

For each of the {count} classes below write {sentences} sentences{parts}.

- Say what is visible in a photo: shape, colours, pattern, proportions, surface. No behaviour, range, use or history.
- Say what tells the class apart from the others in the list, not what all of them share.
- One plain sentence each, at most {words} words, that begins with the class's name or with "a photo of".
- If you do not know a class, leave it out rather than guess.

Answer with JSON alone, in exactly this form, with the names as they are written below:

{form}

The classes:

{names}
"""


@dataclass(frozen=True)
class Described:
    """What `describe` wrote."""

    files: tuple[Path, ...]              # questions, or descriptions.json and parts.json
    lines: tuple[str, ...]               # what to do next


@dataclass
class _Found:
    """What is good in the answers, and what is wrong."""

    sentences: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@typed
def describe(classes: Sequence[str], *, kind: str = "classes", parts: Sequence[str] = (), sentences: int = 3,
             answer: str | Path | Sequence[str | Path] | None = None, out: str | Path = "words") -> Described:
    """Write the question for a language model to `out`, or read its `answer` into descriptions.json and parts.json.

    A question has at most 25 classes; there are several for more. Each answer is a text file with JSON in it, whatever
    stands around it. What is good of answers is kept in `out`/answered.json, and a later call reads what is missing.

    Args:
        classes: their names.
        kind: what they are, such as "bird species".
        parts: also ask for a sentence for each of these parts, such as ["head", "wing"].
        sentences: how many of each class.
        answer: files with answers; None: write the questions.
        out: a folder.

    Raises:
        UserError: an answer holds no JSON, or lacks classes or parts, or its sentences are none, too long, or not told
            apart. The message lists what is wrong; questions for what is missing are in `out`.
    """
    _check(classes, parts, sentences)
    folder = user_path(out)
    check_writable(folder)
    if answer is None:
        files = _ask(folder, classes, kind, parts, sentences)
        return Described(files, (*map(str, files), "Give each question to a language model, save its answer as a file, "
                                 f"then run the same command with {option('answer', 'FILE')}"))
    found = _answered(folder, [answer] if isinstance(answer, str | Path) else answer, classes, parts)
    alike = _alike(found.sentences)
    again = {name for names in alike for name in names}
    missing = [name for name in classes if name in again or name not in found.sentences or (
        parts and name not in found.parts)]
    if not missing:
        for fault in found.faults:           # earlier answers had what these lack
            log.warning("%s", fault)
        return _written(folder, found, bool(parts))
    asked = _ask(folder, missing, kind, parts, sentences, "again")
    faults = [f"no usable answer for {len(missing)} of {len(classes)} classes ({few(missing)}); ask again with "
              f"{few(map(str, asked))}", *found.faults,
              *(f"the same sentences for {few(names)}: ask what tells them apart" for names in alike)]
    raise UserError("; ".join(faults[:LISTED] + [f"and {len(faults) - LISTED} more"] * (len(faults) > LISTED)))


def _check(classes: Sequence[str], parts: Sequence[str], sentences: int) -> None:
    if not classes:
        raise UserError("classes is empty: give at least one class name")
    check_unique(classes, "class names")
    if sentences < 1:
        raise UserError(f"{option('sentences')} must be at least 1, found {sentences}")
    if isinstance(parts, str | Mapping) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise UserError(f"{option('parts')} must be a list of names, such as [head, wing]; found {parts!r}")
    if len(set(map(_key, parts))) < len(parts):
        raise UserError(f"{option('parts')} names a part twice: {few(parts, 20)}")


def _ask(folder: Path, classes: Sequence[str], kind: str, parts: Sequence[str], sentences: int,
         word: str = "question") -> tuple[Path, ...]:
    for old in folder.glob(f"{word}*.txt"):
        if re.fullmatch(rf"{word}(-\d+)?\.txt", old.name):          # of an earlier call; others are not ours
            old.unlink()
    groups = [classes[start:start + AT_ONCE] for start in range(0, len(classes), AT_ONCE)]
    made = []
    for number, names in enumerate(groups, start=1):
        entry: dict[str, Any] = {"sentences": ["..."] * sentences}
        entry |= {"parts": dict.fromkeys(parts, "...")} if parts else {}
        form = json.dumps({readable(names[0]): entry}, ensure_ascii=False, indent=1)
        asked = f", and one about each of its parts: {', '.join(parts)}" if parts else ""
        path = folder / (f"{word}.txt" if len(groups) == 1 else f"{word}-{number:0{len(str(len(groups)))}}.txt")
        write_text(path, QUESTION.format(kind=kind, count=len(names), sentences=sentences, parts=asked, words=WORDS,
                                         form=form, names="\n".join(map(readable, names))))
        made.append(path)
    return tuple(made)


def _answered(folder: Path, files: Sequence[str | Path], classes: Sequence[str], parts: Sequence[str]) -> _Found:
    """What is good in the answers and in those of earlier calls, which is kept, and what is wrong in these."""
    path = folder / "answered.json"
    kept = _kept(path)
    found = _Found({name: kept["sentences"][name] for name in classes if name in kept["sentences"]})
    for name in classes:
        there = kept["parts"].get(name, {})
        if parts and all(part in there for part in parts):
            found.parts[name] = {part: there[part] for part in parts}
    for file in files:
        _read(user_path(file), classes, parts, found)
    described = kept["parts"] | {name: kept["parts"].get(name, {}) | own for name, own in found.parts.items()}
    write_json(path, {"sentences": kept["sentences"] | found.sentences, "parts": described})
    found.sentences = {name: found.sentences[name] for name in classes if name in found.sentences}
    return found


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier calls kept, of all classes and parts that they asked for."""
    try:
        saved = json.loads(file_text(path))
        good = {name: own for name, own in saved["sentences"].items() if own and all(not _fault(each) for each in own)}
        parts = {name: {part: text for part, text in own.items() if not _fault(text)}
                 for name, own in saved["parts"].items()}
        return {"sentences": good, "parts": parts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"sentences": {}, "parts": {}}


def _read(path: Path, classes: Sequence[str], parts: Sequence[str], found: _Found) -> None:
    """Add the good entries of an answer to `found`, and its faults."""
    try:
        table = _table(_json_in(file_text(path)), classes)
    except OSError as error:
        raise UserError(f"cannot read the answer {path}: {error.strerror}; check the path") from error
    except RecursionError:               # brackets in brackets, hundreds of levels deep
        table = None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: save the answer as UTF-8 text") from error
    if table is None:
        found.faults.append(f"{path} holds no JSON object {{class: ...}}: ask for JSON alone, or cut the rest away")
        return
    known, counts = {_key(name): name for name in classes}, Counter(map(_key, table))
    for called, entry in table.items():
        name = known.get(_key(called))
        if name is None:
            log.warning("%s: %r is none of the classes, and is left out", path, str(called)[:60])
            continue
        if entry is not TWICE and counts[_key(called)] == 1:
            _add(name, entry, parts, found)
        elif (fault := f"{name}: described twice") not in found.faults:
            found.faults.append(fault)


def _add(name: str, entry: Any, parts: Sequence[str], found: _Found) -> None:
    given = entry if isinstance(entry, Mapping) else {"sentences": entry}
    written = given.get("sentences", given.get("descriptions"))
    said = [written] if isinstance(written, str) else written
    if not isinstance(said, list) or not said:
        found.faults.append(f"{name}: no sentences")
    elif len({_key(each) for each in said}) < len(said):
        found.faults.append(f"{name}: the same sentence twice")
    elif not (faults := [fault for each in said if (fault := _fault(each))]):
        found.sentences[name] = [" ".join(each.split()) for each in said]
    else:
        found.faults.append(f"{name}: {faults[0]}")
    if not parts:
        return
    about = given.get("parts")
    about = {str(part).casefold(): text for part, text in about.items()} if isinstance(about, Mapping) else {}
    wanted = {part: about.get(part.casefold()) for part in parts}
    if wrong := [f"{part} ({fault})" for part, text in wanted.items() if (fault := _fault(text))]:
        found.faults.append(f"{name}: {few(wrong)}")
    else:
        found.parts[name] = {part: " ".join(str(text).split()) for part, text in wanted.items()}


def _fault(sentence: Any) -> str:
    """What is wrong with a sentence; "" for nothing."""
    if not isinstance(sentence, str) or not sentence.strip():
        return "no sentence"
    if CONTROL.search(" ".join(sentence.split())):
        return "a sentence with control characters"
    if "..." in sentence and len(sentence.split()) < 3:
        return "the form was not filled in"
    if (count := len(sentence.split())) > WORDS:
        return f"a sentence of {count} words, {WORDS} at most are read: {sentence[:40]!r}..."
    return ""


def _alike(sentences: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Classes that are described by the same sentences but for their names, which tell nothing apart."""
    by_text: dict[tuple[str, ...], list[str]] = {}
    for name, said in sentences.items():
        bare = (re.sub(re.escape(readable(name)), "", each, flags=re.IGNORECASE) for each in said)
        by_text.setdefault(tuple(" ".join(re.findall(r"\w+", each.casefold())) for each in bare), []).append(name)
    return [names for names in by_text.values() if len(names) > 1]


def _table(value: Any, classes: Sequence[str]) -> Mapping[str, Any] | None:
    """{class: entry}, also of [{"name": class, ...}] and of either below a key of its own; None for anything else."""
    if isinstance(value, list):
        named = {each.get("class", each.get("name")): each for each in value if isinstance(each, Mapping)}
        return named if len(named) == len(value) > 0 and all(isinstance(name, str) for name in named) else None
    if not isinstance(value, Mapping):
        return None
    below, known = next(iter(value.values()), None) if len(value) == 1 else None, set(map(_key, classes))
    inner = _table(below, classes) if isinstance(below, list | Mapping) else None
    return inner if inner is not None and known & set(map(_key, inner)) else value


def _key(name: object) -> str:
    return readable(str(name)).casefold()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    return {name: value if counts[name] == 1 else TWICE for name, value in pairs}


def _json_in(text: str) -> Any:
    """The largest JSON object, or list, in a text; None where there is none."""
    decoder, best, end = json.JSONDecoder(object_pairs_hook=_once), None, 0
    for start in (found.start() for found in re.finditer(r"[{\[]", text)):
        if start < end:
            continue
        try:
            value, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list) and (best is None or stop - start > best[1]):
            best = (value, stop - start)
        end = stop
    return None if best is None else best[0]


def _written(folder: Path, found: _Found, parts: bool) -> Described:
    files = [folder / "descriptions.json"]
    write_json(files[0], found.sentences)
    if parts:
        files.append(folder / "parts.json")
        write_json(files[1], found.parts)
    keys = " ".join(f"{option(f'text.{file.stem}', str(file))}" for file in files)
    return Described(tuple(files), (*map(str, files), f"for adapt, zeroshot and prompts: {keys}"))


def folder_for(name: str) -> Path:
    """The folder of a data set's questions, answers and chosen words, unless another is named."""
    return Path("words") / as_file_name(name)
