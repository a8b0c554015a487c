"""The output folder: whose it is, what counts as done, and who is turned away."""

import hashlib
import json

import pytest

from packager.errors import FolderError
from packager.folder import SETTINGS_NAME, BuildFolder, SegmentRecord, claim
from player.presentation import MANIFEST_NAME

IDENTITY = {"video": "a.mp4", "representations": ["r02"], "ranks": (2,)}
ENVIRONMENT = {"device": "cpu"}


def taken(path, identity=IDENTITY, environment=ENVIRONMENT, *, resume=False, force=False):
    return claim(path, identity, environment, resume=resume, force=force)


def record_of(data):
    return SegmentRecord(3, {"r02": hashlib.sha256(data).hexdigest()}, {"r02": len(data)}, {"r02": {"psnr_db": [1.5]}})


def begin(path, data=b"segment"):
    """Leave an unfinished build with one segment behind."""
    with taken(path) as folder:
        folder.write(folder.segment_path("r02", 0), data)
        folder.record(0, record_of(data))
    return folder


def test_settings_come_first_and_in_plain_json(tmp_path):
    with taken(tmp_path / "new" / "out") as folder:
        content = json.loads((folder.path / SETTINGS_NAME).read_text())
    assert content == {"version": 1, "identity": {**IDENTITY, "ranks": [2]}, "environment": ENVIRONMENT}


def test_records_survive_and_stand_for_whole_files_only(tmp_path):
    folder = begin(tmp_path)
    assert folder.recorded(0) == record_of(b"segment")
    assert folder.recorded(1) is None
    folder.segment_path("r02", 0).write_bytes(b"segm")
    assert folder.recorded(0) is None
    folder.segment_path("r02", 0).unlink()
    assert folder.recorded(0) is None


def test_an_unfinished_build_needs_resume_and_the_same_settings(tmp_path):
    begin(tmp_path)
    with pytest.raises(FolderError, match=r"unfinished build \(1 segments\); --resume continues it"), taken(tmp_path):
        pass
    with taken(tmp_path, resume=True) as folder:
        assert folder.recorded(0) is not None
    other = {**IDENTITY, "ranks": [2, 4]}
    with pytest.raises(FolderError, match=r"another build \(ranks \[2\] there, \[2, 4\] asked for\)"):
        taken(tmp_path, other, resume=True).__enter__()
    with pytest.raises(FolderError, match=r"begun elsewhere \(device cpu there, cuda asked for\)"):
        taken(tmp_path, environment={"device": "cuda"}, resume=True).__enter__()


def test_a_finished_build_may_be_looked_at_from_anywhere(tmp_path):
    begin(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("<MPD/>")
    with taken(tmp_path, environment={"device": "cuda"}) as folder:
        assert folder.finished
        assert not folder.work.exists()


def test_force_removes_the_build_and_nothing_else(tmp_path):
    begin(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("<MPD/>")
    (tmp_path / "notes.txt").write_text("mine")
    other = {**IDENTITY, "representations": ["r04"]}
    with taken(tmp_path, other, force=True) as folder:
        assert not folder.finished
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["notes.txt", SETTINGS_NAME]


def test_force_never_leaves_the_folder(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    path = tmp_path / "out"
    begin(path)
    settings = json.loads((path / SETTINGS_NAME).read_text())
    settings["identity"]["representations"] = ["../outside", "..", ".", "/", 7]
    (path / SETTINGS_NAME).write_text(json.dumps(settings))
    with taken(path, force=True):
        pass
    assert outside.is_dir()


@pytest.mark.parametrize("force", [False, True])
def test_folders_of_others_are_left_alone(tmp_path, force):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(FolderError, match="not this program's"), taken(tmp_path, force=force):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path):
    file = tmp_path / "out"
    file.write_text("")
    with pytest.raises(FolderError, match="is a file"), taken(file):
        pass


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 99, "identity": {}, "environment": {}}'])
def test_strange_settings_are_refused(tmp_path, content):
    (tmp_path / SETTINGS_NAME).write_text(content)
    with pytest.raises(FolderError, match=r"package\.json"), taken(tmp_path, force=True):
        pass


def test_two_builds_never_share_a_folder(tmp_path):
    with taken(tmp_path), pytest.raises(FolderError, match="another process is building here"):
        taken(tmp_path, resume=True).__enter__()
    with taken(tmp_path, resume=True) as folder:
        assert isinstance(folder, BuildFolder)


def test_half_written_files_are_swept_up(tmp_path):
    folder = begin(tmp_path)
    stray = folder.segment_path("r02", 1).with_name(".seg-00002.m4s.tmp")
    stray.write_bytes(b"half")
    with taken(tmp_path, resume=True):
        assert not stray.exists()
