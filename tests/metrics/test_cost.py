"""The metrics of cost: worked examples, what can't be given, and the comparison with joint training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clframe.errors import ConfigurationError
from clframe.metrics import CATALOGUE, Measured, compute_ratio, cumulative_retrain_ratio
from clframe.metrics.measured import compute_run
from clframe.report.cost import cost_table

FLOPS = st.lists(st.floats(1.0, 1e15), min_size=1, max_size=8)


def event(experience: int, **changes):
    values = {
        "step_flops": {"train": 100 * experience, "balanced": 10},
        "hook_flops": {"after": 5} if experience > 1 else {},
        "evaluation_flops": 7,
        "inference_flops": 3.5,
        "steps": 4,
        "presentations": 40,
        "wall_seconds": {"steps": 2.0, "hooks": 0.5, "evaluation": 9.0},
        "cpu_seconds": {"steps": 1.0},
        "deployed_bytes": 1000,
        "training_only_bytes": 200,
        "exemplar_bytes": 30 * experience,
        "statistics_bytes": 4,
        "optimizer_bytes": 5000,
        "data_bytes": 617 * experience,
        "peak_memory_bytes": 10**8,
        **changes,
    }
    return {"event": "measured", "experience": experience, "values": values}


def test_metrics_of_a_run_by_hand():
    values, absent = compute_run(Measured.from_events([event(1), event(2)], 2))
    assert values["train_flops"] == [110, 215]
    assert values["phase_flops"] == {"train": [100, 200], "balanced": [10, 10]}
    assert values["total_train_flops"] == 325
    assert values["train_wall_seconds"] == [2.5, 2.5]
    assert values["train_cpu_seconds"] == [1.0, 1.0]
    assert values["exemplar_bytes"] == [30, 60]
    assert values["storage_ratio"] == (1000 + 200 + 60 + 4) / 1234
    assert "RAPL or NVML" in absent["energy_joules"]
    assert "GPU" in absent["peak_device_bytes"]


def test_energy_adds_up_the_counters():
    values, _ = compute_run(Measured.from_events([event(1, energy_joules={"intel-rapl:0": 2.5, "gpu": 4})], 1))
    assert values["energy_joules"] == [6.5]


def test_an_experience_that_was_not_measured_leaves_totals_absent():
    values, absent = compute_run(Measured.from_events([event(2)], 2))
    assert values["train_flops"] == [None, 215]
    assert "wasn't measured" in absent["total_train_flops"]
    assert values["storage_ratio"] > 0


def test_a_run_that_measures_nothing_says_how_to_measure():
    values, absent = compute_run(Measured(2, {}))
    for name in ("train_flops", "phase_flops", "steps", "storage_ratio", "total_train_flops"):
        assert name not in values
        assert "`cost`" in absent[name]


def test_a_stream_without_training_data_has_no_storage_ratio():
    _, absent = compute_run(Measured.from_events([event(1, data_bytes=0)], 1))
    assert "no training data" in absent["storage_ratio"]


def test_every_cost_is_known_to_the_catalogue_with_its_unit():
    units = {"train_flops": "FLOP", "steps": "steps", "presentations": "samples", "train_cpu_seconds": "seconds"}
    units |= {"deployed_bytes": "bytes", "storage_ratio": "ratio", "energy_joules": "joules"}
    for name, unit in units.items():
        metric = CATALOGUE[name]
        assert metric.of_run
        assert metric.unit == unit
        assert metric.higher_is_better is False


def test_ratios_by_hand():
    assert compute_ratio([2.0, 4.0, 6.0], [4.0, 3.0, 24.0]) == [0.5, 2.0, 0.5]
    assert cumulative_retrain_ratio([2.0, 4.0, 6.0], [4.0, 8.0, 12.0]) == 0.5
    assert compute_ratio([2.0, None, 6.0], [4.0, 3.0, 24.0]) == [0.5, None, None]
    assert compute_ratio([2.0, 4.0], [0, 3.0]) == [None, 2.0]
    assert cumulative_retrain_ratio([2.0, 4.0], [0, 3.0]) is None
    assert cumulative_retrain_ratio([2.0, None], [1.0, 3.0]) is None


@given(FLOPS)
def test_retraining_after_every_experience_is_exactly_as_dear_as_itself(joint):
    assert cumulative_retrain_ratio(joint, joint) == pytest.approx(1)
    assert compute_ratio(joint, joint)[0] == 1
    assert all(k >= 1 for k in compute_ratio(joint, joint))


@given(FLOPS, st.floats(0.5, 100))
def test_ratios_scale_with_the_cost(train, factor):
    joint = train[::-1]
    dearer = compute_ratio([factor * f for f in train], joint)
    assert dearer == pytest.approx([factor * k for k in compute_ratio(train, joint)])


def run_values(*events):
    return compute_run(Measured.from_events(events, len(events)))[0]


def test_the_table_flags_what_is_dearer_than_retraining_once():
    run = run_values(event(1), event(2))  # 110, then 215
    cheap, dear = ({**run, "train_flops": [100, total]} for total in (324, 326))
    table = cost_table(run, cheap)
    assert table.notes[0].startswith("Dearer than retraining once: κ_T = 1")
    assert table.notes[1].startswith("κ^cum = 0.767")
    assert table.rows[1][-1] == pytest.approx(325 / 324)
    assert cost_table(run, dear).notes[0].startswith("Not dearer")
    assert "no ratio" in cost_table(run, {**run, "train_flops": [1, 0]}).notes[0]
    alone = cost_table(run)
    assert not alone.notes
    assert [column.title for column in alone.heads][-1] == "kept_bytes"


def test_the_table_shows_numbers_in_the_unit_of_their_column():
    million = [event(i, step_flops={"train": 2_500_000}, hook_flops={}) for i in (1, 2)]
    table = cost_table(run_values(*million))
    assert table.heads[1].unit == "MFLOP"
    assert [row[1] for row in table.cells()] == ["2.50", "2.50"]
    assert [row[4] for row in table.cells()] == ["4", "4"]


def test_a_run_without_costs_is_refused_with_what_to_do():
    run = run_values(event(1))
    with pytest.raises(ConfigurationError, match="joint run didn't measure its cost: run it again"):
        cost_table(run, {})
