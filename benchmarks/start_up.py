"""Start-up: seconds and peak memory of short commands, beside the imports that they cannot do without.

    python benchmarks/start_up.py [--turns 5] [--threads 2]

`import xrvlm` and `xrvlm --help` stand beside `python -c pass`. `xrvlm predict` of one photo, with a finished run of
the embedded tower on the CPU, stands beside `import torch, open_clip`: at most 1.5 times that is the target. All
commands take turns in one run of the benchmark; figures are medians, with the first round left out.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import class_folder, options, parse

from xrvlm.cli.main import main as xrvlm

# A process of its own runs each command: the peak memory of a child counts what its parent had when it was started.
METER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - start
if done.returncode:
    sys.exit(done.stderr)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([seconds, peak]))
"""
BESIDE = {"import xrvlm": "python", "xrvlm --help": "python", "xrvlm predict": "import torch, open_clip"}


def commands(run: Path, photo: Path) -> dict[str, list[str]]:
    python = sys.executable
    return {
        "python": [python, "-c", "pass"], "import xrvlm": [python, "-c", "import xrvlm"],
        "xrvlm --help": [python, "-m", "xrvlm", "--help"],
        # behind xrvlm.backbones, which mends a torchvision that does not fit torch
        "import torch, open_clip": [python, "-c", "import torch, xrvlm.backbones, open_clip"],
        "xrvlm predict": [python, "-m", "xrvlm", "predict", f"run={run}", f"images={photo}", "device=cpu"],
    }


def finished_run(folder: Path) -> tuple[Path, Path]:
    """The folder of a run, and one of its photos."""
    data = class_folder(folder / "photos", 3, 4)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        failed = xrvlm(["adapt", f"data.root={data}", "backbone=tiny", "device=cpu", "workers=0", "shots=2",
                        "recipe.epochs=1", "features.views=0", f"features.cache={folder / 'cache'}",
                        f"runs={folder / 'runs'}"])
    if failed:
        sys.exit("the run that `xrvlm predict` is measured with could not be made")
    return Path(output.getvalue().splitlines()[-1]), next(data.rglob("*.jpg"))


def meter(command: list[str], threads: int) -> tuple[float, float]:
    """Seconds and bytes of one command."""
    output = subprocess.run([sys.executable, "-c", METER, *command], check=True, stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": str(threads)}).stdout
    seconds, peak = json.loads(output)
    return seconds, peak


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parse(parser, turns=0)
    with tempfile.TemporaryDirectory() as folder:
        calls = commands(*finished_run(Path(folder)))
        rounds = [{name: meter(command, arguments.threads) for name, command in calls.items()}
                  for _ in range(arguments.turns + 1)]
    rounds = rounds[1:] or rounds        # the first one fills the caches of the file system
    seconds, memory = ({name: median(turn[name][column] for turn in rounds) for name in calls} for column in (0, 1))
    for name in calls:
        ratio = ""
        if baseline := BESIDE.get(name):
            ratio = (f"   {seconds[name] / seconds[baseline]:5.2f} times `{baseline}`, memory "
                     f"{memory[name] / memory[baseline]:.2f} times")
        print(f"{name:24} {seconds[name]:7.3f} s {memory[name] / 1e6:8.1f} MB{ratio}", flush=True)


if __name__ == "__main__":
    main()
