"""Where sessions are played makes no difference to them; a process that dies takes nothing with it."""

import sys

import pytest

import experiments
from experiments import sweep
from experiments.launchers import LauncherConfig, Lost, run_tasks
from packager.errors import BuildError

DYING = '''
import os
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Dying:
    """Squares its tasks; 3 kills its first process, 5 every one."""

    folder: Path

    def __call__(self, task):
        mark = self.folder / str(task)
        if task == 5 or (task == 3 and not mark.exists()):
            mark.touch()
            os._exit(9)
        return task * task
'''


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """A worker that a child process can import."""
    (tmp_path / "promptdash_dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    import promptdash_dying

    yield promptdash_dying.Dying(tmp_path)
    del sys.modules["promptdash_dying"]


def results(worker, launcher, tasks=8):
    found = dict(run_tasks(worker, list(range(tasks)), launcher=LauncherConfig(*launcher), jobs=2))
    assert sorted(found) == list(range(tasks))
    return found


def check_survivors(found):
    lost = found.pop(5)
    assert isinstance(lost, Lost)
    assert "died" in lost.reason
    assert found == {task: task * task for task in range(8) if task != 5}


def test_a_task_whose_process_died_is_tried_again(dying):
    check_survivors(results(dying, ("local",)))


def test_on_ray_too(dying, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_survivors(results(dying, ("ray", "local")))


def test_one_job_needs_no_process(tmp_path):
    tasks = list(range(4))
    assert list(run_tasks(str, tasks, launcher=LauncherConfig(), jobs=1)) == [(task, str(task)) for task in tasks]
    assert list(run_tasks(str, [], launcher=LauncherConfig(), jobs=2)) == []


def test_ray_plays_the_same_sessions(box_package, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    places = {"local": ["jobs=1"], "ray": ["jobs=2", "launcher=ray", "launcher.address=local"]}
    for name, more in places.items():
        arguments = ["trace=umts,lte", "limit=2", "abr=bola,bba", f"package={box_package}", "session_s=20"]
        assert sweep.main([*arguments, f"output={tmp_path / name}", *more]) == 0
    one, two = (experiments.load(tmp_path / name) for name in places)
    assert len(one) == 8
    assert one.equals(two)


def test_a_missing_ray_costs_one_line(box_package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["trace=umts", "abr=bola", f"package={box_package}", f"output={tmp_path / 'set'}", "launcher=ray"]
    assert sweep.main(arguments) == 1
    error = capsys.readouterr().err
    assert "pip install 'promptdash[ray]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()
    with pytest.raises(BuildError):
        list(run_tasks(str, [1, 2], launcher=LauncherConfig("ray"), jobs=2))
