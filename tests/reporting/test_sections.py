"""What a report is made of: the outcomes of images, photos of them, figures of others, LaTeX."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from photos import photo_folder
from PIL import Image
from results import record

from xrvlm.data.dataset import Split, write_split
from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.files import FileSource
from xrvlm.reporting.paired import read_outcomes
from xrvlm.reporting.published import published
from xrvlm.reporting.results import Row
from xrvlm.reporting.sections import SIDE, Album
from xrvlm.reporting.tables import latex_tables, latex_text, tables

# ---- outcomes


def test_outcomes_of_a_file(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text('image,label,prediction,class_1,probability_1\n"a,1.jpg",wren,jay,jay,0.4\nb.jpg,jay,jay,jay,0.9\n'
                    "c.jpg,wren,jay,jay,0.7\n")
    outcomes = read_outcomes(path)
    assert outcomes.right.tolist() == [False, True, False]
    assert outcomes.confidence.tolist() == [0.4, 0.9, 0.7]
    assert outcomes.by_pair == {("wren", "jay"): ["c.jpg", "a,1.jpg"], ("jay", "jay"): ["b.jpg"]}


@pytest.mark.parametrize(("text", "message"), [
    ("", "no column image, label, prediction, probability_1"), ("image,label,prediction\n", "no column probability_1"),
    ("image,label,prediction,probability_1\n", "without a label"),
    ("image,label,prediction,probability_1\na,,wren,0.5\n", "without a label"),
    ("image,label,prediction,probability_1\na,wren,wren,much\n", "could not convert"),
])
def test_outcomes_of_a_damaged_file(tmp_path, text, message):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_outcomes(tmp_path / "predictions.csv")


# ---- photos


def run_folder(tmp_path: Path) -> tuple[Path, FileSource, list[str]]:
    """A run's folder with its split.json, its images, and the names of those."""
    root = photo_folder(tmp_path / "photos", images=2)
    dataset = image_folder(root)
    (root / dataset.split.train[0].id).write_bytes(png(800, 300))
    split = Split(dataset.split.classes, (), (), dataset.split.train)
    source = FileSource(root)
    write_split(tmp_path / "run" / "split.json", split, source, seed=1, shots=1)
    return tmp_path / "run", source, [item.id for item in split.test]


def png(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_photos_are_small_copies(tmp_path):
    folder, source, images = run_folder(tmp_path)
    uri = Album(lambda _: source).photo(folder, images[0])
    kind, content = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as photo:
        assert photo.size == (SIDE, SIDE * 300 // 800)


def test_a_page_holds_so_many_photos_and_each_only_once(tmp_path):
    folder, source, images = run_folder(tmp_path)
    most = len(base64.b64decode(Album(lambda _: source).photo(folder, images[1]).split(",")[1])) + 10
    album = Album(lambda _: source, most_bytes=most)
    assert album.photo(folder, images[1]) == album.photo(folder, images[1])
    with pytest.raises(UserError, match="have reached their size limit"):
        album.photo(folder, images[2])


def test_photos_that_are_not_to_be_had_say_why(tmp_path):
    folder, source, images = run_folder(tmp_path)
    with pytest.raises(UserError, match="made with photos=False"):
        Album(None).photo(folder, images[0])
    (source.root / images[0]).write_bytes(png(30, 30))
    with pytest.raises(UserError, match=r"0\.png is not the image that the run was tested on"):
        Album(lambda _: source).photo(folder, images[0])
    (source.root / images[0]).unlink()
    with pytest.raises(UserError, match="cannot read the image"):
        Album(lambda _: source).photo(folder, images[0])
    (folder / "split.json").unlink()
    with pytest.raises(UserError, match=r"split\.json"):
        Album(lambda _: source).photo(folder, images[1])


# ---- what others report

TOWER = "ViT-B-16-quickgelu/openai"


def row_on(root: Path, classes: int, images: int, **changes) -> Row:
    """A row of one run whose split.json has so many classes and test images."""
    run = record(f"{classes}-{images}", split=f"{classes}-{images}", **({"backbone": TOWER, "shots": 16} | changes))
    (root / run.run).mkdir(parents=True, exist_ok=True)
    split = {"classes": ["x"] * classes, "train": [], "val": [], "test": [{"path": "a.jpg", "class": "x"}] * images}
    (root / run.run / "split.json").write_text(json.dumps(split))
    return Row((run,))


def test_published_figures_where_data_test_set_backbone_and_shots_match(tmp_path):
    row = row_on(tmp_path, 100, 3333, data="FGVC-Aircraft", label="CoOp")
    found = published([row], tmp_path)
    assert list(found.top1) == ["CLIP zero-shot", "CoOp", "Tip-Adapter-F", "linear probe", "PLOT++", "PromptSRC",
                                "CLIP-LoRA", "GalLoP"]
    assert (found.of(row), found.mismatch) == (43.4, "")
    free = row_on(tmp_path, 47, 1692, data="dtd", label="CLIP zero-shot", shots=0, prompts="names")
    assert published([free], tmp_path).of(free) == 43.6


def test_the_papers_own_figures_stand_beside_its_tower_its_heads_and_its_recipe(tmp_path):
    tower = f"{TOWER} (resize 256, bilinear)"
    ours = {"data": "cub", "label": "XR-VLM", "backbone": tower}
    for head, score in (("cross", 80.93), ("alignment", 77.15), ("visual", None)):
        row = row_on(tmp_path, 200, 5794, **ours, head=head, options={"head": head})
        assert published([row], tmp_path).of(row) == score
    assert "epoch was chosen on the test set" in published([row], tmp_path).source
    for change in ({"backbone": TOWER}, {"shots": 8}, {"recipe": "fast"}, {"options": {"image_parts": 2}}):
        row = row_on(tmp_path, 200, 5794, **({**ours, "head": "cross"} | change))
        assert published([row], tmp_path).of(row) is None
    replica = row_on(tmp_path, 10, 100, **ours, head="cross")
    assert published([replica], tmp_path).mismatch.endswith(
        "on the official test set of 5,794 images of 200 classes, and the one here is 100 of 10.")


def test_no_published_figure_beside_another_test_set(tmp_path):
    """DTD's official split, and a folder of that name, have other test images than the published results."""
    official, theirs = (row_on(tmp_path, 47, images, data="dtd", label="CoOp") for images in (1880, 1692))
    found = published([official], tmp_path)
    assert found.top1 == {}
    assert found.mismatch == ("Results that others published for dtd are left out: they were measured on CoOp's test "
                              "set of 1,692 images of 47 classes, and the one here is 1,880 of 47.")
    assert "the one here is 1,692 of 47 and 1,880 of 47." in published([official, theirs], tmp_path).mismatch
    (tmp_path / official.first.run / "split.json").write_text("{}")
    assert "the one here is unknown, for its split.json does not hold it." in published([official], tmp_path).mismatch


@pytest.mark.parametrize("change", [
    {"data": "cub"}, {"backbone": "ViT-B-32/openai"}, {"backbone": "ViT-B-16-quickgelu/openai (256 bilinear)"},
    {"shots": 8}, {"shots": 0}, {"label": "XR-VLM"},
    {"protocol": "base_to_new", "metrics": record().metrics | {"new_top1": 0.4, "all_top1": 0.3, "harmonic_mean": 0.4}},
])
def test_no_published_figure_where_one_differs(tmp_path, change):
    row = row_on(tmp_path, 196, 8041, **({"data": "cars", "label": "CoOp"} | change))
    found = published([row], tmp_path)
    assert (found.of(row), found.mismatch) == (None, "")


def test_zero_shot_by_descriptions_is_not_what_others_report(tmp_path):
    for shots, prompts in ((0, "descriptions"), (16, "names")):
        row = row_on(tmp_path, 196, 8041, data="cars", label="CLIP zero-shot", shots=shots, prompts=prompts)
        assert published([row], tmp_path).of(row) is None


def test_means_of_the_published_figures(tmp_path):
    """The table that they are from ends in each method's mean over the eleven data sets."""
    parts = {"imagenet": (1000, 50_000), "caltech101": (100, 2465), "pets": (37, 3669), "cars": (196, 8041),
             "flowers": (102, 2463), "food101": (101, 30_300), "aircraft": (100, 3333), "sun397": (397, 19_850),
             "dtd": (47, 1692), "eurosat": (10, 8100), "ucf101": (101, 3783)}
    rows = [published([row_on(tmp_path, *part, data=name)], tmp_path).top1 for name, part in parts.items()]
    means = {method: sum(row[method] for row in rows) / len(rows) for method in rows[0]}
    expected = {"CLIP zero-shot": 65.1, "linear probe": 78.8, "CoOp": 79.9, "Tip-Adapter-F": 80.7, "PLOT++": 82.1,
                "PromptSRC": 82.9, "CLIP-LoRA": 83.0, "GalLoP": 84.4}
    assert means == pytest.approx(expected, abs=0.1)


# ---- LaTeX


def test_latex_shows_any_text_as_it_is():
    assert latex_text("50% & $x_1$ #2 {a} ~ ^ \\n") == (r"50\% \& \$x\_1\$ \#2 \{a\} \textasciitilde{} "
                                                         r"\textasciicircum{} \textbackslash{}n")
    assert latex_text("58.0 ± 7.2 †") == r"58.0 $\pm$ 7.2 $\dagger$"
    assert latex_text("-3.1 [-4.0, -2.2] top-1") == "$-$3.1 [$-$4.0, $-$2.2] top-1"


def test_latex_tables_have_a_cell_for_each_column():
    text = latex_tables(tables([record("a", label="[a] & b"), record("b", label="CoOp", head=None)]))
    begin, = re.findall(r"\\begin\{tabular\}\{(l+r+)\}", text)
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(begin) - 1}
    assert sum(line.startswith(r"{}[a] \& b & ") for line in lines) == 1
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


@pytest.mark.parametrize("split", ["null", "[]", '{"classes": null}', '{"classes": ["\\ud800"], "test": [{}]}',
                                   '{"classes": ["x"], "train": null, "val": [], "test": [null]}'])
def test_no_published_figure_beside_a_split_that_cannot_be_read(tmp_path, split):
    row = row_on(tmp_path, 47, 1692, data="dtd", label="CoOp")
    (tmp_path / row.first.run / "split.json").write_text(split)
    assert "the one here is unknown, for its split.json does not hold it." in published([row], tmp_path).mismatch
