"""Packaged folders: manifest, files and quality sidecar must agree."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from player.errors import ManifestError
from player.manifest import Manifest, Representation
from player.presentation import Presentation, RepresentationQuality, write_manifest, write_sidecar

SIZES = {"low": (100, 120, 40), "high": (300, 280, 90)}
FRAMES = (3, 3, 1)


@pytest.fixture
def folder(tmp_path):
    rungs = (Representation("low", 1000, 2, "urim"), Representation("high", 3000, 4, "urim"))
    manifest = Manifest("test", "prompt", 64, 64, Fraction(3, 2), tuple(2 * n for n in FRAMES), rungs)
    quality = {}
    for index, rung in enumerate(rungs):
        (tmp_path / rung.id).mkdir()
        (tmp_path / rung.init).write_bytes(b"i" * (50 + index))
        for segment, size in enumerate(SIZES[rung.id]):
            (tmp_path / rung.media(segment)).write_bytes(b"s" * size)
        psnr = tuple(np.arange(n) + 20.0 + 10 * index for n in FRAMES)
        ms_ssim = tuple(np.full(n, 0.1234567 + index / 2) for n in FRAMES)
        quality[rung.id] = RepresentationQuality(SIZES[rung.id], {"psnr_db": psnr, "ms_ssim": ms_ssim})
    write_manifest(tmp_path, manifest)
    write_sidecar(tmp_path, manifest, quality)
    return tmp_path


def edit(folder, change):
    """Apply a function to the sidecar's content."""
    path = folder / "quality.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_load(folder):
    presentation = Presentation.load(folder)
    assert presentation.metrics == ("psnr_db", "ms_ssim")
    assert [rung.id for rung in presentation.representations] == ["low", "high"]
    np.testing.assert_array_equal(presentation.segment_bytes, np.array([SIZES["low"], SIZES["high"]]).T)
    np.testing.assert_array_equal(presentation.init_bytes, [50, 51])
    # 7 frames at 3/2 frames/s; every byte counts
    np.testing.assert_allclose(presentation.bitrate_bps, np.array([310, 721]) * 8 / (7 * 2 / 3))
    np.testing.assert_array_equal(presentation.frame_quality(0, 1, "psnr_db"), [30, 31, 32])
    np.testing.assert_allclose(presentation.mean_quality("psnr_db"), [[21, 31], [21, 31], [20, 30]])
    assert presentation.frame_quality(0, 0, "ms_ssim")[0] == 0.123457
    assert presentation.segment_path(1, 1) == folder / "high" / "seg-00002.m4s"
    assert presentation.init_path(0) == folder / "low" / "init.mp4"
    assert sorted(p.name for p in folder.iterdir()) == ["high", "low", "manifest.mpd", "quality.json"]


def test_layers(folder):
    manifest = Presentation.load(folder).manifest
    low, high = manifest.representations
    write_manifest(folder, replace(manifest, representations=(low, replace(high, dependencies=("low",)))))
    presentation = Presentation.load(folder)
    np.testing.assert_array_equal(presentation.segment_bytes[:, 1], [400, 400, 130])
    np.testing.assert_allclose(presentation.bitrate_bps, np.array([310, 1031]) * 8 / (7 * 2 / 3))
    ladder = presentation.ladder(repeats=2, segments=4)
    np.testing.assert_array_equal(ladder.layer_bytes, [(100, 300), (120, 280), (40, 90), (100, 300)])
    assert presentation.read_segment(4, 1) == b"s" * 400
    assert presentation.read_segment(4, 0) == b"s" * 120
    assert presentation.read_init(1) == b"i" * 101
    (folder / "high" / "init.mp4").unlink()
    with pytest.raises(ManifestError, match="No such file"):
        presentation.read_init(1)


def test_ladder(folder):
    presentation = Presentation.load(folder)
    ladder = presentation.ladder()
    assert ladder.quality is None
    assert ladder.names == ("low", "high")
    np.testing.assert_allclose(ladder.segment_duration_s, [2, 2, 2 / 3])
    np.testing.assert_array_equal(ladder.init_bytes, [50, 51])
    longer = presentation.ladder("psnr_db", repeats=3, segments=7)
    np.testing.assert_array_equal(longer.segment_bytes[:, 0], [100, 120, 40, 100, 120, 40, 100])
    np.testing.assert_allclose(longer.quality[-2:], [[20, 30], [21, 31]])
    np.testing.assert_array_equal(longer.bitrate_bps, ladder.bitrate_bps)
    assert presentation.segment_path(6, 0) == presentation.segment_path(0, 0)
    for options, message in (
        ({"repeats": 0}, "0 repeats"),
        ({"segments": 4}, "4 segments of a programme of 3"),
        ({"segments": 0}, "0 segments"),
        ({"metric": "vmaf"}, "'vmaf' was not measured; known are psnr_db, ms_ssim"),
    ):
        with pytest.raises(ManifestError, match=message):
            presentation.ladder(**options)
    with pytest.raises(ManifestError, match="segment -1"):
        presentation.segment_path(-1, 0)


def test_order_is_by_measured_bitrate(folder):
    """The manifest's bandwidth may be rounded or stale; the files decide."""
    for segment in range(3):
        path = folder / "low" / f"seg-{segment + 1:05d}.m4s"
        path.write_bytes(b"s" * 500)

    def grow(content):
        content["representations"]["low"]["segment_bytes"] = [500] * 3

    edit(folder, grow)
    presentation = Presentation.load(folder)
    assert [rung.id for rung in presentation.representations] == ["high", "low"]
    assert presentation.frame_quality(0, 0, "psnr_db")[0] == 30


def test_files_must_be_those_of_the_manifest(folder):
    extra = folder / "high" / "seg-00004.m4s"
    extra.write_bytes(b"x")
    with pytest.raises(ManifestError, match=r"high: seg-00004\.m4s is no segment of the manifest, which has 3"):
        Presentation.load(folder)
    extra.unlink()
    segment = folder / "low" / "seg-00002.m4s"
    segment.write_bytes(b"s" * 119)
    with pytest.raises(ManifestError, match=r"seg-00002\.m4s: 119 bytes, but the quality sidecar says 120"):
        Presentation.load(folder)
    segment.unlink()
    with pytest.raises(ManifestError, match=r"seg-00002\.m4s: No such file"):
        Presentation.load(folder)
    segment.write_bytes(b"s" * 120)
    (folder / "low" / "init.mp4").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"init\.mp4: no file with bytes in it"):
        Presentation.load(folder)


@pytest.mark.parametrize("name", ["manifest.mpd", "quality.json"])
def test_text_files_must_be_readable(folder, name):
    path = folder / name
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match=f"{name}: not UTF-8"):
        Presentation.load(folder)
    path.write_text("[" * 100_000)
    with pytest.raises(ManifestError, match=name) as caught:
        Presentation.load(folder)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ManifestError, match=f"{name}: No such file"):
        Presentation.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "version 2, but this build reads version 1"),
        (lambda c: c.pop("version"), "no 'version'"),
        (lambda c: c.update(metrics=["psnr_db", "psnr_db"]), "different names"),
        (lambda c: c.update(metrics=["psnr_db"]), r"metrics \['ms_ssim', 'psnr_db'\], expected \['psnr_db'\]"),
        (lambda c: c["representations"].pop("low"), r"\['high'\], but the manifest has \['high', 'low'\]"),
        (lambda c: c["representations"].update(low=3), "low: no 'segment_bytes'"),
        (lambda c: c["representations"]["low"].update(segment_bytes=[100, 120]), "2 sizes, expected 3"),
        (lambda c: c["representations"]["low"].update(segment_bytes=[100, 120, True]), "expected 3"),
        (lambda c: c["representations"]["low"]["frames"].update(psnr_db=[[1, 2, 3]]), "does not list 3 segments"),
        (lambda c: c["representations"]["low"]["frames"]["psnr_db"][1].pop(), "segment 1: 2 values, expected .* 3"),
        (lambda c: c["representations"]["low"]["frames"]["psnr_db"].__setitem__(0, [1, 2, "x"]), "no finite number"),
        (
            lambda c: c["representations"]["low"]["frames"]["psnr_db"].__setitem__(0, [1, 2, 10**400]),
            "no finite number",
        ),
        (lambda c: c["representations"]["low"]["frames"]["psnr_db"].__setitem__(0, None), "no values"),
        (
            lambda c: c["representations"]["low"]["frames"]["psnr_db"].__setitem__(0, [1, 2, float("nan")]),
            "not JSON: NaN",
        ),
    ],
)
def test_sidecar_is_checked(folder, change, message):
    edit(folder, change)
    with pytest.raises(ManifestError, match=message):
        Presentation.load(folder)


def test_what_does_not_fit_is_not_written(folder):
    presentation = Presentation.load(folder)
    before = (folder / "quality.json").read_bytes()
    low = presentation.quality["low"]
    infinite = (np.full(3, np.inf), *low.frames["psnr_db"][1:])
    for bad, message in (
        ({"low": low}, "representations"),
        ({**presentation.quality, "low": replace(low, segment_bytes=(1, 2))}, "2 sizes"),
        ({**presentation.quality, "low": replace(low, frames={**low.frames, "psnr_db": infinite})}, "no finite number"),
    ):
        with pytest.raises(ManifestError, match=message):
            write_sidecar(folder, presentation.manifest, bad)
    assert (folder / "quality.json").read_bytes() == before
    write_sidecar(folder, presentation.manifest, presentation.quality)
    assert (folder / "quality.json").read_bytes() == before
