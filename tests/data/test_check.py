"""`xrvlm data check`: what it says of whole, partial and wrong folders, and how it ends."""

import shutil

import pytest
import replicas
from photos import photo_folder

from xrvlm.cli.main import main
from xrvlm.data.datasets.check import check_data
from xrvlm.errors import UserError

SPECIES, TRAINING, TOTAL = 200, 5994, 11788


@pytest.fixture
def check(capsys):
    """The exit code, what was printed, and the error line of `xrvlm data check` with these arguments."""
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["data", "check", *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err
    return run


@pytest.fixture(scope="module")
def whole_cub(tmp_path_factory):
    """All of CUB's 11,788 names with empty files: the check counts, it does not decode."""
    root = tmp_path_factory.mktemp("whole") / "my" / "downloads" / "CUB_200_2011"
    folders = [f"{label + 1:03}.Bird_{label}" for label in range(SPECIES)]
    for folder in folders:
        (root / "images" / folder).mkdir(parents=True)
    paths = [f"{folders[number % SPECIES]}/{number}.jpg" for number in range(TOTAL)]
    for path in paths:
        (root / "images" / path).touch()
    for name, values in (("images", paths), ("classes", folders),
                         ("image_class_labels", [number % SPECIES + 1 for number in range(TOTAL)]),
                         ("train_test_split", [int(number < TRAINING) for number in range(TOTAL)])):
        (root / f"{name}.txt").write_text("".join(f"{row} {value}\n" for row, value in enumerate(values, start=1)))
    return root


def test_a_whole_set_is_complete(whole_cub, check):
    code, out, err = check("data=cub", f"data.root={whole_cub}")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"CUB-200-2011 in {whole_cub}"
    assert "  found    train_test_split.txt" in lines
    assert "  classes  200 (officially 200)" in lines
    assert "  listed   5994 train, 5794 test (officially 5994 train, 5794 test)" in lines
    assert "  images   11788 of 11788 listed ones are there" in lines
    assert lines[-1] == "complete"
    code, _, err = check("data=cub", f"data.root={whole_cub}", "data.class_names=flowers17")
    assert code == 2
    assert "holds 17 names for 200 classes" in err


def test_missing_images_are_counted_and_the_first_named(whole_cub, tmp_path, check):
    gone = [whole_cub / "images" / "001.Bird_0" / f"{number}.jpg" for number in (0, 200, 400, 600)]
    gone.append(whole_cub / "images" / "200.Bird_199")
    inside = len(list(gone[-1].iterdir()))
    for path in gone:
        shutil.move(path, tmp_path / path.name)
    try:
        code, out, err = check("data=cub", f"data.root={whole_cub}")
    finally:
        for path in gone:
            shutil.move(tmp_path / path.name, path)
    assert code == 2
    assert f"  images   {TOTAL - 4 - inside} of {TOTAL} listed ones are there" in out
    assert f"  absent   {4 + inside}: images/001.Bird_0/0.jpg, images/001.Bird_0/200.jpg, " in out
    assert f"and {1 + inside} more" in out
    assert "get it from https://www.vision.caltech.edu" in out
    assert out.splitlines()[-1] == "not complete"
    assert err.startswith(f"error: the data set is not complete: {4 + inside} of {TOTAL} images are absent")
    assert len(err.splitlines()) == 1


def test_a_missing_list_is_told_and_the_images_are_counted(whole_cub, tmp_path, check):
    shutil.move(whole_cub / "train_test_split.txt", tmp_path / "x")
    try:
        code, out, err = check("data=cub", f"data.root={whole_cub}")
    finally:
        shutil.move(tmp_path / "x", whole_cub / "train_test_split.txt")
    assert code == 2
    assert "  missing  train_test_split.txt" in out
    assert "  found    images.txt" in out
    assert "  11788 image files in images/ (11788 officially in all)" in out
    assert "missing: train_test_split.txt; get it from https://www.vision" in err


def test_a_wrong_folder_is_told_with_the_one_that_looks_right(whole_cub, tmp_path, check):
    for wrong in (whole_cub.parent, whole_cub.parent.parent, whole_cub / "images"):
        code, out, err = check("data=cub", f"data.root={wrong}")
        assert code == 2
        assert f"{whole_cub} looks right: data.root={whole_cub}" in out
        assert f"data.root={whole_cub}" in err
    photo_folder(tmp_path / "birds")
    (tmp_path / "birds" / "wren" / "images").mkdir()     # one name alike does not make it the set
    code, out, err = check("data=cub", f"data.root={tmp_path / 'birds'}")
    assert code == 2
    assert out.count("missing") == 5
    assert "looks right" not in out + err
    assert "get it from https://www.vision" in err
    assert "there is no folder" in check("data=cub", "data.root=/no/where")[2]
    assert "data.root is not given" in check("data=cub")[2]


@pytest.mark.parametrize(("name", "official"), [
    ("cub", "200 classes and 5994 train, 5794 test"), ("cars", "196 classes and 8144 train, 8041 test"),
    ("cars_one_list", "196 classes and 8144 train, 8041 test"), ("dogs", "120 classes and 12000 train, 8580 test"),
    ("aircraft", "100 classes and 3334 train, 3333 val, 3333 test"),
    ("nabirds", "555 classes and 23929 train, 24633 test")])
def test_lists_that_are_cut_short_are_not_complete(tmp_path, check, name, official):
    getattr(replicas, name)(tmp_path)
    code, out, err = check(f"data={name.removesuffix('_one_list')}", f"data.root={tmp_path}")
    assert code == 2
    assert "missing" not in out
    assert "absent" not in out
    assert f"the lists name {out.split('classes  ')[1].split()[0]} classes" in err
    assert f", officially {official}" in err


def test_options_of_a_set_have_their_say(tmp_path, check):
    replicas.aircraft(tmp_path)
    _, out, _ = check("data=aircraft", f"data.root={tmp_path}", "data.level=family", "data.trainval=true")
    assert "  found    data/families.txt" in out
    assert "  listed   12 train, 4 test (officially 6667 train, 3333 test)" in out
    assert "unknown data.level 'kind'; available: family, manufacturer, variant" in check(
        "data=aircraft", "data.root=x", "data.level=kind")[2]


def test_a_file_found_elsewhere_is_shown_where_it_lies(tmp_path, check):
    replicas.cars(tmp_path, devkit="car_devkit/devkit")
    _, out, _ = check("data=cars", f"data.root={tmp_path}")
    assert "  found    devkit/cars_meta.mat (at car_devkit/devkit/cars_meta.mat)" in out
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(b"damaged")
    code, out, err = check("data=cars", f"data.root={tmp_path}")
    assert code == 2
    assert "  wrong    cannot read " in out
    assert "cannot read " in err


def test_other_data_is_loaded_and_counted(tmp_path, check):
    root = photo_folder(tmp_path / "birds", images=4)
    (root / "wren" / "0.png").unlink()
    code, out, err = check(f"data.root={root}")
    assert (code, err) == (0, "")
    assert "  classes  3: Sarkel's finch, blue tit, wren" in out
    assert "  images   11 train" in out
    assert "  training images a class: 3 to 4; fewest: wren" in out
    assert "a quarter of each class" in out
    (root / "split.csv").write_text("path,class,split\nwren/1.png,wren,train\nblue tit/1.png,tit,train\n"
                                    "wren/2.png,wren,test\n")
    code, out, _ = check("data=table", f"data.root={root}")
    assert code == 0
    assert "  images   2 train, 1 test" in out
    assert "quarter" not in out
    (root / "wren" / "2.png").unlink()
    code, out, err = check("data=table", f"data.root={root}")
    assert code == 2
    assert "wren/2.png" in err


def test_a_check_tells_what_adapt_would_refuse_or_warn_of(tmp_path, check):
    root = photo_folder(tmp_path / "birds", images=4)
    (root / "wren" / "0.png").rename(root / "wren.png")
    (root / "Wren").mkdir()
    (root / "wren.png").rename(root / "Wren" / "0.png")
    code, out, err = check(f"data.root={root}")
    assert code == 2
    assert "duplicate class names: 'Wren' and 'wren'" in out + err
    shutil.rmtree(root / "Wren")
    shutil.copytree(root, tmp_path / "both" / "test")
    code, out, _ = check(f"data.root={tmp_path / 'both'}")
    assert code == 0
    assert "no training images are given: for zeroshot and eval" in out
    shutil.copytree(root, tmp_path / "both" / "train")
    code, out, err = check(f"data.root={tmp_path / 'both'}")
    assert code == 0
    assert "11 test images are also training images (byte-identical)" in err


def test_the_two_words_stand_together(capsys):
    assert main(["data"]) == 2
    assert "unknown command 'data'; did you mean 'data check'?" in capsys.readouterr().err
    assert main(["data", "checks", "data=cub"]) == 2
    assert "data check" in capsys.readouterr().err
    assert main(["data", "check", "--cfg", "job", "data=cub"]) == 0
    assert "cub_200_2011" in capsys.readouterr().out


def test_the_check_is_a_library_call(whole_cub, tmp_path):
    whole = check_data("cub", root=whole_cub)
    assert (whole.faults, whole.lines[-1]) == ((), "complete")
    missing = check_data("cub", root=tmp_path)
    assert missing.faults[0].startswith("missing: images.txt")
    assert missing.faults[1].startswith("get it from https://www.vision.caltech.edu")
    assert missing.lines[-1] == "not complete"
    assert check_data("cub", root=whole_cub.parent).faults[1] == f"{whole_cub} looks right: root='{whole_cub}'"
    photos = photo_folder(tmp_path / "birds", images=4)
    counted = check_data(root=photos, name="mine")
    assert (counted.faults, counted.lines[0]) == ((), "mine")
    assert "  images   12 train" in counted.lines


@pytest.mark.parametrize("name", ["folder", "table", "cub"])
def test_a_set_that_cannot_be_loaded_is_a_fault_of_it(tmp_path, name):
    finding = check_data(name, root=tmp_path / "nowhere")
    assert finding.faults == (f"there is no folder {tmp_path / 'nowhere'}; check root",)
    assert finding.lines == (f"  wrong    {finding.faults[0]}", "not complete")


def test_a_wrong_name_or_option_is_an_error():
    with pytest.raises(UserError, match="unknown data set 'cup'; did you mean 'cub'"):
        check_data("cup", root="x")
    with pytest.raises(UserError, match="unknown option of the data set 'folder' 'rooot'"):
        check_data(rooot="x")
