"""XR-VLM's experiments with the real weights and data, beside what its authors and others report.

    python benchmarks/paper.py --data CUB_200_2011 [--dry-run] [--shots 1,2,4,8,16,all]
    python benchmarks/paper.py --suite eleven --data DIR [--skip-missing]

`cub`: experiment=cub_vit_b16, both heads of which the authors report a figure, and what they are compared with.
`eleven`: CoOp's benchmark on CoOp's splits, each data set in its usual folder below DIR.

First the data are checked, and what the runs will cost is told; `--dry-run` stops there. Each run is one command of
`xrvlm adapt` in a process of its own. One that fails does not stop the others. The same command goes on where it was
stopped: a finished run is not done again. The end is RUNS/paper.html, the same as paper.md, and RUNS/report.
`--rehearsal` runs on data that are not complete, such as a small replica of the layout; the page then says so.
"""

import os
import shlex
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import options, parse
from paper_cost import Asked, Job, cost_of
from paper_page import Result, write_page

import xrvlm
from xrvlm.data.datasets.coop import PAGE
from xrvlm.data.registry import load_dataset
from xrvlm.demo.drawn_birds import load_world
from xrvlm.errors import UserError
from xrvlm.experiments.record import read_record
from xrvlm.methods.registry import find

METHODS = "xr_vlm,xr_vlm:alignment,xr_vlm_plus,coop,linear_probe,zero_shot"   # name or name:head; positions first
TOWER = "vit_b16_openai"
HARMLESS = ("device", "precision", "workers", "features.cache", "features.gpu_gb", "backbone.text_memory_gb")


@dataclass(frozen=True)
class Place:
    """A data set of CoOp's benchmark: its usual folders, CoOp's sentence for it, whether CoOp split it anew."""

    folders: tuple[str, ...]
    template: str = "photo"
    split: bool = True


ELEVEN = {
    "imagenet": Place(("imagenet/images", "imagenet"), split=False),
    "caltech101": Place(("caltech-101", "caltech101")),
    "oxford_pets": Place(("oxford_pets", "oxford-iiit-pet"), "pets"),
    "cars": Place(("stanford_cars", "cars")),
    "flowers102": Place(("oxford_flowers", "flowers-102", "flowers102"), "flowers"),
    "food101": Place(("food-101", "food101"), "food"),
    "aircraft": Place(("fgvc_aircraft", "fgvc-aircraft-2013b", "aircraft"), "aircraft", split=False),
    "sun397": Place(("sun397", "SUN397")),
    "dtd": Place(("dtd",), "textures"),
    "eurosat": Place(("eurosat",), "satellite"),
    "ucf101": Place(("ucf101",), "actions"),
}


def targets(arguments: Namespace) -> list[Asked]:
    """The data sets that are there and complete, each with what all of its runs are given; tells what is not there.

    UserError where one is not complete, unless it is to be skipped.
    """
    data = Path(arguments.data).expanduser()
    if arguments.suite == "cub":
        asked = [Asked("cub", data, ("experiment=cub_vit_b16",))]
    else:
        asked = [_in_eleven(name, place, data) for name, place in ELEVEN.items()]
    faults = {each: fault for each in asked if (fault := _fault(each, arguments.rehearsal))}
    there = [each for each in asked if each not in faults]
    if faults and arguments.suite == "cub":
        raise UserError(f"{data} is not complete: {faults[asked[0]]}")
    for each, fault in faults.items():
        print(f"not complete: {each.name} in {each.root}: {fault}", flush=True)
    if faults and not (arguments.skip_missing and there):
        raise UserError(f"{len(faults)} of {len(asked)} data sets are not complete: "
                        f"{', '.join(each.name for each in faults)}. {PAGE} tells where to get each, "
                        "docs/guides/data_sets.md which of them data.download=true fetches; --skip-missing goes on "
                        "without them")
    return there


def _in_eleven(name: str, place: Place, data: Path) -> Asked:
    root = next(filter(Path.is_dir, (data / each for each in place.folders)), data / place.folders[0])
    words = (f"data={name}", f"text.templates={place.template}", "features=online", f"backbone={TOWER}")
    return Asked(name, root, (*words, *(["data.split=coop"] if place.split else [])), place.split)


def _fault(asked: Asked, rehearsal: bool) -> str:
    """Why the data set cannot be used; empty if it can. In a rehearsal one that loads is enough."""
    if not asked.root.is_dir():
        return "there is no such folder"
    if not rehearsal:
        return "; ".join(xrvlm.check_data(asked.name, root=str(asked.root), **asked.options).faults)
    try:
        load_dataset(asked.name, root=str(asked.root), **asked.options)
    except UserError as error:
        return str(error)
    return ""


def plan(asked: Sequence[Asked], arguments: Namespace) -> list[Job]:
    """A run for each data set, method, number of shots and seed; a method that learns nothing has one run."""
    given = [f"runs={arguments.runs}", f"workers={arguments.workers}", *arguments.set]
    given += [] if arguments.device == "auto" else [f"device={arguments.device}"]
    replaced = [] if arguments.backbone == TOWER else [f"backbone={TOWER}"]
    given += [f"backbone={arguments.backbone}"] if replaced else []
    jobs = []
    for each in asked:
        for method in arguments.methods.split(","):
            name, _, head = method.partition(":")
            points = [(shots, seed) for shots in arguments.shots.split(",") for seed in arguments.seeds.split(",")]
            for shots, seed in points if find(name).func.learns else [("0", points[0][1])]:
                chosen = [f"method={name}", *([f"method.head={head}"] if head else []), f"seed={seed}"]
                chosen += [f"shots={shots}"] if shots != "0" else []
                own = (*(word for word in each.words if word not in replaced), f"data.root={each.root}")
                jobs.append(Job(each, method, shots, int(seed), (*own, *chosen, *given)))
    return jobs


def run(job: Job, threads: int) -> Result:
    """The record of a run, or why there is none. KeyboardInterrupt where the run was interrupted."""
    command = [sys.executable, "-m", "xrvlm", "adapt", *job.words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        return Result(job, failure=f"exit code {done.returncode}, said above: {shlex.join(['xrvlm', *command[3:]])}")
    return Result(job, record=read_record(Path(done.stdout.splitlines()[-1]) / "record.json"))


def run_all(jobs: Sequence[Job], threads: int) -> tuple[list[Result], bool]:
    """The results in the order of `jobs`, and whether all were tried: not where it was interrupted."""
    results: list[Result] = []
    try:
        for number, job in enumerate(jobs, start=1):
            print(f"[{number} of {len(jobs)}] {job.title}", flush=True)
            results.append(run(job, threads))
            if (record := results[-1].record) is not None:
                print(f"    top-1 {record.metrics['top1']:.2%}", flush=True)
    except KeyboardInterrupt:
        return results, False
    return results, True


def drawn_replica(folder: Path, classes: int = 5, photos: int = 6) -> Path:
    """The layout of CUB with few drawn birds; two of three are for training."""
    split = load_world(world=0, root=folder / "drawn", train_images=photos, test_images=1).split
    lines: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    kept = [item for item in split.train if item.label < classes]
    for number, item in enumerate(kept, start=1):
        name = split.classes[item.label]
        path = Path(f"{item.label + 1:03}.{name.replace(' ', '_')}") / Path(item.id).name
        (folder / "images" / path.parent).mkdir(parents=True, exist_ok=True)
        (folder / "images" / path).write_bytes((folder / "drawn" / item.id).read_bytes())
        lines["images"].append(f"{number} {path.as_posix()}")
        lines["image_class_labels"].append(f"{number} {item.label + 1}")
        lines["train_test_split"].append(f"{number} {int(number % 3 > 0)}")
    lines["classes"] = [f"{label + 1} {label + 1:03}.{split.classes[label].replace(' ', '_')}"
                        for label in range(classes)]
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return folder


def parser() -> ArgumentParser:
    made = options(__doc__)
    made.set_defaults(device="auto")
    made.add_argument("--suite", choices=("cub", "eleven"), default="cub")
    made.add_argument("--data", help="the folder CUB_200_2011, or the folder of the eleven data sets")
    made.add_argument("--methods", default=METHODS, help="name or name:head, comma-separated")
    made.add_argument("--shots", default="16")
    made.add_argument("--seeds", default="1,2,3")
    made.add_argument("--backbone", default=TOWER, help="another tower than the paper's: one of conf/backbone")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any option of `xrvlm adapt`")
    made.add_argument("--runs", help="default: runs/paper, runs/paper_eleven")
    made.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="processes that decode")
    made.add_argument("--dry-run", action="store_true", help="check the data, tell the cost, and stop")
    made.add_argument("--skip-missing", action="store_true", help="leave data sets out that are not complete")
    made.add_argument("--rehearsal", action="store_true", help="go on with data that are not complete, and say so")
    return made


def read_arguments() -> Namespace:
    arguments = parse(parser(), seeds="1", shots="2", methods="xr_vlm", workers=0,
                      backbone="tiny", rehearsal=True, device="cpu")
    arguments.runs = arguments.runs or ("runs/paper" if arguments.suite == "cub" else "runs/paper_eleven")
    if arguments.tiny:
        arguments.set += ["recipe.epochs=2", "backbone.resize_to=null", "backbone.interpolation=null"]
        arguments.data = arguments.data or str(drawn_replica(Path("replica")))
    if arguments.data is None:
        raise UserError("--data DIR is not given: the folder CUB_200_2011, or with --suite eleven the one of all")
    return arguments


def changes(arguments: Namespace) -> list[str]:
    """What makes the results no measure of the paper, in words; empty for the real thing."""
    found = ["the data may be a small replica, not the published data set"] if arguments.rehearsal else []
    found += [f"the tower is {arguments.backbone}, not {TOWER}"] if arguments.backbone != TOWER else []
    changed = [each for each in arguments.set if each.partition("=")[0] not in HARMLESS]
    return found + ([f"changed: {', '.join(changed)}"] if changed else [])


def main() -> int:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)    # so that no run is left behind
    try:
        arguments = read_arguments()
        jobs = plan(targets(arguments), arguments)
        cost = cost_of(jobs)
        print("\n".join(cost.lines), flush=True)
        if arguments.dry_run:
            return 0
        results, complete = run_all(jobs, arguments.threads)
        page = write_page(results, jobs, Path(arguments.runs), changes=changes(arguments), machine=cost.machine,
                          command=shlex.join(["python", "benchmarks/paper.py", *sys.argv[1:]])
                          ) if any(result.record for result in results) else "no run has ended: there is no page"
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = [result for result in results if result.failure]
    print("\n".join([*(f"failed: {result.job.title}: {result.failure}" for result in failed), str(page)]))
    if not complete:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
    return 1 if failed else 0 if complete else 130


if __name__ == "__main__":
    if code := main():
        sys.exit(code)
