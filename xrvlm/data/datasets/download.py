"""Download a data set through torchvision, which knows its address and the hashes of its archives."""

import logging
from pathlib import Path

from xrvlm.errors import UserError

log = logging.getLogger(__name__)


def download(downloader: str, root: Path, *, title: str, address: str) -> None:
    """Download the data set to `root` by `torchvision.datasets.<downloader>`.

    Raises UserError, with the `address` to get it from by hand, if the download fails.
    """
    from torchvision import datasets  # takes a second to import

    log.info("torchvision downloads %s to %s", title, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, downloader)(root, download=True)
    except Exception as error:    # network, disk, changed archive, missing package
        reason = " ".join(str(error).split())
        raise UserError(f"torchvision could not download {title} ({type(error).__name__}: {reason}); get it from "
                        f"{address}") from error
