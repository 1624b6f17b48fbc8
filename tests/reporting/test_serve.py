"""The page: what models say, the endpoint for programs, a browser, what it refuses, and many clients at once."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from photos import CLASSES, photo_folder, write_photo
from PIL import Image
from slow import SLOW, slow

import xrvlm
from xrvlm.cli.main import main
from xrvlm.errors import UserError
from xrvlm.inference.answers import Asked
from xrvlm.reporting.serve.models import load_models
from xrvlm.reporting.serve.page import Page, PageLimits
from xrvlm.views import read_image

pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TINY = ("backbone=tiny", "device=cpu", "workers=0", "shots=3", "features.views=0")
CLIENTS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos, two runs below runs/, and a file that no visitor may read."""
    place = tmp_path_factory.mktemp("page")
    photo_folder(place / "birds", images=6)
    (place / "tree.json").write_text(json.dumps({"finches": [CLASSES[1]], "small birds": [CLASSES[0], CLASSES[2]]}))
    (place / "secret.txt").write_text("not for visitors")
    os.environ["XRVLM_CACHE"] = str(place / "cache")
    for options in (("method=xr_vlm_plus", "calibrate=folds", f"data.hierarchy={place / 'tree.json'}"),
                    ("method=linear_probe",)):
        assert main(["adapt", f"data.root={place / 'birds'}", f"runs={place / 'runs'}", *TINY, *options]) == 0
    return place


@pytest.fixture(autouse=True)
def _in_its_place(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XRVLM_CACHE", str(place / "cache"))


@pytest.fixture
def runs(place) -> list[Path]:
    return sorted(path.parent for path in (place / "runs").glob("*/record.json"))[::-1]        # xr_vlm_plus first


@pytest.fixture(scope="module")
def server(place) -> Iterator[tuple[str, int]]:
    """(address, process) of `xrvlm serve` as a user starts it."""
    runs = sorted(str(path.parent) for path in (place / "runs").glob("*/record.json"))[::-1]
    command = [sys.executable, "-m", "xrvlm", "serve", *runs, "port=0", "uploads=4", "megabytes=0.5", "device=cpu"]
    environment = {**os.environ, "XRVLM_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1",
                   "GRADIO_TEMP_DIR": str(place / "uploads")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place, env=environment)
    try:
        assert process.stdout is not None
        found = re.match(r"http://\S+:\d+/", process.stdout.readline())
        assert found
        yield found[0], process.pid
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def answered(address: str, model: str, *photos: Path) -> list[dict]:
    """As a program asks: upload, join the queue, read the answer."""
    with httpx.Client(base_url=address, timeout=120) as client:
        files = []
        for photo in photos:
            reply = client.post("gradio_api/upload", files={"files": (photo.name, photo.read_bytes())})
            reply.raise_for_status()
            files.append({"path": reply.json()[0], "orig_name": photo.name, "meta": {"_type": "gradio.FileData"}})
        return called(client, [model, files])


def called(client: httpx.Client, data: list) -> list[dict]:
    event = client.post("gradio_api/call/answer", json={"data": data})
    event.raise_for_status()
    text = client.get(f"gradio_api/call/answer/{event.json()['event_id']}").text
    kind, found = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
    if kind != "complete":
        raise UserError(found)
    return json.loads(found)[0]


def test_a_model_says_on_the_page_what_it_says_on_the_command_line(place, runs):
    asked = Asked(coverage=0.9, certainty=0.6)
    models = load_models(runs, asked, topk=3, nearest=2, device="cpu", precision="auto")
    for run in runs:
        model = models[run.name]
        calibrated = model.classifier.calibration is not None
        expected = xrvlm.predict(run, "birds", topk=3, asked=asked if calibrated else None)
        for each in expected:
            found = model.answer(read_image(place / "birds" / each.image), parts=True)
            assert [name for name, _ in found.classes] == [name for name, _ in each.classes]
            assert [chance for _, chance in found.classes] == pytest.approx([chance for _, chance in each.classes],
                                                                            abs=1e-4)
            assert (found.prediction, found.held) == (each.prediction, each.held)
            assert (found.node and found.node[0]) == (each.taxon and each.taxon[0])
            assert found.calibrated == calibrated
            assert len(found.nearest) == 2
            assert len(found.parts) == (3 if calibrated else 0)      # a linear probe has no parts
            assert json.loads(json.dumps(found.row)) == found.row


def test_runs_of_one_tower_share_it(runs):
    models = load_models(runs, Asked(), topk=3, nearest=0, device="cpu", precision="auto")
    assert len({id(model.classifier.clip) for model in models.values()}) == 1
    with pytest.raises(UserError, match="two runs are called"):
        load_models([runs[0], runs[0]], Asked(), topk=3, nearest=0, device="cpu", precision="auto")


def test_names_are_text_on_the_page(place, runs):
    models = load_models(runs, Asked(), topk=3, nearest=0, device="cpu", precision="auto")
    page = Page(models, PageLimits())
    odd = place / "<img src=x onerror=alert(1)>.png"
    write_photo(odd, 0, 1)
    assert "<img src=x" not in page.html(runs[0].name, [odd], True)
    assert "&lt;img src=x" in page.html(runs[0].name, [odd], True)
    odd.unlink()


@pytest.mark.parametrize("limits", [{"uploads": 0}, {"megabytes": 0}, {"waiting": -1}])
def test_limits_are_above_zero(limits):
    with pytest.raises(UserError):
        PageLimits(uploads="x")              # type: ignore
    with pytest.raises(UserError, match=f"{next(iter(limits))}.* must be more than 0"):
        PageLimits(**limits)


def test_a_program_asks(server, place, runs):
    address, _ = server
    photo, broken = place / "birds" / CLASSES[0] / "0.png", place / "broken.jpg"
    broken.write_bytes(b"no photo")
    first, second = answered(address, runs[0].name, photo, broken)
    (expected,) = xrvlm.predict(runs[0], photo)
    assert first["classes"][0] == {"class": expected.classes[0][0],
                                   "probability": pytest.approx(expected.classes[0][1], abs=1e-4)}
    assert first["set"]
    assert first["above"] == ["finches" if first["prediction"] == CLASSES[1] else "small birds"]
    assert first["node"]["probability"] >= 0.9
    assert first["nearest"][0]["class"] in CLASSES
    assert second == {"photo": "broken.jpg",
                      "problem": "cannot read the image broken.jpg: not an image that Pillow knows"}
    (other,) = answered(address, runs[1].name, photo)
    assert other["calibrated"] is False
    assert other["set"] is None


def test_nothing_but_uploads_is_read(server, place, runs):
    address, _ = server
    with httpx.Client(base_url=address, timeout=60) as client:
        for path in (place / "secret.txt", "secret.txt", "/etc/hostname", "../secret.txt",
                     place / "uploads" / ".." / "secret.txt", place / "birds" / CLASSES[0] / "0.png",
                     "http://127.0.0.1:1/x.png", "HTTP://localhost/x.png", "file:///etc/hostname"):
            file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
            with pytest.raises(UserError):
                called(client, [runs[0].name, [file]])
            with pytest.raises(UserError):
                called(client, [runs[0].name, [{**file, "url": str(path), "orig_name": "a.png"}]])
            reply = client.get(f"gradio_api/file={path}")
            assert reply.status_code in (400, 403, 404), path
            assert "not for visitors" not in reply.text
        with pytest.raises(UserError, match="there is no model|not in the list"):
            called(client, ["other", []])


def test_nobody_passes_the_queue_by(server, runs):
    with httpx.Client(base_url=server[0], timeout=60) as client:
        for path in ("run/answer", "api/answer", "run/html"):
            reply = client.post(f"gradio_api/{path}", json={"data": [runs[0].name, []]})
            assert reply.status_code != 200, path


@SLOW
def test_a_server_that_is_told_to_end_deletes_the_uploads(place, runs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(place / "others")}
    process = subprocess.Popen([sys.executable, "-m", "xrvlm", "serve", str(runs[1]), "port=0", "device=cpu"],
                               stdout=subprocess.PIPE, text=True, cwd=place, env=environment)
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    assert answered(address, runs[1].name, place / "birds" / CLASSES[0] / "0.png")
    assert list((place / "others").rglob("0.png"))
    process.terminate()
    assert process.wait(30) in (0, 130)
    assert not list((place / "others").rglob("0.png"))
    process.stdout.close()


def test_what_is_too_large_or_too_much_is_refused(server, place, runs):
    address, _ = server
    large = place / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large)
    assert large.stat().st_size > 0.5e6
    with httpx.Client(base_url=address, timeout=60) as client:
        reply = client.post("gradio_api/upload", files={"files": ("large.png", large.read_bytes())})
        assert reply.status_code == 413
        small = (place / "birds" / CLASSES[0] / "0.png").read_bytes() * 40           # more than all photos of a request
        many = [("files", (f"{key}.png", small)) for key in range(60)]
        assert client.post("gradio_api/upload", files=many).status_code == 413
        parts = client.post("gradio_api/upload", content=iter([b"x"]), headers={"content-type": "multipart/form-data"})
        assert parts.status_code == 413      # which does not say how large it is
    photos = [place / "birds" / CLASSES[0] / f"{key}.png" for key in range(5)]
    with pytest.raises(UserError, match="5 photos are too many: give at most 4 at once"):
        answered(address, runs[0].name, *photos)


def resident(process: int) -> float:
    """Megabytes of memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1000      # type: ignore


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("requests", [60, *slow(200)])
def test_many_clients_get_their_own_answers(server, place, runs, requests):
    address, process = server
    photos = [place / "birds" / name / f"{key}.png" for name in CLASSES for key in range(6)]
    expected = {(run.name, photo): dict(zip([each.image for each in found], found, strict=True))
                for run in runs for photo in photos for found in [xrvlm.predict(run, photo)]}
    asked = [(runs[turn % 2].name, photos[turn * 7 % len(photos)]) for turn in range(requests)]
    sizes, done, lock = [], 0, threading.Lock()

    def ask(one: tuple[str, Path]) -> tuple[str, Path, list[dict]]:
        nonlocal done
        found = answered(address, *one)
        with lock:
            done += 1
            if done in (requests // 4, requests):
                sizes.append(resident(process))
        return (*one, found)

    with ThreadPoolExecutor(CLIENTS) as pool:
        replies = list(pool.map(ask, asked))
    assert len(replies) == requests
    for model, photo, (found,) in replies:
        (right,) = expected[model, photo].values()
        assert found["photo"] == photo.name
        assert [each["class"] for each in found["classes"]] == [name for name, _ in right.classes]
        assert [each["probability"] for each in found["classes"]] == pytest.approx(
            [chance for _, chance in right.classes], abs=1e-4)
    assert sizes[1] < sizes[0] + 30, "memory grows with the number of requests"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt install chromium`")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_visitor_in_a_browser(server, place, runs, width):
    api = pytest.importorskip("playwright.sync_api")
    photo, broken, large = place / "birds" / CLASSES[1] / "0.png", place / "broken.jpg", place / "large.png"
    broken.write_bytes(b"no photo")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)).save(large)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, elsewhere, errors = browser.new_page(viewport={"width": width, "height": 1200}), [], []
        page.on("request", lambda request: elsewhere.append(request.url)
                if not request.url.startswith((server[0], "data:", "blob:")) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server[0])
        said = []
        for turn, run in enumerate(runs):
            page.get_by_label("Model").click()
            page.get_by_role("option", name=run.name).click()
            if not turn:
                page.set_input_files("input[type=file]", [str(photo), str(broken)])
                page.get_by_text("broken").first.wait_for()
            with page.expect_response(lambda reply: "queue/join" in reply.url):
                page.get_by_role("button", name="Answer").click()
            page.wait_for_selector(f".xr-answer:has-text('{'Sure of' if not turn else 'not calibrated'}')")
            said.append(page.locator(".xr-prediction").all_inner_texts())
            assert page.locator(".xr-problem").all_inner_texts() == [
                "cannot read the image broken.jpg: not an image that Pillow knows"]
            assert page.locator("figure img").count() == (6 if not turn else 3)      # parts and nearest photos
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.reload()
        page.set_input_files("input[type=file]", [str(large)])
        page.get_by_text("exceed the maximum").first.wait_for()
        browser.close()
    assert said == [[xrvlm.predict(run, photo)[0].prediction] for run in runs]
    assert not elsewhere
    assert not errors


def test_the_command_says_what_is_wrong(place, runs, capsys):
    for arguments, message in ((["run=nowhere"], "no model at"), ([str(runs[0]), "uploads=0"], "must be more than 0"),
                               ([str(runs[0]), "port=abc"], "port"), ([], "run is not given"),
                               ([str(runs[0]), "port=70000"], "port must be from 0 to 65,535"),
                               ([str(runs[0]), "topk=0"], "topk must be from 1"),
                               ([str(runs[0]), "nearest=-1"], "nearest must be from 0")):
        assert main(["serve", *arguments]) == 2
        assert message in capsys.readouterr().err
