"""Fetch a data set through torchvision, which knows where it is kept and what its archives hash to."""

import logging
from pathlib import Path

from xrvlm.errors import UserError

log = logging.getLogger(__name__)


def download(downloader: str, root: Path, *, title: str, address: str) -> None:
    """Have `torchvision.datasets.<downloader>` put the data set into `root`.

    Raises UserError where the download fails, with the `address` to get it from by hand.
    """
    from torchvision import datasets  # a second of import that only this needs

    log.info("torchvision downloads %s to %s", title, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, downloader)(root, download=True)
    except Exception as error:    # of the network, the disk, an archive that changed, a missing package
        reason = " ".join(str(error).split())
        raise UserError(f"torchvision could not download {title} ({type(error).__name__}: {reason}); get it from "
                        f"{address}") from error
