"""NABirds (Van Horn et al., CVPR 2015): 555 kinds of North American birds, 48,562 photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xrvlm.data.dataset import Dataset, registered
from xrvlm.data.datasets.layout import Layout, load
from xrvlm.data.datasets.lists import layout_of_ids, read_pairs
from xrvlm.data.hierarchy import with_parents
from xrvlm.files import user_path

TREE = "hierarchy.txt"


def layout() -> Layout:
    return layout_of_ids("NABirds", "https://dl.allaboutbirds.org/nabirds", classes=555,
                         images={"train": 23929, "test": 24633}, called=_called)


@registered("nabirds", layout)
def nabirds_v1(root: str | Path, *, class_names: str | Sequence[str] | Mapping[str, str] | None = None,
               skip_damaged: bool = False, name: str = "nabirds") -> Dataset:
    """The official split, 23,929 for training and 24,633 for testing.

    classes.txt also names the inner nodes of a tree; the classes are the 555 that have images. Where hierarchy.txt is
    there, the data set has that tree; an inner node that is called as another node bears its number. The names of the
    classes are used in full, since sexes, ages and morphs of a species are separate ones: `Common Eider (Adult male)`.

    `root` is the archive's folder nabirds: images.txt, classes.txt ... and images/. `class_names`: see
    `image_folder`. Raises UserError, which names the fix.
    """
    dataset = load(layout(), root, class_names=class_names, skip_damaged=skip_damaged, name=name)
    folder = user_path(root)
    return with_parents(dataset, _tree(folder, dataset.split.classes)) if (folder / TREE).is_file() else dataset


def _tree(folder: Path, classes: Sequence[str]) -> dict[str, str]:
    """{node: parent} of hierarchy.txt, the leaves by their names in `classes`."""
    names, above = read_pairs(folder / "classes.txt"), read_pairs(folder / TREE)
    leaves = sorted(set(read_pairs(folder / "image_class_labels.txt").values()), key=int)
    called = dict(zip(leaves, classes, strict=True))
    for node in sorted({*above, *above.values()} - called.keys()):
        name = _called(names.get(node, node))
        called[node] = name if name not in called.values() else f"{name} [{node}]"
    return {called[node]: called.get(above.get(node, ""), "") for node in called}


def _called(name: str) -> str:
    return name.replace(" )", ")")       # "Swainson's Hawk (Dark morph )"
