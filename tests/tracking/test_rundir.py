"""The run directory is whole at every moment: made at once or not at all, written by one, readable by all."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clframe.config import resolve
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.tracking.files import read_config, read_json, read_yaml, to_json, write_json, write_text, write_yaml
from clframe.tracking.rundir import RunDirectory, run_name, spec_hash

Tree = Callable[[Path], dict[str, Any]]
FILES = {"config.yaml": {"seed": 0, "name": "ä"}, "stream.json": {"a": [1, 2]}, "environment.json": {"cores": 2}}
SOURCES = {"mine.py": "x = 1\n", "other.py": "y = 2\n"}


_made: list[RunDirectory] = []


def create(path: Path) -> RunDirectory:
    _made.append(RunDirectory.create(path, FILES, SOURCES))
    return _made[-1]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Give back what a test has left open."""
    yield
    while _made:
        _made.pop().close()


class FullDisk:
    """Lets the first operations that change the disk pass and fails every later one, writes after half of their text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
        self.left = allowed
        self.failed = False
        for name in ("mkdir", "rename", "replace", "truncate"):
            monkeypatch.setattr(os, name, self._guard(getattr(os, name)))
        monkeypatch.setattr(io, "open", self._open(io.open))

    def _take(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _guard(self, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._take()
            return real(*args, **kwargs)

        return call

    def _open(self, real: Any) -> Any:
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+"):
                return real(file, mode, *args, **kwargs)
            self._take()
            handle = real(file, mode, *args, **kwargs)
            write = handle.write

            def half(data: Any) -> int:
                try:
                    self._take()
                except OSError:
                    write(data[: len(data) // 2])
                    raise
                return write(data)

            handle.write = half
            return handle

        return call


# -- making ----------------------------------------------------------------------------------------------------------------


def test_a_new_directory_holds_what_was_given_and_is_locked(tmp_path: Path, tree: Tree) -> None:
    made = create(tmp_path / "a" / "run")
    assert made.config == FILES["config.yaml"]
    assert made.stream == FILES["stream.json"]
    assert set(tree(made.path)) == {
        *FILES,
        "lock",
        "predictions",
        "checkpoints",
        "source",
        "source/mine.py",
        "source/other.py",
    }
    assert (made.path / "source" / "mine.py").read_text() == SOURCES["mine.py"]
    with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} on "):
        RunDirectory.open(made.path).lock()
    made.close()
    RunDirectory.open(made.path).lock().close()


@pytest.mark.parametrize("allowed", range(60))
def test_made_whole_or_not_at_all(tmp_path: Path, tree: Tree, allowed: int) -> None:
    (tmp_path / "before").write_text("mine")
    path = tmp_path / "deep" / "er" / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, allowed)
        try:
            create(path).close()
            problem = None
        except RunDirectoryError as error:
            problem = str(error)
    if disk.failed:
        assert problem is not None
        assert problem.startswith(f"The run directory {path} can't be made (")
        assert problem.endswith("choose another --run-dir.")
        assert ".tmp" not in problem
        assert tree(tmp_path) == {"before": b"mine"}
    else:
        assert problem is None
        assert RunDirectory.open(path).config == FILES["config.yaml"]
    create(tmp_path / "later").close()


def test_the_failures_above_reach_past_the_last_write(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, 60)
        create(tmp_path / "deep" / "er" / "run").close()
    assert 10 < 60 - disk.left < 60, "every write of `create` has failed once"


def test_what_is_there_is_never_touched(tmp_path: Path, tree: Tree) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    before = tree(tmp_path)
    for name in ("run", "file", "full"):
        with pytest.raises(RunDirectoryError, match="exists already"):
            create(tmp_path / name)
        assert tree(tmp_path) == before


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert create(tmp_path / "run").config == FILES["config.yaml"]


def test_the_leftovers_of_a_killed_process_are_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".run.{os.getpid()}.tmp" / "predictions").mkdir(parents=True)
    create(tmp_path / "run").close()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    code = (
        "import sys, time; from pathlib import Path; from clframe.tracking.rundir import RunDirectory; "
        "held = RunDirectory.open(Path(sys.argv[1])).lock(); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match=f"in use by process {other.pid} on "):
            RunDirectory.open(tmp_path / "run").lock()
        other.kill()
    RunDirectory.open(tmp_path / "run").lock().close()


def test_the_name_of_a_run_tells_it_apart(tmp_path: Path) -> None:
    (tmp_path / "my-file.py").write_text("from clframe import Strategy\nclass My_Own(Strategy): ...\n")
    records = [
        resolve(c).record
        for c in (
            {},
            {"seed": 1},
            {"strategy": "replay+ewc"},
            {"strategy": f"{tmp_path / 'my-file.py'}:My_Own"},
            {"epochs": 3},
        )
    ]
    names = [run_name(r) for r in records]
    assert [n.rsplit("-", 1)[0] for n in names] == [
        "split_digits-finetune-0", "split_digits-finetune-1", "split_digits-replay+ewc-0", "split_digits-My_Own-0",
        "split_digits-finetune-0",
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    shuffled = dict(reversed(records[0].items()))
    assert spec_hash(shuffled) == spec_hash(records[0]), "the order of keys means nothing"


# -- the log -------------------------------------------------------------------------------------------------------------


def test_events_come_back_in_order_and_what_is_no_number_is_null(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.event("epoch", {"loss": float("nan"), "terms": {"a": float("inf"), "ü": 1.5}})
    run.event("evaluation", {"experience": 1})
    lines = (run.path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=lambda c: pytest.fail(c))["event"] for line in lines] == [
        "epoch",
        "evaluation",
    ]
    first, second = run.events()
    assert (first["loss"], first["terms"]) == (None, {"a": None, "ü": 1.5})
    assert first["schema"] == second["schema"] == 1
    assert first["time"] <= second["time"]


def test_a_last_line_that_is_cut_is_left_out_whatever_its_length(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    for k in range(3):
        run.event("epoch", {"k": k, "text": "é" * 5})
    whole = (run.path / "events.jsonl").read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for size in range(start, len(whole)):
        (run.path / "events.jsonl").write_bytes(whole[:size])
        assert [e["k"] for e in run.events()] == [0, 1]


@pytest.mark.parametrize("line", [b"{", b"5", b"null", b"{}", b"\xff", b""])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    run = create(tmp_path / "run")
    run.event("epoch", {})
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(line + b"\n")
    run.event("epoch", {})
    with pytest.raises(RunDirectoryError, match=r"Line 2 of .*events\.jsonl is damaged"):
        list(run.events())


def test_the_log_is_cut_to_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.event("a", {})
    size = run.events_size
    run.event("b", {})
    run.close()
    again = RunDirectory.open(run.path).lock()
    again.cut_events(size)
    again.event("c", {})
    again.close()
    assert [e["event"] for e in again.events()] == ["a", "c"]


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.event("a", {})
    with pytest.raises(RunDirectoryError, match="to hold at least 9999 bytes"):
        run.cut_events(9999)
    assert [e["event"] for e in run.events()] == ["a"]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from clframe.errors import RunDirectoryError
from clframe.tracking.rundir import RunDirectory
run = RunDirectory.open(Path(sys.argv[1])).lock()
run.event("a", {"text": "x" * 100})
resource.setrlimit(resource.RLIMIT_FSIZE, (run.events_size + 50, resource.RLIM_INFINITY))
try:
    run.event("b", {"text": "x" * 100})
except RunDirectoryError as error:
    print(error)
run.close()
"""
    path = create(tmp_path / "run")
    path.close()
    done = subprocess.run([sys.executable, "-c", code, str(path.path)], capture_output=True, text=True, check=True)
    assert "can't be written (File too large): free some space and resume." in done.stdout
    assert (path.path / "events.jsonl").read_bytes().endswith(b"}\n")
    assert [e["event"] for e in path.events()] == ["a"]


def test_no_log_is_no_events(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert list(run.events()) == []
    assert run.events_size == 0


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", range(3))
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, tree: Tree, allowed: int) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"old": 1})
    before = tree(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, allowed)
        with pytest.raises(RunDirectoryError, match=r"result\.json can't be written \(No space left on device\)"):
            write_json(file, {"new": 2})
    assert tree(tmp_path) == before
    write_json(file, {"new": 2})
    assert read_json(file) == {"new": 2}


def test_a_reader_never_meets_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    contents = [{"k": k, "values": [k] * 20000} for k in range(2)]
    write_json(file, contents[0])
    done = threading.Event()
    met: list[Any] = []

    def read() -> None:
        while not done.is_set():
            met.append(read_json(file))

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(40):
        write_json(file, contents[k % 2])
    done.set()
    reader.join()
    assert met
    assert all(found in contents for found in met)


def test_json_and_yaml_round_trip(tmp_path: Path) -> None:
    value = {"z": 1, "a": [1.5, None, "ä", True], "m": {"k": "1e-4"}}
    write_json(tmp_path / "x.json", value)
    write_yaml(tmp_path / "x.yaml", value)
    assert read_json(tmp_path / "x.json") == value
    assert read_yaml(tmp_path / "x.yaml") == value
    assert list(read_yaml(tmp_path / "x.yaml")) == list(value), "in the order given"
    assert to_json({"a": float("nan"), "b": (1, float("-inf"))}) == '{"a": null, "b": [1, null]}'


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_damaged_or_missing_file_is_named_in_one_line(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    file = tmp_path / "some.file"
    with pytest.raises(RunDirectoryError, match=r"Expected .*some\.file, found no such file"):
        read(file)
    for content in (b"{a: [1", b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(RunDirectoryError, match=r"some\.file is damaged") as caught:
            read(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config", "stream", "result"])
def test_a_file_of_another_form_is_named(tmp_path: Path, name: str) -> None:
    run = create(tmp_path / "run")
    write_text(run.path / f"{name}.{'yaml' if name == 'config' else 'json'}", "[1, 2]\n")
    with pytest.raises(RunDirectoryError, match=rf"{name}\.\w+ is damaged \(it holds a list, no mapping\)"):
        getattr(run, name)


def test_a_configuration_file_is_a_mapping_or_empty(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("")
    assert read_config(file) == {}
    file.write_text("1: 2")
    assert read_config(file) == {"1": 2}
    file.write_text("a: b: c")
    with pytest.raises(ConfigurationError, match=r"x\.yaml is no valid YAML") as caught:
        read_config(file)
    assert "\n" not in str(caught.value)
