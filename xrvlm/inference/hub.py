"""Models on the Hugging Face hub: `hf:owner/name`, or `hf:owner/name@revision` for a branch, a tag or a commit.

Such a model is a stranger's file: it is read as any other model, and nothing of the repository but `FILES` is fetched.
`HF_ENDPOINT` names another server, `HF_HUB_OFFLINE=1` reads what was fetched before.
"""

import logging
import re
from pathlib import Path

from xrvlm.errors import UserError

log = logging.getLogger(__name__)
PREFIX = "hf:"
FILES = ("model.safetensors", "record.json", "metrics.json")
REVISION = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


def repository(path: str | Path) -> tuple[str, str | None]:
    """(owner/name, revision or None) of `hf:owner/name@revision`; UserError where it is none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, at, revision = str(path).removeprefix(PREFIX).partition("@")
    try:
        validate_repo_id(name)
        if name.count("/") != 1 or not name.isascii():
            raise HFValidationError("no owner, or another alphabet")
        if at and (not REVISION.fullmatch(revision) or ".." in revision):
            raise HFValidationError("no revision")
    except HFValidationError as error:
        raise UserError(f"{path} names no model on the hub ({error}): write {PREFIX}owner/name, or "
                        f"{PREFIX}owner/name@revision") from error
    return name, revision or None


def fetched(path: str | Path) -> Path:
    """The folder of a model on the hub, in the hub's own cache; fetched where it is not there yet.

    Raises UserError where there is none, it may not be read, or the hub cannot be reached and it was never fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, revision = repository(path)
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except LocalEntryNotFoundError as error:
        raise UserError(f"{name} was not fetched before, and the hub cannot be reached: connect, or name the folder of "
                        "a run") from error
    except HfHubHTTPError as error:      # no such repository or revision, a private one, a server that fails
        named = f"{name} at {revision}" if revision else name
        raise UserError(f"the hub has no model {named} for you (status {error.response.status_code}): check the name; "
                        "for a private one, run `hf auth login`") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch {name} from the hub: {error}; check the connection") from error
    if not (folder / FILES[0]).is_file():
        raise UserError(f"{name} on the hub holds no {FILES[0]}: it is no model of xrvlm")
    log.info("%s: %s", path, folder)
    return folder
