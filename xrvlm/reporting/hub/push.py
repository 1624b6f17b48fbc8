"""`xrvlm push`: a run's model with its card to the Hugging Face hub."""

import logging
import shutil
import tempfile
from pathlib import Path

from xrvlm.errors import UserError, option, typed
from xrvlm.experiments.record import read_record
from xrvlm.experiments.saved import SavedRun, check_writable
from xrvlm.files import file_text, user_path, write_text
from xrvlm.inference.hub import FILES, repository
from xrvlm.reporting.hub.card import card, local_tower

log = logging.getLogger(__name__)
MARK = "library_name: xrvlm"             # in the card


@typed
def push(run: str | Path, repo: str, *, private: bool = True, licence: str | None = None,
         out: str | Path | None = None) -> str:
    """Send the model of a finished run, its record, its metrics and a card to the repository `repo`; returns where.

    The names of images, their folders and the run's configuration stay here. Needs a token (`hf auth login`, or
    HF_TOKEN); HF_ENDPOINT names another server. A second push adds a commit.

    Args:
        run: the folder of a finished run, or "latest".
        repo: owner/name; made where it does not exist.
        private: whether a repository that is made now is.
        licence: of the model, as the hub writes it, such as "apache-2.0".
        out: write the files to this folder, to look at them, and send nothing.

    Raises:
        UserError: the run is not finished, `repo` is no name, or the hub refuses.
    """
    repo, revision = repository(repo)
    if revision is not None:
        raise UserError(f"{option('repo')} names a revision, {revision}: leave it out, a push adds a commit to main")
    saved = SavedRun(run)
    header = saved.header
    if not (saved.folder / "record.json").is_file():
        raise UserError(f"{saved.folder} holds no record.json: name the folder of a finished run")
    record = read_record(saved.folder / "record.json")
    if (tower := local_tower(header)) is not None:
        log.warning("others cannot load the tower of this run, %s: they must pass it as `clip`", tower)
    text = card(repo, header, record, saved.folder, licence=licence)
    if out is not None:
        folder = user_path(out)
        check_writable(folder)
        _check_own(folder, saved.folder)
        return str(_gathered(saved.folder, folder, text))
    with tempfile.TemporaryDirectory() as place:
        return _sent(_gathered(saved.folder, Path(place), text), repo, private)


def _check_own(folder: Path, run: Path) -> None:
    """UserError where `folder` holds files that no push wrote."""
    there = folder / "README.md"
    if folder.resolve() == run.resolve() or (there.exists() and MARK not in file_text(there)[:1000]):
        raise UserError(f"{folder} holds other files, which would be replaced: name a new folder with "
                        f"{option('out', 'DIR')}")


def _gathered(run: Path, folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "README.md", text)
    for name in FILES:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    return folder


def _sent(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="xrvlm")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A model of xrvlm")
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused {repo} (status {error.response.status_code}): check the name, and that your "
                        "token may write (`hf auth login`)") from error
    except (OSError, HfHubHTTPError.__mro__[1]) as error:      # pyright: ignore  (of httpx, or its successor)
        raise UserError(f"cannot reach the hub ({error}): {option('out', 'DIR')} writes the files to a folder"
                        ) from error
    return str(commit.repo_url)
