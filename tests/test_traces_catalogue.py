"""Vendored traces: guessable names, figures that match the tables, per-second throughput that matches the originals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from traces import MTU_BYTES, TraceConfig, TraceError, catalogue, load_trace, read_trace, vendor
from traces.__main__ import main
from traces.formats import read_rates

ENTRIES = [entry for family in catalogue.families() for entry in family.entries]
EXACT = [entry for entry in ENTRIES if entry.exact]
SAMPLED = [entry for entry in ENTRIES if not entry.exact]
DATA = Path(catalogue.__file__).parent / "data"
FOLDERS = {
    "ravinet/mahimahi": "mahimahi",
    "thu-media/Comyco": "hsdpa_norway_full",
    "GenetProject/Genet": "fcc_cooked",
    "UMass-LIDS/sabre": "sabre_4glogs",
    "transys-project/zhuge": "zhuge_cell5g_xu",
    "SIGCOMM21-5G/artifact": "lumos5g_5g",
    "SpaceNetLab/LeoCC": "starlink_leocc",
    "Starlink-Project/Satellite-vs-Cellular": "starlink_vs_cell/starlink_mobility",
}


def original(shared_data: Path, entry: catalogue.Entry) -> Path:
    return shared_data / "traces" / FOLDERS[entry.origin] / entry.original


def per_second(times_ms: np.ndarray) -> list[int]:
    return np.bincount(times_ms // 1000).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lte", "lte-att-driving-down"),
        ("LTE", "lte-att-driving-down"),
        ("att", "lte-att-driving-down"),
        ("lte/att", "lte-att-driving-down"),
        ("lte/att-driving-up", "lte-att-driving-up"),
        ("lte/tmobile", "lte-tmobile-driving-down"),
        ("tmobile", "lte-tmobile-driving-down"),
        ("lte/verizon", "lte-verizon-short-down"),
        ("verizon", "lte-verizon-short-down"),
        ("umts", "umts-tmobile-driving-down"),
        ("3g", "umts-tmobile-driving-down"),
        ("evdo", "evdo-verizon-driving-down"),
        ("evdo/2", "evdo-verizon-driving-up"),
        ("ATT-LTE-driving-2016.up", "lte-att-driving-2016-up"),
        ("5g/2", "5g-02"),
        ("5g-02", "5g-02"),
        ("5g_2", "5g-02"),
        ("hsdpa/1", "hsdpa-01"),
        ("starlink/12", "starlink-12"),
    ],
)
def test_names_a_user_may_type(name: str, expected: str) -> None:
    entry = catalogue.find(name)
    assert entry is not None
    assert entry.name == expected


@pytest.mark.parametrize("name", ["6g", "5g/0", "5g/99", "5g/-1", "lt", "lte/", "", "hsdpa/²"])
def test_names_that_mean_nothing(name: str) -> None:
    assert catalogue.find(name) is None


def test_every_family_has_at_least_four_traces_and_a_member_of_its_own_as_default() -> None:
    counts = {family.name: len(family.entries) for family in catalogue.families()}
    assert list(counts) == ["lte", "umts", "evdo", "hsdpa", "fcc", "4g", "5g", "starlink"]
    assert all(count >= 4 for family, count in counts.items() if family not in ("umts", "evdo"))  # all that exist: 2, 2
    assert all(family.default in [entry.name for entry in family.entries] for family in catalogue.families())
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 1_000_000


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_figures_in_the_catalogue_are_those_of_the_trace(entry: catalogue.Entry) -> None:
    trace = catalogue.load(entry.name)
    assert (trace.name, trace.period_ms) == (entry.name, entry.period_ms)
    assert trace.mean_bps == pytest.approx(entry.mean_bps, abs=0.06)
    assert trace.percentile_bps(5) == pytest.approx(entry.p5_bps, abs=0.06)
    if entry.exact:
        assert trace.opportunities_ms[-1] == trace.period_ms
    table = catalogue.read_table(entry)
    bins = np.bincount(trace.opportunities_ms // catalogue.BIN_MS, minlength=table.size) * MTU_BYTES
    assert np.abs(bins.cumsum() - table.cumsum()).max() <= (0 if entry.exact else MTU_BYTES // 2)


@pytest.mark.parametrize("entry", EXACT, ids=lambda entry: entry.name)
def test_mahimahi_originals_keep_every_seconds_opportunities(shared_data: Path, entry: catalogue.Entry) -> None:
    raw = read_trace(original(shared_data, entry))
    trace = catalogue.load(entry.name)
    assert trace.period_ms == raw.period_ms
    assert per_second(trace.opportunities_ms) == per_second(raw.opportunities_ms)
    assert trace.rate_bps(1.0)[:-1].tolist() == raw.rate_bps(1.0)[:-1].tolist()  # the last bin runs into the next lap
    assert np.abs(trace.opportunities_ms - raw.opportunities_ms).max() < catalogue.BIN_MS


@pytest.mark.parametrize("entry", SAMPLED, ids=lambda entry: entry.name)
def test_rate_sampled_originals_are_within_an_mtu_every_second(shared_data: Path, entry: catalogue.Entry) -> None:
    series = read_rates(original(shared_data, entry))
    trace = catalogue.load(entry.name)
    assert trace.period_ms == round(min(series.edges_s[-1], 300 if entry.family == "5g" else np.inf) * 1000)
    seconds = np.arange(trace.period_ms // 1000 + 1)
    counted = np.diff(np.asarray(trace.count_until(seconds * 1000 - 1))) * MTU_BYTES
    assert np.abs(counted - np.diff(series.bytes_until(seconds.astype(float)))).max() <= MTU_BYTES + 1
    total = trace.opportunities_ms.size * MTU_BYTES
    assert abs(total - series.bytes_until(np.array([trace.duration_s]))[0]) <= MTU_BYTES / 2 + 1


def test_the_raw_files_give_the_tables_that_ship(shared_data: Path) -> None:
    content, tables = vendor.build(shared_data / "traces")
    assert content == json.loads((DATA / "catalogue.json").read_text())
    assert list(tables) == [entry.name for entry in ENTRIES]
    with np.load(DATA / "tables.npz") as shipped:
        assert all((shipped[name] == table).all() for name, table in tables.items())


def test_sources_page_belongs_to_the_catalogue() -> None:
    content = json.loads((DATA / "catalogue.json").read_text())
    assert (DATA / "SOURCES.md").read_text() == vendor.sources_page(content)


def test_licences_are_those_stated(shared_data: Path) -> None:
    with (shared_data / "traces" / "TRACES.csv").open(newline="") as file:
        stated = {(row["repo"], row["licence"]) for row in csv.DictReader(file)}
    assert {(entry.origin, entry.licence) for entry in ENTRIES} <= stated


def test_vendor_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vendor.main(["--source", str(tmp_path), "--output", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'TRACES.csv'}: found no readable table")
    assert not (tmp_path / "data").exists()


def test_offset_comes_before_share() -> None:
    whole = load_trace("lte")
    part = load_trace(TraceConfig(name="lte", share=40, offset_s=100))
    assert part.opportunities_ms.tolist() == whole.starting_at(100).opportunities_ms[::40].tolist()
    assert load_trace("lte", share=40, offset_s=100).opportunities_ms.tolist() == part.opportunities_ms.tolist()


def test_a_path_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.trace").write_text("1\n2\n")
    assert load_trace(str(tmp_path / "mine.trace")).period_ms == 2
    monkeypatch.chdir(tmp_path)
    assert load_trace("mine.trace", share=2).opportunities_ms.tolist() == [1]
    (tmp_path / "lte").write_text("1\n2\n")  # a vendored name wins; ./lte is the file
    assert load_trace("lte").name == "lte-att-driving-down"
    assert load_trace("./lte").period_ms == 2


def test_synthetic_names() -> None:
    assert load_trace(TraceConfig(name="constant", rate_bps=1e6)).mean_bps == 1e6
    assert load_trace(TraceConfig(name="step", rates_bps=[1e6, 2e6], dwell_s=1)).period_ms == 2000
    assert load_trace(TraceConfig(name="markov", duration_s=50, seed=3)).period_ms == 50_000


@pytest.mark.parametrize(
    "settings",
    [
        {"name": ""},
        {"share": 0},
        {"share": 1.5},
        {"offset_s": -1.0},
        {"offset_s": float("nan")},
        {"rate_bps": 1e6},
        {"rates_bps": [1e6]},
        {"name": "constant", "rates_bps": [1e6]},
        {"name": "constant"},
        {"name": "nope"},
    ],
)
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(TraceError, match=r"found .*, expected"):
        load_trace(TraceConfig(**settings))  # type: ignore[arg-type]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        TraceError, match=r"found '6g', expected lte, umts, evdo, hsdpa, fcc, 4g, 5g, starlink, constant"
    ):
        load_trace("6g")


def test_the_documentations_table_is_that_of_the_catalogue() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "traces.md").read_text()
    for family in catalogue.families():
        spans = [
            f"{min(values):.{digits}f} - {max(values):.{digits}f}"
            for values, digits in (
                ([entry.duration_s for entry in family.entries], 0),
                ([entry.mean_bps / 1e6 for entry in family.entries], 2),
                ([entry.p5_bps / 1e6 for entry in family.entries], 2),
            )
        ]
        cells = [f"`{family.name}`", family.title, str(len(family.entries)), f"`{family.default}`", *spans]
        assert "| " + " | ".join(cells) + " |" in page


def test_documentations_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "traces.md").read_text()
    commands = [
        line.split("#")[0].split()[3:] for line in page.splitlines() if line.startswith("    python -m traces ")
    ]
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"traces.pdf", "bus.trace", "c.trace"}
    assert capsys.readouterr().out
