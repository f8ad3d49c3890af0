"""What torchrun starts in the tests: one run, whose losses, weights and predictions the parent compares."""

from __future__ import annotations

import json
import sys

import clframe

if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    stop_after = task.pop("stop_after", None)
    resumed = task.pop("resume", False)
    try:
        if resumed:
            clframe.resume(task["run_dir"], progress=False)
        else:
            clframe.run(progress=False, stop_after=stop_after, **task)
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
