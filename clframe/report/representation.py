"""The representation report of a run: what a probe reads in every kept extractor, and how far extractors move.

`representation.json` in the run directory holds one mapping of mappings. T is the number of experiences, J of evaluation tasks, K of
classes; null stands for a number that doesn't exist. Lists by experience run from the first experience on.

    schema       1
    settings     what the report was made with: probe (logistic or knn), train_per_class (samples; null: all), layers
                 (null: all), cka_samples
    recipe       what is fixed: strengths and max_iterations of the logistic probe, or neighbours
    samples      how many: train, test, and of the alignments first and seen
    tasks        sizes (J), test samples; taught (J), the experience (from 1) after which a task counts as learnt
    probe        matrix (T × J), P[i, j] among all classes; accuracy (T), P_i over all tasks; seen_accuracy (T), Â_i,
                 among the classes seen at i and on their samples; strength (T), the λ chosen
    classifier   head, the run's primary report head; seen_accuracy (T), its A_i among all classes seen
    derived      stability (J), P[T, j] − P[j, j]; plasticity (J), P[j, j] − P[j−1, j]; gain, P_T − P_1;
                 joint_probe_gap (T), A_i − Â_i
    cka          to_first and to_previous: by stream of test samples (first: of the tasks that the first experience
                 teaches; seen: of all tasks seen at i) and layer (stage1, …, features, shallowest first), T values
    drift        taught (K), the experience that brought each class; distance and cosine (T × K) of its prototype, null
                 until a later experience

Accuracies are fractions; drift counts in √(trace of the class covariance).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from clframe.errors import ConfigurationError, RunDirectoryError, did_you_mean
from clframe.metrics.stability_plasticity import did_not_learn
from clframe.report.compare import compare
from clframe.report.plots import plot_matrix
from clframe.report.representation_plots import known_means, plot_cka, plot_drift
from clframe.report.summary import RunSummary
from clframe.report.tables import Cell, Column, Estimate, Table
from clframe.tracking.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILE", "SCHEMA", "Representation", "compare_representations"]

FILE = "representation.json"
SCHEMA = 1
_PARTS = ("settings", "samples", "tasks", "probe", "classifier", "derived", "cka", "drift")

Float = NDArray[np.float64]
AlignedSamples = Literal["first", "seen"]


class Representation:
    """The report of one run. Lists by experience are arrays (T,), of the experiences 1 to T.

    Get one from `run.representation()`. In Jupyter it shows its table.

    Args:
        data: The content of `representation.json`.
        title: What the report is of, for tables and pictures.
    """

    def __init__(self, data: Mapping[str, Any], title: str = "") -> None:
        self.data = data
        self.title = title

    @classmethod
    def read(cls, path: Path, title: str = "") -> Representation:
        """Read a kept report.

        Raises:
            RunDirectoryError: The file is missing, damaged, or of another version.
        """
        data = read_json(path)
        whole = isinstance(data, dict) and data.get("schema") == SCHEMA and all(part in data for part in _PARTS)
        if not whole:
            raise RunDirectoryError(
                f"{path} is damaged, or of another version: make it anew with `clframe representation --again`."
            )
        return cls(data, title)

    @property
    def settings(self) -> dict[str, Any]:
        """What the report was made with."""
        return dict(self.data["settings"])

    # -- the probe -------------------------------------------------------------------------------------------------------

    @property
    def probe_matrix(self) -> Float:
        """P[i, j] (T+1, J): accuracy of the probe of extractor i on task j, among all classes; row 0 is NaN."""
        rows = _array(self.data["probe"]["matrix"])
        return np.vstack([np.full(rows.shape[1], np.nan), rows])

    @property
    def probe_accuracy(self) -> Float:
        """P_i (T,) over the test samples of all tasks."""
        return _array(self.data["probe"]["accuracy"])

    @property
    def stability(self) -> Float:
        """P[T, j] − P[j, j] (J,): below 0, what the extractor has lost of a task since it was taught."""
        return _array(self.data["derived"]["stability"])

    @property
    def plasticity(self) -> Float:
        """P[j, j] − P[j−1, j] (J,): what learning a task brought the extractor for it; NaN in the first experience."""
        return _array(self.data["derived"]["plasticity"])

    @property
    def gain(self) -> float:
        """P_T − P_1."""
        return float(_array(self.data["derived"]["gain"]))

    @property
    def joint_probe_gap(self) -> Float:
        """A_i − Â_i (T,): below 0, what a better classifier on the same features could recover."""
        return _array(self.data["derived"]["joint_probe_gap"])

    # -- alignment and drift ---------------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """The layers aligned, shallowest first."""
        return list(self.data["cka"]["to_first"]["first"])

    @property
    def cka_to_first(self) -> dict[str, dict[str, Float]]:
        """CKA with the extractor of the first experience: `[samples][layer]` is (T,), samples `first` or `seen`."""
        return _aligned(self.data["cka"]["to_first"])

    @property
    def cka_to_previous(self) -> dict[str, dict[str, Float]]:
        """CKA with the extractor of the experience before, likewise; NaN in the first one."""
        return _aligned(self.data["cka"]["to_previous"])

    @property
    def drift(self) -> Float:
        """Mean drift of the old classes' prototypes (T,), in √(trace of the class covariance); NaN where none is old."""
        return known_means(self.drift_by_class)

    @property
    def drift_cosine(self) -> Float:
        """Mean cosine of the old classes' prototypes with what they were (T,)."""
        return known_means(_array(self.data["drift"]["cosine"]))

    @property
    def drift_by_class(self) -> Float:
        """Drift of every class (T, K); NaN until an experience after the one that taught it."""
        return _array(self.data["drift"]["distance"])

    # -- showing ---------------------------------------------------------------------------------------------------------

    def scalars(self) -> dict[str, float]:
        """The numbers that comparisons show; CKA is of the deepest layer, on the test samples of the first experience."""
        last = self.layers[-1]
        return {
            "probe_accuracy_final": float(self.probe_accuracy[-1]),
            "probe_accuracy_first": float(self.probe_accuracy[0]),
            "representation_gain": self.gain,
            "stability": _mean_of(self.stability[self._taught < len(self.probe_accuracy)]),
            "plasticity": _mean_of(self.plasticity),
            "joint_probe_gap": float(self.joint_probe_gap[-1]),
            "cka_to_first": float(self.cka_to_first["first"][last][-1]),
            "prototype_drift": float(self.drift[-1]),
        }

    @property
    def _taught(self) -> NDArray[np.int64]:
        return np.array(self.data["tasks"]["taught"], dtype=np.int64)

    def table(self) -> Table:
        """A row per experience; stability and plasticity are of the tasks that it taught."""
        steps = range(1, len(self.probe_accuracy) + 1)
        gained, lost = (
            np.array([_mean_of(v[self._taught == i]) for i in steps]) for v in (self.plasticity, self.stability)
        )
        last = self.layers[-1]
        reached, possible = (_array(self.data[who]["seen_accuracy"]) for who in ("classifier", "probe"))
        numbers: list[tuple[Column, Float]] = [
            (_percent("probe, all classes"), self.probe_accuracy),
            (_percent("plasticity"), gained),
            (_percent("stability"), lost),
            (_percent(f"{self.data['classifier']['head']}, seen"), reached),
            (_percent("probe, seen"), possible),
            (_percent("gap"), self.joint_probe_gap),
            (_plain("CKA first"), self.cka_to_first["first"][last]),
            (_plain("CKA previous"), self.cka_to_previous["first"][last]),
            (_plain("drift"), self.drift),
            (_plain("cosine"), self.drift_cosine),
        ]
        columns = [Column("after", right=True), *(column for column, _ in numbers)]
        rows: list[list[Cell]] = [[i, *(float(values[i - 1]) for _, values in numbers)] for i in steps]
        return Table(columns, rows, title=self.title, notes=[self._note(last)])

    def _note(self, layer: str) -> str:
        how = "20 nearest neighbours" if self.settings["probe"] == "knn" else "logistic regression"
        per_class = self.settings["train_per_class"]
        size = f"{self.data['samples']['train']} training samples" + (
            f" ({per_class} of each class)" if per_class else ""
        )
        gain = f"{100 * self.gain:+.2f}"
        return (
            f"Probe: {how} on {size}. From the first to the last extractor it gains {gain} %. CKA: {layer}, on test samples of "
            "the first experience."
        )

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def plot_probe_matrix(self) -> Figure:
        """Draw P[i, j] as a heat map."""
        return plot_matrix(self.probe_matrix, title=self.title, label="probe accuracy")

    def plot_cka(self, to: Literal["first", "previous"] = "first", samples: AlignedSamples = "first") -> Figure:
        """Draw the alignment of every layer over the experiences.

        Args:
            to: With which extractor: that of the first experience, or of the one before.
            samples: On which test samples: of the first experience, or of all tasks seen.

        Raises:
            ConfigurationError: There is no such comparison, or no such samples.
        """
        found = {"first": self.cka_to_first, "previous": self.cka_to_previous}
        return plot_cka(_chosen(_chosen(found, to), samples), to=to, title=self.title)

    def plot_drift(self, what: Literal["distance", "cosine"] = "distance") -> Figure:
        """Draw the drift of the prototypes over the experiences, a line per group of classes taught together.

        Args:
            what: The distance moved, or the cosine of the prototype with what it was.

        Raises:
            ConfigurationError: There is no such number.
        """
        found = {name: _array(self.data["drift"][name]) for name in ("distance", "cosine")}
        return plot_drift(_chosen(found, what), self.data["drift"]["taught"], what=what, title=self.title)


def _array(values: Any) -> Float:
    return np.array(values, dtype=np.float64)  # None becomes NaN


def _aligned(data: Mapping[str, Any]) -> dict[str, dict[str, Float]]:
    return {name: {layer: _array(values) for layer, values in layers.items()} for name, layers in data.items()}


def _mean_of(values: Float) -> float:
    return float(known_means(values[None])[0])


def _chosen(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise ConfigurationError(f"Expected one of {', '.join(found)}, received {name!r}.{did_you_mean(name, found)}")
    return found[name]


def _percent(title: str) -> Column:
    return Column(title, unit="%", scale=100.0, digits=2, right=True)


def _plain(title: str) -> Column:
    return Column(title, digits=3, right=True)


_SHOWN = {
    "probe_accuracy_final": _percent("probe, last"),
    "probe_accuracy_first": _percent("probe, first"),
    "representation_gain": _percent("gain"),
    "stability": _percent("stability"),
    "plasticity": _percent("plasticity"),
    "joint_probe_gap": _percent("gap"),
    "cka_to_first": _plain("CKA first"),
    "prototype_drift": _plain("drift"),
}
"""How a comparison shows the scalars of a report."""


def compare_representations(found: Sequence[tuple[RunSummary, Representation]]) -> Table:
    """Return a table of runs: mean and sample deviation over seeds, and whether the extractor learnt after its beginning.

    Rows, ranks (by the probe of the last extractor) and notes are those of `clframe.report.compare`.

    Raises:
        ConfigurationError: There are no runs.
    """
    runs = [
        dataclasses.replace(run, metrics={report.settings["probe"]: {"global": report.scalars()}}, restriction="global")
        for run, report in found
    ]
    table = compare(runs, metrics=tuple(_SHOWN)).table
    columns = [_SHOWN.get(c.title, Column("probe") if c.title == "head" else c) for c in table.heads]
    gain = [c.title for c in table.heads].index("representation_gain")
    rows = [[*row, _verdict(row[gain])] for row in table.rows]
    notes = ["An extractor did not learn if its gain is at most one standard deviation over seeds.", *table.notes]
    return Table([*columns, Column("extractor")], rows, title="Representations", notes=notes)


def _verdict(gain: Cell) -> str:
    known = did_not_learn(gain.mean, gain.std) if isinstance(gain, Estimate) else None
    return "one seed" if known is None else "did not learn" if known else "learnt"
