"""A run to a hub and back, against a local stand-in of the hub's endpoint."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
import yaml
from photos import photo_folder
from slow import SLOW

import xrvlm
from xrvlm.cli.main import main
from xrvlm.errors import UserError
from xrvlm.inference.hub import repository

TOKEN = "hf_stand_in"


class StandIn(BaseHTTPRequestHandler):
    """Repositories of models in memory, as huggingface_hub asks for them."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]]
    private: set[str]

    def log_message(self, format: str, *args: object) -> None:    # noqa: A002
        pass

    def reply(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def knows(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.knows():
            return self.reply(401, {"error": "who are you?"}, X_Error_Code="Unauthorized")
        if self.path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---")[1]
            return self.reply(200, {"errors": [], "warnings": []} if yaml.safe_load(front)["library_name"] == "xrvlm"
                              else {"errors": [{"message": "no card"}], "warnings": []})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'someone'}/{given['name']}"
            self.repositories.setdefault(name, {})
            if given.get("private") or given.get("visibility") == "private":
                self.private.add(name)
            return self.reply(200, {"url": f"http://{self.headers['Host']}/{name}"})
        found = re.fullmatch("/api/models/(.+/.+)/(preupload|commit)/main", self.path.partition("?")[0])
        if found is None:
            return self.reply(501, {"error": f"the stand-in does not know {self.path}"})
        name, action = found.groups()
        if action == "preupload":
            return self.reply(200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False,
                                               "oid": None} for file in json.loads(body)["files"]]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = self.sha(name)
        return self.reply(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{sha}", "commitOid": sha,
                                "success": True})

    def sha(self, name: str) -> str:
        return hashlib.sha1(b"".join(self.repositories[name].values())).hexdigest()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch("/api/models/(.+?/.+?)(/(revision|tree)/.+)?", path):
            name = found[1]
        else:
            name = "/".join(path.split("/")[1:3])
        if name not in self.repositories or (name in self.private and not self.knows()):
            return self.reply(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        files, sha = self.repositories[name], self.sha(name)
        if found and found[3] == "tree":
            return self.reply(200, [{"type": "file", "path": file, "size": len(data),
                                     "oid": hashlib.sha1(data).hexdigest()} for file, data in files.items()])
        if found:
            if found[2] and "/revision/" in found[2] and not found[2].endswith(("main", sha)):
                return self.reply(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
            return self.reply(200, {"id": name, "sha": sha, "private": name in self.private, "tags": [],
                                    "siblings": [{"rfilename": file} for file in files]})
        file = path.split("/", 5)[5]
        if file not in files:
            return self.reply(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
        return self.reply(200, files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"', X_Repo_Commit=sha)

    do_HEAD = do_GET    # noqa: N815


@pytest.fixture
def hub() -> Iterator[tuple[str, type[StandIn]]]:
    handler = type("Handler", (StandIn,), {"repositories": {}, "private": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    before = os.environ.get("XRVLM_CACHE")
    os.environ["XRVLM_CACHE"] = str(place / "cache")
    assert main(["adapt", f"data.root={photo_folder(place / 'birds', images=6)}", f"runs={place / 'runs'}",
                 "backbone=tiny", "device=cpu", "workers=0", "shots=3", "features.views=0", "method=linear_probe",
                 "calibrate=folds"]) == 0
    os.environ.pop("XRVLM_CACHE") if before is None else os.environ.update(XRVLM_CACHE=before)
    return next((place / "runs").glob("*/record.json")).parent


def command(place: Path, endpoint: str, *arguments: object, token: str | None = TOKEN) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in a new process, for which `endpoint` is the hub."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1",
                   "HF_HUB_DISABLE_XET": "1", "XRVLM_CACHE": str(place / "cache")}
    environment.pop("HF_TOKEN", None)
    if token is not None:
        environment["HF_TOKEN"] = token
    done = subprocess.run([sys.executable, "-m", "xrvlm", *map(str, arguments)], cwd=place, env=environment,
                          capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_run_goes_to_the_hub_and_comes_back(hub, run, tmp_path):
    endpoint, handler = hub
    code, said, wrong = command(tmp_path, endpoint, "push", run, "someone/birds", "licence=mit")
    assert code == 0, wrong
    assert "someone/birds" in said
    assert set(handler.repositories["someone/birds"]) >= {"README.md", "model.safetensors", "record.json",
                                                          "metrics.json"}
    assert "someone/birds" in handler.private
    everything = b"".join(handler.repositories["someone/birds"].values())
    assert str(run.parent).encode() not in everything, "a path of this machine"
    assert not [item for item in handler.repositories["someone/birds"] if "split" in item or "config" in item]

    photo = run.parents[1] / "birds" / "wren" / "0.png"
    code, said, wrong = command(tmp_path, endpoint, "predict", "hf:someone/birds", photo, "device=cpu")
    assert code == 0, wrong
    assert said.splitlines()[-1].split(": ", 1)[1] == str(xrvlm.predict(run, photo)[0]).split(": ", 1)[1]
    # without the hub, what was fetched is still there
    code, again, wrong = command(tmp_path, "http://127.0.0.1:1", "predict", "hf:someone/birds", photo, "device=cpu")
    assert (code, again) == (0, said), wrong


@pytest.fixture
def here(monkeypatch, tmp_path, capsys, hub):
    """As `command`, in this process."""
    def call(*arguments: object, endpoint: str = hub[0], token: str | None = TOKEN) -> tuple[int, str, str]:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        capsys.readouterr()
        return main([*map(str, arguments)]), *capsys.readouterr()

    return call


@SLOW
def test_other_commands_take_a_model_of_the_hub(hub, run, tmp_path, here):
    _, handler = hub
    assert here("push", run, "someone/birds", "private=false")[0] == 0
    assert "someone/birds" not in handler.private
    birds = run.parents[1] / "birds"
    code, said, wrong = here("eval", "hf:someone/birds", f"data.root={birds}", token=None)
    assert (code, "top-1" in said) == (2, False)             # there is no split.json that says what it has seen
    assert "split.json" in wrong
    code, _, wrong = here("export", "hf:someone/birds", token=None)
    assert code == 0, wrong
    assert (tmp_path / "someone-birds" / "model.onnx").is_file()
    assert not list((tmp_path / "hf").rglob("*.onnx"))


def test_what_the_hub_refuses_is_told_in_a_line(hub, run, tmp_path, here):
    _, handler = hub
    assert here("push", run, "someone/birds")[0] == 0
    handler.repositories["someone/other"] = {"README.md": b"no model"}
    for arguments, token, message in (
            (("push", run, "someone/birds"), "hf_wrong", "refused someone/birds (status 401)"),
            (("push", run, "someone/birds"), None, "(`hf auth login`)"),
            (("predict", "hf:someone/none", "x.png"), TOKEN, "no model someone/none for you (status 404)"),
            (("predict", "hf:someone/birds", "x.png"), None, "for a private one, run `hf auth login`"),
            (("predict", "hf:someone/birds@v9", "x.png"), TOKEN, "no model someone/birds at v9"),
            (("predict", "hf:someone/other", "x.png"), TOKEN, "holds no model.safetensors"),
            (("push", run, "nobody"), TOKEN, "names no model on the hub")):
        (tmp_path / "x.png").write_bytes((run.parents[1] / "birds" / "wren" / "0.png").read_bytes())
        code, _, wrong = here(*arguments, token=token)
        assert code == 2, wrong
        assert message in wrong
        assert "Traceback" not in wrong
    code, _, wrong = here("push", run, "someone/birds", endpoint="http://127.0.0.1:1")
    assert (code, "cannot reach the hub" in wrong) == (2, True), wrong


def test_a_model_of_the_hub_is_a_strangers_file(hub, run, tmp_path, here):
    _, handler = hub
    assert here("push", run, "someone/birds")[0] == 0
    handler.repositories["someone/birds"]["model.safetensors"] = b"\x80\x04cos\nsystem\n."
    handler.repositories["someone/birds"]["config.yaml"] = b"_target_: os.system"
    (tmp_path / "x.png").write_bytes((run.parents[1] / "birds" / "wren" / "0.png").read_bytes())
    code, _, wrong = here("predict", "hf:someone/birds", "x.png")
    assert (code, "is damaged or not a model of xrvlm" in wrong) == (2, True), wrong
    assert not list((tmp_path / "hf").rglob("config.yaml"))


@pytest.mark.parametrize("name", ["hf:a", "hf:a/b/c", "hf:../x", "hf:a/b@../c", "hf:a/b@", "hf:a b/c", "hf:/etc/x",
                                  "hf:a/b--c", "hf:a/b..c", "hf:a/ñb", "hf:owner/.git"])
def test_names_on_the_hub(name):
    with pytest.raises(UserError, match="names no model on the hub"):
        repository(name)
    assert repository("hf:a/b@v1/x") == ("a/b", "v1/x")
    assert repository("hf:a-1/b_2.c") == ("a-1/b_2.c", None)


def test_the_card_says_what_the_record_says(run, tmp_path):
    folder = Path(xrvlm.push(run, "someone/birds", out=tmp_path / "card"))
    card, record = (folder / "README.md").read_text(), json.loads((run / "record.json").read_text())
    assert f"| Top-1 | {100 * record['metrics']['top1']:.1f} |" in card
    assert "9, 3 a class to train on" in card
    assert "calibrated on images held out of training (folds, temperature)" in card
    assert "xrvlm.load(\"hf:someone/birds\")" in card
    assert "Sarkel's finch, blue tit, wren" in card
    low, high = map(float, re.search(r"\| Top-1 \| \S+ \| (\S+) to (\S+) \|", card).groups())      # type: ignore
    assert low <= 100 * record["metrics"]["top1"] <= high
    (folder / "README.md").write_text("mine")
    for place in (folder, run):
        with pytest.raises(UserError, match="holds other files, which would be replaced"):
            xrvlm.push(run, "a/b", out=place)
    assert (folder / "README.md").read_text() == "mine"
    (folder / "README.md").unlink()
    (run / "predictions.csv").rename(run / "away.csv")
    assert "there are no intervals" in Path(xrvlm.push(run, "a/b", out=tmp_path / "card"), "README.md").read_text()
    (run / "away.csv").rename(run / "predictions.csv")
