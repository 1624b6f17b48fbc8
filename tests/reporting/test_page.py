"""The page of a report: it stands alone, it says what the runs say, and a browser opens it without a complaint."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from photos import photo_folder
from results import record

from xrvlm.cli.main import main
from xrvlm.data.dataset import Split, write_split
from xrvlm.data.folder import image_folder
from xrvlm.errors import UserError
from xrvlm.evaluation import metrics
from xrvlm.experiments import record as records
from xrvlm.experiments.record import append_record
from xrvlm.reporting import page as page_module
from xrvlm.reporting.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CLASSES = ("a <b>bold</b> & \"quoted\" jay", "kite's", "<script>alert(1)</script>")
FETCHED = {"src", "srcset", "href", "data", "poster", "action", "background"}


class Reader(HTMLParser):
    """Every tag with its attributes, and the text of the page by tag."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Runs of two methods at two shot counts and two seeds beside zero-shot, with photos; as `published` data."""
    root = tmp_path_factory.mktemp("sweep")
    dataset = image_folder(photo_folder(root / "photos", images=4, classes=("x", "y", "z")))
    split = Split(CLASSES, (), (), dataset.split.train)
    for label, shots, seeds, wrong in (("CLIP zero-shot", 0, (1,), 6), ("CoOp", 4, (1, 2), 5), ("CoOp", 16, (1, 2), 4),
                                       ("XR-VLM <i>", 4, (1, 2), 3), ("XR-VLM <i>", 16, (1, 2), 1)):
        for seed in seeds:
            run = f"{label[:2]}-{shots}-{seed}"
            write_run(root / "runs" / run, split, wrong + (seed == 2), dataset.source)
            summary = json.loads((root / "runs" / run / "metrics.json").read_text())["summary"]
            append_record(root / "runs", record(
                run, label=label, method="zero_shot" if shots == 0 else "coop", shots=shots, seed=seed, data="dtd",
                backbone="ViT-B-16/openai", head=None, prompts="names" if shots == 0 else "learned", recipe="none",
                learned_parameters=0 if shots == 0 else 77, setting=f"{label}{shots}", metrics=summary))
    return root / "runs", dataset.source


def write_run(folder: Path, split: Split, wrong: int, source) -> None:
    """`wrong` images are taken for the class after theirs."""
    labels = torch.tensor([item.label for item in split.test])
    guesses = (labels + (torch.arange(len(labels)) < wrong)) % 3
    scores = torch.nn.functional.one_hot(guesses, 3) * 0.7 + 0.1
    metrics.write_scores(folder, [item.id for item in split.test], labels, scores, CLASSES)
    records.write_losses(folder, [{"epoch": 1, "loss": 2.0, "learning_rate": 0.1}])
    write_split(folder / "split.json", split, source, seed=1, shots=1)


@pytest.fixture(scope="module")
def page(sweep, tmp_path_factory) -> Path:
    runs, source = sweep
    root = tmp_path_factory.mktemp("published")
    shutil.copytree(runs, root / "runs")
    for path in (root / "runs").glob("*/split.json"):    # as many classes and test images as CoOp's split of DTD
        split = json.loads(path.read_text())
        split["classes"] += [f"class {i}" for i in range(47 - len(split["classes"]))]
        split["test"] += split["test"][:1] * (1692 - len(split["test"]))
        path.write_text(json.dumps(split))
    return write_report(root / "runs", root / "report", source_of=lambda _: source).html


def test_the_page_stands_alone(page):
    reader = Reader(page.read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        for name in FETCHED & attributes.keys():
            value = attributes[name]
            assert value.startswith("data:image/") if tag == "img" else not re.match(r"[a-z]+:|//", value), (tag, value)
    text = page.read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://", text)
    policy, = [attributes["content"] for tag, attributes in reader.tags
               if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_what_users_call_things_is_text(page):
    reader = Reader(page.read_text(encoding="utf-8"))
    assert "b" in {tag for tag, _ in reader.tags}        # the bars of the classes, and nothing else
    assert all(attributes.get("style", "").startswith("width:") for tag, attributes in reader.tags if tag == "b")
    text = reader.text
    for name in (*CLASSES, "XR-VLM <i>"):
        assert name in text


def test_the_page_leads_with_methods_over_shots(page):
    text = Reader(page.read_text(encoding="utf-8")).text
    header = re.search(r"Method 0 4 16 Labels Time s Learned Published", text)
    assert header
    row = text[header.end():].split("XR-VLM <i>", 1)[1]
    # of 12 images 3 and 4 are wrong with 4 shots, 1 and 2 with 16, and 6 of zero-shot
    few, many = (rf"{score} ± 5\.9 \{gain} \[[+-][\d.]+, \+[\d.]+\] " for score, gain in ((70.8, "+20.8"),
                                                                                       (87.5, "+37.5")))
    assert re.match(f" (prompts: learned )?- {few}{many}", row)
    assert "points above CLIP zero-shot on the same test images" in text
    assert "does not cover the draw of the shots" in text
    assert "69.9" in text                                # of CoOp on dtd, at 16 shots, by others
    assert "GalLoP 75.5" in text


def test_details_show_what_was_confused(page):
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert sum(image["src"].startswith("data:image/jpeg") for image in images) > 6
    for kind in ("confusion matrix", "reliability diagram", "training loss", "top-1 over shots"):
        assert any(kind in image["alt"] for image in images)
    assert len([1 for tag, attributes in reader.tags if tag == "details" and attributes.get("class") == "run"]) == 3
    assert "% of 4" in text
    assert "2 rows with fewer shots left out" in text


def test_without_photos_the_page_says_so(sweep, tmp_path):
    def gone(folder):
        raise UserError("there is no folder /photos; check data.root")

    for source, told in ((gone, "No photos: there is no folder /photos; check data.root."),
                         (None, "No photos: the report was made with photos=False.")):
        text = write_report(sweep[0], tmp_path, source_of=source).html.read_text(encoding="utf-8")
        assert told in text
        assert "data:image/jpeg" not in text


def test_a_long_table_shows_intervals_when_asked_for(sweep, tmp_path, monkeypatch):
    for most, checked in ((3, True), (2, False)):        # three methods
        monkeypatch.setattr(page_module, "MANY", most)
        text = write_report(sweep[0], tmp_path).html.read_text(encoding="utf-8")
        box, = [attributes for tag, attributes in Reader(text).tags if tag == "input"]
        assert ("checked" in box) == checked
        assert text.count('<small class="interval ') == 4                    # two methods at two numbers of shots


def test_another_baseline(sweep, tmp_path):
    made = write_report(sweep[0], tmp_path, baseline="CoOp")
    text = Reader(made.html.read_text(encoding="utf-8")).text
    assert "points above CoOp on the same test images" in text
    row = text.split("XR-VLM <i>")[2]    # the first line names it too
    assert re.search(r"^[^%]*70\.8 ± 5\.9 \+16\.7 \[", row)
    markdown = made.markdown.read_text(encoding="utf-8")
    assert "| Difference |" in markdown
    assert "| baseline |" in markdown
    assert "Results that others published for dtd are left out" in markdown
    assert "Published" not in markdown
    with pytest.raises(UserError, match="unknown baseline 'CoOps'.*did you mean 'CoOp'"):
        write_report(sweep[0], tmp_path, baseline="CoOps")


def test_the_same_runs_make_the_same_page(sweep, tmp_path):
    runs, source = sweep
    first, again = (write_report(runs, tmp_path / name, source_of=lambda _: source).html
                    for name in ("once", "more"))        # as deep, for links to the runs are relative
    assert again.read_bytes() == first.read_bytes()


def test_the_command_names_the_page_and_checks_its_options(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", f"runs={sweep[0]}", f"out={tmp_path / 'r'}", "baseline=XR-VLM <i>", "photos=true"]) == 0
    assert str(tmp_path / "r" / "report.html") in capsys.readouterr().out
    text = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "does not say where its images were" in text  # these runs have no config.yaml
    assert main(["report", f"runs={sweep[0]}", f"out={tmp_path / 'r'}", "baseline=nothing"]) == 2
    assert "unknown baseline 'nothing'" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_opens_it_without_a_complaint(page, tmp_path):
    """The page forbids itself all outside requests, so one would be told on the console."""
    def console(path: Path) -> list[str]:
        done = subprocess.run(
            [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", "--dump-dom",
             path.as_uri()], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "All metrics" in done.stdout
        return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    assert console(page) == []
    broken = tmp_path / "broken.html"                    # such a complaint is seen where there is one
    broken.write_text(page.read_text(encoding="utf-8").replace(
        "</main>", '<img src="https://example.org/x.png" alt=""></main>'), encoding="utf-8")
    assert console(broken)


def test_long_names_wrap_wherever_a_name_can_stand():
    """A data set, a method or a class of 200 letters widens nothing beyond a screen of 400 pixels."""
    style = (Path(page_module.__file__).parent / "page.html").read_text(encoding="utf-8").partition("</style>")[0]
    wrapping = ",".join(re.findall(r"([^{}]+)\{[^{}]*overflow-wrap: anywhere", style))
    assert {"h2", "p", "nav a", "label", "code", "summary", ".pair"} <= {each.strip() for each in wrapping.split(",")}
