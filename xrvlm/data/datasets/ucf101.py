"""UCF101 (Soomro et al., 2012, arXiv:1212.0402): 101 actions; of each of 13,320 videos the frame in the middle."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.coop import SplitName, chosen
from xrvlm.data.datasets.layout import Layout, Listing, load
from xrvlm.data.datasets.lists import listing_of_paths, read_lines

LISTS = {"train": "trainlist01.txt", "test": "testlist01.txt"}
ADDRESS = ("https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md (the frames, UCF-101-midframes.zip) and "
           "https://www.crcv.ucf.edu/data/UCF101.php (the lists, UCF101TrainTestSplits-RecognitionTask.zip)")


def layout(*, split: SplitName = "official") -> Layout:
    frames = "UCF-101-midframes/"
    paths = {f"ucfTrainTestlist/{file}": (f"ucfTrainTestlist/{file}", file) for file in LISTS.values()}
    official = Layout("UCF101", ADDRESS, classes=101, images={"train": 9537, "test": 3783}, read=_read,
                      paths=paths | {frames: (f"{frames}UCF-101-midframes", frames)})
    return chosen(split, official, file="split_zhou_UCF101.json", folders=(frames,),
                  images={"train": 7639, "val": 1898, "test": 3783})


@registered("ucf101", layout)
def ucf_101(root: str | Path, *, split: SplitName = "official",
            class_names: str | Sequence[str] | Mapping[str, str] | None = None, skip_damaged: bool = False,
            name: str = "ucf101") -> Dataset:
    """The first of the three official splits, 9,537 for training and 3,783 for testing; or CoOp's (same test set).

    `root` holds UCF-101-midframes/, one frame a video as CoOp distributes them (Apply_Eye_Makeup/v_..._c01.jpg), and
    ucfTrainTestlist/ with the official lists, which CoOp's split does not need. `split`: see coop.py; `class_names`:
    see `image_folder`. Raises UserError, which names the fix.
    """
    return load(layout(split=split), root, class_names=class_names, skip_damaged=skip_damaged, name=name)


def _read(root: Path, found: Mapping[str, Path]) -> Listing:
    # ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
    videos = {subset: [line.split()[0] for line in read_lines(found[f"ucfTrainTestlist/{file}"])]
              for subset, file in LISTS.items()}
    frames = {subset: [_frame(video) for video in listed] for subset, listed in videos.items()}
    return listing_of_paths(root, found["UCF-101-midframes/"], frames)


def _frame(video: str) -> str:
    action, _, file = video.partition("/")
    return f"{'_'.join(re.findall('[A-Z][^A-Z]*', action))}/{file.removesuffix('.avi')}.jpg"
