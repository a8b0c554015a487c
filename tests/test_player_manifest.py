"""Manifests: MPD that the standard's schema takes, read back as written, and hostile XML."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st

from player.errors import ManifestError
from player.manifest import Manifest, Representation, min_buffer_s, read_mpd, write_mpd

SCHEMA = Path(__file__).parent / "mpd_subset.xsd"


def make_manifest(codec="prompt"):
    if codec == "prompt":
        rungs = (Representation("r02", 9001, 2, "urim"), Representation("r04", 17002, 4, "urim"))
    else:
        rungs = (Representation("h265-40k", 40_000, None, "hvc1.1.6.L63.90"),)
    segments = (60060, 60060, 60060, 12012)
    return Manifest('Clouds & <sea>, "dusk" – 日没', codec, 256, 144, Fraction(30000, 1001), segments, rungs)


@pytest.fixture(scope="module")
def schema():
    return xmlschema.XMLSchema(SCHEMA)


@pytest.mark.parametrize("codec", ["prompt", "layers", "h265"])
def test_round_trip_and_schema(codec, schema):
    manifest = make_manifest("prompt" if codec == "layers" else codec)
    if codec == "layers":
        low, high = manifest.representations
        manifest = replace(manifest, representations=(low, replace(high, dependencies=("r02",))))
        assert manifest.layered
    text = write_mpd(manifest)
    schema.validate(text.split("?>", 1)[1].strip())
    assert read_mpd(text) == manifest
    assert write_mpd(read_mpd(text)) == text


def test_dependencies_are_all_or_none():
    manifest = make_manifest()
    low, high = manifest.representations
    top = Representation("r08", 30_000, 8, "urim", ("r02", "r04"))
    for wrong in (
        (low, replace(high, dependencies=("r08",)), top),
        (low, high, top),
        (replace(low, dependencies=("x",)),),
    ):
        with pytest.raises(ManifestError, match="dependencyId"):
            replace(manifest, representations=wrong)
    with pytest.raises(ManifestError, match="id in dependencyId"):
        replace(high, dependencies=("../r02",))
    assert replace(manifest, representations=(low, replace(high, dependencies=("r02",)), top)).layered
    assert not manifest.layered


def test_schema_notices_what_it_should(schema):
    text = write_mpd(make_manifest()).split("?>", 1)[1].strip()
    quality = text[text.index('  <SupplementalProperty schemeIdUri="tag:promptdash,2026:quality"') :].split("\n")[0]
    for old, new in (
        (' minBufferTime="PT2S"', ""),
        ("PT2S", "2 s"),
        (' bandwidth="9001"', ""),
        ('frameRate="30000/1001"', 'frameRate="29.97"'),
        ('id="r04"', 'id="r02"'),
        ("<Period", quality + "<Period"),
        ('d="12012"', ""),
    ):
        assert old in text
        assert not schema.is_valid(text.replace(old, new, 1)), new


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip_of_random_manifests(data):
    fps = Fraction(data.draw(st.integers(1, 120_000)), data.draw(st.integers(1, 1001)))
    frames = data.draw(st.lists(st.sampled_from([1, 2, 60, 61]), min_size=1, max_size=30))
    rates = sorted(data.draw(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=5)))
    rungs = tuple(Representation(f"r{i}", rate, i + 1, "urim") for i, rate in enumerate(rates))
    safe = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff")
    manifest = Manifest(
        data.draw(st.text(safe, max_size=20)),
        "prompt",
        data.draw(st.integers(1, 65535)),
        data.draw(st.integers(1, 65535)),
        fps,
        tuple(n * fps.denominator for n in frames),
        rungs,
        min_buffer_s=data.draw(st.integers(1, 10**9)) / 1e6,
    )
    found = read_mpd(write_mpd(manifest))
    assert replace(found, min_buffer_s=2.0) == replace(manifest, min_buffer_s=2.0)
    assert manifest.min_buffer_s <= found.min_buffer_s <= manifest.min_buffer_s + 1.01e-6
    assert found.frames == tuple(frames)
    assert found.duration_s == pytest.approx(float(sum(frames) / fps))


def test_paths():
    rung = make_manifest().representations[0]
    assert rung.init == "r02/init.mp4"
    assert [rung.media(index) for index in (0, 99_998, 99_999)] == [
        "r02/seg-00001.m4s",
        "r02/seg-99999.m4s",
        "r02/seg-100000.m4s",
    ]


def test_minimum_buffer_makes_bandwidth_true():
    # Equal segments at their own rate: one segment must be there before it can play.
    assert min_buffer_s([1000, 1000, 1000], [2.0, 2.0, 2.0], 4000) == pytest.approx(2.0)
    # A double-sized one in the middle takes 4 s; the one before it covers 2 s after its own 2 s.
    assert min_buffer_s([1000, 2000, 1000], [2.0, 2.0, 2.0], 4000) == pytest.approx(4.0)
    # Two such in a row: 2 + 4 + 4 s of transfer, less the 4 s played meanwhile.
    assert min_buffer_s([1000, 2000, 2000], [2.0, 2.0, 2.0], 4000) == pytest.approx(6.0)
    sizes, lengths, rate = [500, 3000, 200, 900, 2500], [1.0, 2.0, 0.5, 1.0, 2.0], 9000
    runs = [
        sum(sizes[i : j + 1]) * 8 / rate - sum(lengths[i:j]) for i in range(len(sizes)) for j in range(i, len(sizes))
    ]
    assert min_buffer_s(sizes, lengths, rate) == pytest.approx(max(runs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": "a\0b"}, "title"),
        ({"codec": "vp8"}, "known are prompt"),
        ({"codec": "h265"}, "in a h265 ladder"),
        ({"width": 0}, "size 0 x 144"),
        ({"fps": 30}, "frame rate"),
        ({"segments": ()}, "0 segments"),
        ({"segments": (60060, 1000)}, "segment 1: duration 1000"),
        ({"segments": (0,)}, "segment 0: duration 0"),
        ({"representations": ()}, "expected one or more"),
        ({"quality_sidecar": "../quality.json"}, "quality sidecar"),
        ({"min_buffer_s": 0.0}, "minimum buffer"),
    ],
)
def test_manifest_is_checked(change, message):
    with pytest.raises(ManifestError, match=message):
        replace(make_manifest(), **change)


def test_representations_are_checked():
    manifest = make_manifest()
    low, high = manifest.representations
    for rungs, message in (
        ((low, low), "different ids"),
        ((high, low), "ascending"),
        ((replace(low, rank=None),), "rank None"),
    ):
        with pytest.raises(ManifestError, match=message):
            replace(manifest, representations=rungs)
    for name in ("", ".", "..", "../x", "a/b", "a b", ".hidden", "a\\b", "x" * 65, "é"):
        with pytest.raises(ManifestError, match="representation id"):
            replace(low, id=name)
    for change, message in (({"bandwidth_bps": 0}, "bandwidth"), ({"rank": 0}, "rank 0"), ({"codecs": "u$"}, "codecs")):
        with pytest.raises(ManifestError, match=message):
            replace(low, **change)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<MPD ", "<MPX ", "not XML"),
        ("schema:mpd:2011", "schema:mpd:2099", "root element"),
        ('type="static"', 'type="dynamic"', "@type 'dynamic'"),
        ("isoff-live", "isoff-main", "@profiles"),
        ('id="r02"', 'id="../../etc"', "representation id"),
        ('value="quality.json"', 'value="/etc/passwd"', "quality sidecar"),
        ("$RepresentationID$/init.mp4", "/etc/$RepresentationID$", "@initialization"),
        ('startNumber="1"', 'startNumber="0"', "@startNumber"),
        ('timescale="30000"', 'timescale="30"', "@timescale"),
        ('d="60060"', 'd="60060.5"', "whole number"),
        ('r="2"', 'r="99999999999"', "more than 1000000 segments"),
        ('r="2"', 'r="-1"', "whole number"),
        ('t="0"', 't="5"', "no gaps"),
        ('frameRate="30000/1001"', 'frameRate="30000/0"', "@frameRate"),
        ('frameRate="30000/1001"', "", "no @frameRate"),
        ('mediaPresentationDuration="PT6.4064S"', 'mediaPresentationDuration="PT7S"', "duration 7.0 s"),
        ('mediaPresentationDuration="PT6.4064S"', 'mediaPresentationDuration="P1Y"', "expected a duration"),
        ('mimeType="application/mp4"', 'mimeType="text/html"', "@mimeType"),
        ('codecs="urim"', 'codecs="hvc1.1"', "known are prompt"),
        ('value="2"', 'value="two"', "rank 'two'"),
        ("<SegmentTimeline>", "<BaseURL>http://x/</BaseURL><SegmentTimeline>", "children BaseURL"),
        ("</Period>", "</Period><Period/>", "children ProgramInformation, Period, Period"),
    ],
)
def test_changed_manifests_are_refused(old, new, message):
    text = write_mpd(make_manifest())
    assert old in text
    with pytest.raises(ManifestError, match=message) as caught:
        read_mpd(text.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_declarations_are_refused():
    text = write_mpd(make_manifest())
    head, body = text.split("?>\n", 1)
    laughs = '<!DOCTYPE MPD [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
    outside = '<!DOCTYPE MPD [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    for declaration in (laughs, outside, '<!DOCTYPE MPD SYSTEM "http://127.0.0.1/x.dtd">'):
        with pytest.raises(ManifestError, match="declarations are not allowed"):
            read_mpd(f"{head}?>{declaration}{body.replace('Clouds', '&b;' if 'ha' in declaration else 'Clouds')}")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_text_is_refused_in_one_line_or_reads(data):
    text = write_mpd(make_manifest())
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 30, len(text))))
    bad = text[:start] + data.draw(st.text(max_size=4)) + text[end:]
    try:
        manifest = read_mpd(bad)
    except ManifestError as error:
        lines = str(error).splitlines()
    else:
        lines = [manifest.codec]
    assert len(lines) == 1


def test_unknown_attributes_are_ignored():
    manifest = make_manifest()
    text = write_mpd(manifest).replace("<Period ", '<Period bitstreamSwitching="false" ', 1)
    assert read_mpd(text) == manifest
