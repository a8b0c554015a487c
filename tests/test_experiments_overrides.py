"""The command line's short forms: what they become, and what is refused."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import UsageError
from experiments.overrides import parse_rate, rewrite_overrides


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        ("500k", 500e3),
        ("1.5M", 1.5e6),
        ("1.5Mbps", 1.5e6),
        ("1.5 Mbit/s", 1.5e6),
        ("80kbit/s", 80e3),
        ("2G", 2e9),
        ("64000", 64e3),
        ("1e6", 1e6),
        (".5m", 5e5),
    ],
)
def test_rate_with_unit(text: str, rate_bps: float) -> None:
    assert parse_rate(text) == pytest.approx(rate_bps)


@pytest.mark.parametrize("text", ["", "fast", "5 MB/s", "-3k", "0", "1.2.3", "5kk", "nan"])
def test_bad_rate_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="expected") as caught:
        parse_rate(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "rewritten"),
    [
        ("trace=lte", "trace.name=lte"),
        ("trace=5g/2", "trace.name=5g/2"),
        ("trace=some/dir/file.down", "trace.name=some/dir/file.down"),
        ("abr=bola", "abr.name=bola"),
        ("video=demo", "video.name=demo"),
        ("video=~/my clip.mp4", "video.name='~/my clip.mp4'"),
        ("video=it's=odd(1).mp4", "video.name='it\\'s=odd(1).mp4'"),
        ("codec=prompt", "codec=[prompt]"),
        ("codec=prompt+h265", "codec=[prompt,h265]"),
        ("codec=prompt,h265", "codec=[prompt,h265]"),
        ("codec=[prompt,h265]", "codec=[prompt,h265]"),
        ("rate=500k", "trace.rate_bps=500000.0"),
        ("trace.rate_bps=1.5Mbps", "trace.rate_bps=1500000.0"),
        ("trace.name=lte", "trace.name=lte"),
        ("trace={name:lte}", "trace={name:lte}"),
        ("trace='a,b'", "trace.name='a,b'"),
        ("link.delay_ms=40", "link.delay_ms=40"),
        ("hydra.run.dir=out/a=b", "hydra.run.dir=out/a=b"),
        ("--cfg=job", "--cfg=job"),
        ("+trace=lte", "+trace.name=lte"),
        ("-m", "-m"),
        ("video=2024", "video.name='2024'"),
        ("video=true", "video.name='true'"),
        ("abr.options.horizon=5", "++abr.options.horizon=5"),
        ("abr.options={horizon: 5}", "++abr.options={horizon: 5}"),
        ("rate=null", "trace.rate_bps=null"),
    ],
)
def test_rewrite_one(argument: str, rewritten: str) -> None:
    assert rewrite_overrides([argument]) == [rewritten]


def test_commas_are_sweeps_only_under_multirun() -> None:
    assert rewrite_overrides(["-m", "trace=lte,umts", "rate=1M,2M", "codec=prompt,prompt+h265"]) == [
        "-m",
        "trace.name=lte,umts",
        "trace.rate_bps=1000000.0,2000000.0",
        "codec=[prompt],[prompt,h265]",
    ]
    with pytest.raises(UsageError, match="need -m"):
        rewrite_overrides(["trace=lte,umts"])


def test_a_file_name_with_a_comma_is_one_value(tmp_path: Path) -> None:
    path = tmp_path / "a,b.mp4"
    path.touch()
    assert rewrite_overrides([f"video={path}"]) == [f"video.name='{path}'"]
    assert rewrite_overrides(["-m", f"video={path}"]) == ["-m", f"video.name='{path}'"]


@pytest.mark.parametrize("argument", ["trace=", "rate= ", "codec="])
def test_missing_value(argument: str) -> None:
    with pytest.raises(UsageError, match="value is missing"):
        rewrite_overrides([argument])


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1).filter(lambda s: s.strip()))
def test_any_file_name_survives_hydras_parser(name: str) -> None:
    """Whatever the file is called, Hydra reads back exactly that name (leading brackets and quotes are Hydra's own)."""
    if name[0] in "[{'\"$ " or name[-1] in " " or "(" in name or "," in name:
        return
    (override,) = rewrite_overrides([f"video={name}"])
    assert str(OverridesParser.create().parse_override(override).value()).strip() == name


def test_segment_durations_can_be_swept():
    assert rewrite_overrides(["-m", "segment_s=0.5,1,2"]) == ["-m", "build.segment_s=0.5,1,2"]
