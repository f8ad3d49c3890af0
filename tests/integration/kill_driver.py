"""Kills a run again and again at random moments and resumes it; prints what the test compares.

Run as a program of its own: it imports everything once and forks, so that a kill costs no new start of Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

import clframe
from clframe import api
from clframe.results import predictions_of
from clframe.training.checkpoint import read_checkpoint

CONFIG = {
    "scenario": {"name": "split_digits", "experiences": 5},
    "strategy": {"name": "replay+ewc+lwf", "form": "step", "memory_size": 60, "ewc": {"strength": 0.5, "fisher_samples": 50},
                 "lwf": {"strength": 0.5}, "epochs": 3},
    "backbone": {"name": "mlp", "hidden": [64], "dropout": 0.2},
    "augmentation": ["random_crop"],
    "optimizer": {"lr": 0.02, "clip_norm": 1.0},
    "batch_size": 8,
    "checkpoint_minutes": 0.0002,  # 12 milliseconds: most checkpoints lie inside an epoch
    "seed": 3,
}  # fmt: skip


def child(path: Path) -> int:
    """Start or continue the run in a forked process; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        warnings.simplefilter("ignore")
        if (path / "config.yaml").exists():
            api.resume(path, progress=False)
        else:
            api.run(run_dir=path, progress=False, **CONFIG)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def outcome(path: Path) -> dict[str, str]:
    """Digests of everything that a finished run is judged by."""
    state = read_checkpoint(path / "checkpoints" / "latest.pt")

    def digest(value: object) -> str:
        found = hashlib.sha256()

        def walk(v: object) -> None:
            if isinstance(v, torch.Tensor):
                found.update(v.contiguous().numpy().tobytes())
            elif isinstance(v, dict):
                for k in v:
                    found.update(str(k).encode())
                    walk(v[k])
            elif isinstance(v, (list, tuple)):
                for part in v:
                    walk(part)
            else:
                found.update(repr(v).encode())

        walk(value)
        return found.hexdigest()

    result = json.loads((path / "result.json").read_text())
    predictions = {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.rglob("*.npz"))
    }
    epochs = [
        (e["experience"], e["phase"], e["epoch"], e["loss"], e["terms"]) for e in clframe.load(path).events("epoch")
    ]
    return {
        "network": digest(state["network"]),
        "strategies": digest(state["strategies"]),
        "values": digest(result["values"]),
        "predictions": digest(predictions),
        "epochs": digest(epochs),
        "steps": str(state["counters"]["steps"]),
        "presentations": str(state["counters"]["presentations"]),
    }


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    warm = {**CONFIG, "scenario": {"name": "split_digits", "experiences": 5, "train_per_class": 2}}
    api.run(
        run_dir=folder / "warm", progress=False, **warm
    )  # what a run imports when it needs it, no child imports again
    started = time.monotonic()
    _, status = os.waitpid(child(folder / "whole"), 0)
    length = time.monotonic() - started
    delays = random.Random(seed)
    path, done, unfinished, statuses = folder / "killed", 0, 0, []
    while done < kills and not (path / "result.json").exists():
        pid = child(path)
        time.sleep(delays.uniform(0.02, 1.5 * length / kills + 0.1))
        os.kill(pid, signal.SIGKILL)
        _, killed = os.waitpid(pid, 0)
        done += os.WIFSIGNALED(killed)
        statuses.append(killed)
        if (path / "config.yaml").exists():  # whatever the moment, a reader must be able to read
            run = clframe.load(path)
            list(run.directory.events())
            predictions_of(run.directory)
            unfinished += not run.finished
    while not (path / "result.json").exists():
        _, last = os.waitpid(child(path), 0)
        statuses.append(last)
        if last:
            break
    leftovers = [p.name for p in path.rglob("*.tmp")]
    report = {"kills": done, "unfinished": unfinished, "whole_status": status, "statuses": statuses, "leftovers": leftovers,
              "whole": outcome(folder / "whole"), "killed": outcome(path)}  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
