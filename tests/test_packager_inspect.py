"""Descriptions of packaged folders and files."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from packager.inspect import describe
from player.bitstream import KeyPrompt, Segment, StreamInfo, write_init, write_segment
from player.errors import BitstreamError, ManifestError
from player.manifest import Manifest, Representation
from player.presentation import RepresentationQuality, write_manifest, write_sidecar


@pytest.fixture
def folder(tmp_path):
    info = StreamInfo("embedded/1", 6, 4, 2, 2, 64, 64, 64, 48, Fraction(30), 2, 3)
    u, v = np.arange(12, dtype=np.int16).reshape(6, 2), np.zeros((2, 4), np.int16)
    ones = np.ones(2, np.float32)
    segment = Segment(10, ones, ones, (KeyPrompt(0, u, v), KeyPrompt(9, -u, v)))
    rung = Representation("r02", 2000, 2, "urim")
    (tmp_path / "r02").mkdir()
    (tmp_path / rung.init).write_bytes(write_init(info))
    data = write_segment(info, segment, sequence=1, start_frame=0)
    (tmp_path / rung.media(0)).write_bytes(data)
    manifest = Manifest("A title", "prompt", 64, 48, info.fps, (10,), (rung,))
    write_manifest(tmp_path, manifest)
    write_sidecar(tmp_path, manifest, {"r02": RepresentationQuality((len(data),), {"psnr_db": (np.full(10, 21.5),)})})
    return tmp_path


def test_folder(folder):
    text = describe(folder)
    assert "title        A title" in text
    head, row = text.splitlines()[-2:]
    assert head.split()[:3] == ["representation", "rank", "kbit/s"]
    total = sum(path.stat().st_size for path in (folder / "r02").iterdir())
    assert row.split() == ["r02", "2", f"{total * 8 * 3 / 1000:.1f}", str(total), row.split()[4], "21.5"]


def test_files(folder):
    assert "bandwidth bit/s" in describe(folder / "manifest.mpd")
    init = describe(str(folder / "r02" / "init.mp4"))
    assert "generator    embedded/1" in init
    assert "6 tokens, a grid of 2 x 3, width 4" in init
    assert "shown 64 x 48" in init
    segment = describe(folder / "r02" / "seg-00001.m4s")
    assert "media segment 1" in segment
    assert "time         0.000 s to 0.333 s, 10 frames" in segment
    assert segment.splitlines()[-1].split()[0] == "9"


def test_files_of_other_formats(folder):
    segment = folder / "r02" / "seg-00001.m4s"
    (folder / "r02" / "init.mp4").unlink()
    assert "without an init.mp4 beside it" in describe(segment)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    (folder / "video.mp4").write_bytes(buffer.getvalue())
    text = describe(folder / "video.mp4")
    assert "not of prompts" in text
    assert "'stsd'" in text


def test_errors(folder):
    for name, content, error in (
        ("empty.m4s", b"", BitstreamError),
        ("junk.m4s", b"junk and more", BitstreamError),
        ("x.mpd", b"\xff", ManifestError),
        ("y.mpd", b"<a/>", ManifestError),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(error, match=name):
            describe(folder / name)
    with pytest.raises(ManifestError, match="No such file"):
        describe(folder / "absent.mp4")
    with pytest.raises(ManifestError, match="not a packaged folder"):
        describe(folder / "r02")
