"""What is measured in a process of its own, where memory or imports matter; started by `apart`.

    python benchmarks/speed_suite/children.py TASK SIDE ARGUMENT…

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))


def apart(task: str, side: str, *arguments: str) -> dict[str, float]:
    """Run a task in a process of its own, with as many threads as this one."""
    import torch

    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, __file__, task, side, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **threads})
    found: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def command_seconds(*command: str) -> dict[str, float]:
    """Return the CPU seconds of a command of Python's, and those by the clock."""
    import time

    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, *command], check=True, **quiet)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


def peak_megabytes() -> float:
    """Largest resident memory of this process; Linux's `ru_maxrss` would count what its parent held before it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def peak(side: str, job: str, root: str) -> dict[str, float]:
    """Train a job; return the peak in megabytes, and how much the process held before it began."""
    from clframe.data import DataRoot
    from speed_suite.bare import train_bare
    from speed_suite.jobs import Job, train_clframe

    chosen = Job(**json.loads(job))
    stream = chosen.stream(DataRoot.resolve(root or None))
    before = peak_megabytes()
    if side == "clframe":
        train_clframe(chosen, stream, 0)
    else:
        train_bare(chosen, stream, 0)
    return {"megabytes": round(peak_megabytes(), 1), "before": round(before, 1)}


def setup(side: str, place: str) -> dict[str, float]:
    """Make Split CIFAR-100 of ten experiences; imports are not timed, `place` is a data root or a folder of files."""
    from speed_suite.timing import timed

    if side == "clframe":
        import pydantic

        from clframe.data import DataRoot
        from clframe.scenarios.split import Split

        _ = pydantic.TypeAdapter  # imports at first use what checks options
        return timed(lambda: Split(source="cifar100", experiences=10).build(DataRoot.resolve(place or None)))[0]
    from speed_suite.peer import require, split_cifar100

    require("avalanche.benchmarks.classic")
    return timed(lambda: split_cifar100(Path(place), 10, 100))[0]


def main() -> None:
    """Do one task."""
    task, *arguments = sys.argv[1:]
    print(json.dumps({"peak": peak, "setup": setup}[task](*arguments)))


if __name__ == "__main__":
    main()
