"""Make the vendored tables from the raw trace files: `python -m traces.vendor --source DIR`.

DIR holds one folder per data set (mahimahi, hsdpa_norway_full, fcc_cooked, sabre_4glogs, zhuge_cell5g_xu, lumos5g_5g,
starlink_leocc, starlink_vs_cell) and `TRACES.csv` (name, family, repo, licence: what is stated at each origin). Only
bytes per 100-ms bin are kept. Members are picked by rule, not by taste: see `_SOURCES`.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from traces.catalogue import BIN_MS, Entry, regenerate
from traces.errors import TraceError
from traces.formats import detect_format, read_rates, read_trace
from traces.trace import MTU_BYTES, IntArray

_LONGEST_SAMPLE_S = 5.0  # a longer gap between two samples is a hole in the measurement, not a rate


@dataclass(frozen=True)
class _Source:
    """A data set to pick members of a family from."""

    folder: str
    family: str
    pick: int
    """How many members to take, evenly through the eligible ones sorted by mean rate."""
    pattern: str = "*"
    shortest_s: float = 120.0
    longest_s: float = 1e9
    """Longer recordings count with their first longest_s seconds only."""


_TITLES = {
    "lte": "LTE, saturated link, USA (Mahimahi)",
    "umts": "3G UMTS, saturated link, USA (Mahimahi)",
    "evdo": "3G EV-DO, saturated link, USA (Mahimahi)",
    "hsdpa": "3G HSDPA, whole commuting routes, Norway (Riiser et al., MMSys 2013)",
    "fcc": "fixed broadband, USA (FCC Measuring Broadband America)",
    "4g": "4G/LTE on foot, bicycle, bus, tram, train and car, Belgium (Ghent University)",
    "5g": "5G, walking and driving (Lumos5G and Zhuge)",
    "starlink": "Starlink satellite downlink",
}

_MAHIMAHI = {  # canonical name: original file, in listing order; all 13 files of the data set
    "lte-att-driving-down": "ATT-LTE-driving.down",
    "lte-att-driving-up": "ATT-LTE-driving.up",
    "lte-att-driving-2016-down": "ATT-LTE-driving-2016.down",
    "lte-att-driving-2016-up": "ATT-LTE-driving-2016.up",
    "lte-tmobile-driving-down": "TMobile-LTE-driving.down",
    "lte-tmobile-short-down": "TMobile-LTE-short.down",
    "lte-tmobile-short-up": "TMobile-LTE-short.up",
    "lte-verizon-short-down": "Verizon-LTE-short.down",
    "lte-verizon-short-up": "Verizon-LTE-short.up",
    "umts-tmobile-driving-down": "TMobile-UMTS-driving.down",
    "umts-tmobile-driving-up": "TMobile-UMTS-driving.up",
    "evdo-verizon-driving-down": "Verizon-EVDO-driving.down",
    "evdo-verizon-driving-up": "Verizon-EVDO-driving.up",
}

_ALIASES = {
    "att": "lte-att-driving-down",
    "tmobile": "lte-tmobile-driving-down",
    "t-mobile": "lte-tmobile-driving-down",
    "verizon": "lte-verizon-short-down",
    "3g": "umts-tmobile-driving-down",
}

_SOURCES = (
    _Source("hsdpa_norway_full", "hsdpa", pick=20, shortest_s=300),
    _Source("fcc_cooked", "fcc", pick=20, shortest_s=300),
    _Source("sabre_4glogs", "4g", pick=20, shortest_s=300),
    _Source("zhuge_cell5g_xu", "5g", pick=5),
    # Cut: at 5G's rates a longer recording would expand to hundreds of megabytes of opportunities.
    _Source("lumos5g_5g", "5g", pick=12, longest_s=300),
    _Source("starlink_leocc", "starlink", pick=1, pattern="bw_*"),
    # UDP: a saturating sender. A TCP run would measure its congestion control too.
    _Source("starlink_vs_cell/starlink_mobility", "starlink", pick=11, pattern="udp_downlink_*", shortest_s=300),
)


@dataclass(frozen=True, eq=False)
class _Table:
    """One trace on its way into the catalogue: bytes per bin and what the file itself tells."""

    original: str
    bin_bytes: IntArray
    period_ms: int
    exact: bool

    @property
    def mean_bps(self) -> float:
        """Mean rate in bit/s."""
        return float(self.bin_bytes.sum()) * 8000 / self.period_ms


def tabulate(path: Path, longest_s: float = 1e9) -> _Table | None:
    """Return a file's bytes per 100-ms bin, at most longest_s of it, or None if its samples are too far apart."""
    if detect_format(path.read_text(encoding="utf-8"), path) == "mahimahi":
        trace = read_trace(path)
        counts = np.bincount(trace.opportunities_ms // BIN_MS, minlength=trace.period_ms // BIN_MS + 1)
        return _Table(path.name, counts.astype(np.int64) * MTU_BYTES, trace.period_ms, exact=True)
    series = read_rates(path)
    if np.diff(series.edges_s).max() > _LONGEST_SAMPLE_S:
        return None
    period_ms = round(min(float(series.edges_s[-1]), longest_s) * 1000)
    edges_s = np.append(np.arange(period_ms // BIN_MS + 1) * (BIN_MS / 1000), period_ms / 1000)
    done = np.rint(series.bytes_until(edges_s)).astype(np.int64)
    return _Table(path.name, np.diff(done), period_ms, exact=False)


def pick_members(root: Path, source: _Source) -> list[_Table]:
    """Return a source's members: eligible recordings sorted by mean rate, the middles of `pick` equal groups."""
    eligible = []
    for path in sorted((root / source.folder).glob(source.pattern)):
        table = tabulate(path, source.longest_s)
        if table is not None and table.period_ms / 1000 >= source.shortest_s:
            eligible.append(table)
    if not eligible:
        raise TraceError(f"{root / source.folder}: found no usable trace, expected files {source.pattern}")
    eligible.sort(key=lambda table: (table.mean_bps, table.original))
    count = min(source.pick, len(eligible))
    return [eligible[(2 * i + 1) * len(eligible) // (2 * count)] for i in range(count)]


def build(root: Path) -> tuple[dict[str, object], dict[str, IntArray]]:
    """Return the catalogue (as for JSON) and the tables: per name, int32 differences of bytes / unit_bytes."""
    stated = _read_licences(root / "TRACES.csv")
    members: dict[str, list[tuple[str, str, _Table]]] = {family: [] for family in _TITLES}  # (name, folder, table)
    for name, original in _MAHIMAHI.items():
        table = tabulate(root / "mahimahi" / original)
        if table is None or not table.exact:
            raise TraceError(f"{root / 'mahimahi' / original}: found rate samples, expected a Mahimahi trace")
        members[name.split("-")[0]].append((name, "mahimahi", table))
    for source in _SOURCES:
        members[source.family] += [("", source.folder, table) for table in pick_members(root, source)]
    catalogue: list[dict[str, object]] = []
    tables: dict[str, IntArray] = {}
    for family, rows in members.items():
        named = bool(rows[0][0])
        if not named:
            rows.sort(key=lambda row: (row[2].mean_bps, row[2].original))
        entries = []
        for number, (name, folder, table) in enumerate(rows, start=1):
            entry = _describe(name or f"{family}-{number:02}", family, table, stated[folder])
            counts, rest = np.divmod(table.bin_bytes, entry.unit_bytes)
            if rest.any():
                raise TraceError(f"{entry.name}: found bins that are no multiple of {entry.unit_bytes} bytes")
            tables[entry.name] = np.diff(counts, prepend=0).astype(np.int32)
            entries.append(entry)
        default = entries[0 if named else (len(entries) - 1) // 2]
        described = [{key: value for key, value in asdict(entry).items() if key != "family"} for entry in entries]
        catalogue.append({"name": family, "title": _TITLES[family], "default": default.name, "entries": described})
    return {"families": catalogue, "aliases": _ALIASES}, tables


def _describe(name: str, family: str, table: _Table, stated: tuple[str, str]) -> Entry:
    """Return the catalogue's entry of a table, its figures taken from the trace as it will be loaded."""
    trace = regenerate(name, table.bin_bytes, table.period_ms, exact=table.exact)
    return Entry(
        name=name,
        family=family,
        original=table.original,
        origin=stated[0],
        licence=stated[1],
        exact=table.exact,
        period_ms=table.period_ms,
        unit_bytes=MTU_BYTES if table.exact else 1,
        mean_bps=round(trace.mean_bps, 1),
        p5_bps=round(trace.percentile_bps(5), 1),
    )


def _read_licences(path: Path) -> dict[str, tuple[str, str]]:
    """Return origin and licence as stated, per folder."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["family"]: (row["repo"], row["licence"]) for row in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise TraceError(f"{path}: found no readable table, expected columns name, family, repo, licence") from error


def sources_page(catalogue: dict[str, object]) -> str:
    """Return SOURCES.md for a catalogue."""
    lines = [_SOURCES_HEAD]
    for family in catalogue["families"]:  # type: ignore[attr-defined]
        lines.append(f"\n## {family['name']}: {family['title']}\n")
        lines.append(f"`{family['name']}` alone is `{family['default']}`.\n")
        lines.append("| name | measured from | origin | licence as stated | duration s | mean Mbit/s | p5 Mbit/s |")
        lines.append("|---|---|---|---|---:|---:|---:|")
        for entry in family["entries"]:
            cells = [f"`{entry['name']}`", f"`{entry['original']}`", entry["origin"], entry["licence"]]
            cells += [f"{entry['period_ms'] / 1000:.1f}", *(f"{entry[k] / 1e6:.3f}" for k in ("mean_bps", "p5_bps"))]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_SOURCES_HEAD = """# Where the vendored traces come from

Written by `python -m traces.vendor`; do not edit. `tables.npz` holds measured figures only: bytes delivered per 100-ms
bin, computed from the files named below. No file of another project is included. `mean` and `p5` are those of the
trace as this package loads it: 1504 bytes for each delivery opportunity; p5 is the 5th percentile of the rate over the
1-s bins of one period.

How members were picked. `lte`, `umts`, `evdo`: all 13 cellular traces of the Mahimahi distribution. Every other family:
recordings of at least 300 s (5G and LeoCC: 120 s) with no two samples more than 5 s apart are sorted by mean rate, cut
into as many equal groups as members are wanted, and the middle of each group is taken. Members are numbered from the
slowest to the fastest; the family's name alone stands for the middle one. Of Satellite-vs-Cellular only the UDP
downlink runs of the mobility dish are eligible (a saturating sender; a TCP run measures its congestion control too);
`SpaceNetLab/LeoCC` publishes one trace. Of longer SIGCOMM21-5G recordings the first 300 s are used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write catalogue.json, tables.npz and SOURCES.md; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m traces.vendor", description="Make the vendored trace tables.")
    parser.add_argument("--source", type=Path, required=True, help="folder with the raw trace folders and TRACES.csv")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        catalogue, tables = build(options.source)
    except TraceError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "catalogue.json").write_text(json.dumps(catalogue, indent=1) + "\n", encoding="utf-8")
    (options.output / "SOURCES.md").write_text(sources_page(catalogue), encoding="utf-8")
    np.savez_compressed(options.output / "tables.npz", **tables)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
