"""A package of its own brings a plug-in of each kind, and the real commands take them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "external_package"
GROUPS = ("abr", "traces", "codecs", "metrics", "generators")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the package is installed in, beside one whose plug-ins are all broken."""
    for module in ("pip", "setuptools"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not in this environment, which installs the package")
    copy = tmp_path_factory.mktemp("external") / "source"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    folder = copy.parent / "site"
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", folder, copy], check=True)
    info = folder / "faulty-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(
        "".join(f"[promptdash.{group}]\nbroken = no_such_module:Thing\n" for group in GROUPS)
    )
    return folder


@pytest.fixture
def command(site, tmp_path):
    """Run `python -m ...` as someone with the package installed would, in an empty folder."""

    def run(*words, ok=True):
        done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=tmp_path, env=environment(site), text=True,
                              capture_output=True, check=False)  # fmt: skip
        assert (done.returncode == 0) is ok, done.stderr
        return done

    return run


def environment(site):
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "XDG_CACHE_HOME": str(site / "cache")}


def broken(kind):
    return (
        f"{kind} 'broken' (plug-in no_such_module:Thing of faulty 0.3) cannot be loaded: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_every_list_shows_what_the_package_brings_and_what_is_broken(command):
    controllers = command("abr", "list").stdout
    assert re.search(r"^cautious +share, floor_s$", controllers, re.MULTILINE)
    assert f"broken: {broken('controller')}" in controllers
    traces = command("traces", "list").stdout
    assert "subway: A subway line" in traces
    assert "* subway/day" in traces
    assert "kbps: Rates in kbit/s, one line a second; reads files *.kbps" in traces
    assert f"broken: {broken('trace')}" in traces
    codecs = command("packager", "list").stdout
    assert "codec 'jpeg' (plug-in promptdash_example.codec:JPEG of promptdash-example 0.1)" in codecs
    assert f"broken: {broken('codec')}" in codecs
    rest = command("player", "list").stdout
    assert "promptdash_example.metric:MeanAbsoluteError of promptdash-example 0.1" in rest
    assert "promptdash_example.generator:folder of promptdash-example 0.1" in rest
    assert f"broken: {broken('metric')}" in rest
    assert f"broken: {broken('generator')}" in rest


TINY = ("video.seconds=2", "video.size=64", "session_s=4", "build.segment_s=1", "build.ranks=[2,4]",
        "build.iterations=2", "cache_dir=cache", "hydra.run.dir=run")  # fmt: skip


def test_one_run_uses_one_plug_in_of_each_kind(command, tmp_path):
    theirs = ("trace=subway/night", "abr=cautious", "codec=jpeg+prompt", "build.generator=noise")
    words = (*theirs, "abr.options.share=0.4", "build.bitrates_bps=[150000,600000]", "build.metrics=[psnr_db,mae]")
    table = command("experiments.run", *words, *TINY).stdout
    assert re.search(r"Prompts +Motion JPEG", table)
    assert re.search(r"^MAE, mean \(lower is better\)", table, re.MULTILINE)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["conditions"]["trace"] == "subway/night"
    assert summary["conditions"]["abr"] == "cautious"
    assert list(summary["codecs"]) == ["prompt", "jpeg"]
    jpeg, prompt = summary["codecs"]["jpeg"], summary["codecs"]["prompt"]
    assert jpeg["quality"].keys() == prompt["quality"].keys() == {"psnr_db", "mae"}
    assert 0 < jpeg["quality"]["mae"] < prompt["quality"]["mae"]  # the generator renders noise
    assert all(wanted / 2 < rate < wanted * 1.05 for wanted, rate in zip((15e4, 6e5), jpeg["ladder_bps"], strict=True))
    manifest = next((tmp_path / "cache").glob("*-jpeg-*/manifest.mpd")).read_text()
    assert manifest.count('codecs="urim.jpeg"') == 2
    assert 'mimeType="application/mp4"' in manifest
    init = next((tmp_path / "cache").glob("*-prompt-*/r04/init.mp4")).read_bytes()
    assert b"noise-" in init
    used = json.loads((tmp_path / "run" / "provenance.json").read_text())["inputs"]["plugins"]
    assert set(used) == {"promptdash.abr: cautious", "promptdash.traces: subway", "promptdash.codecs: jpeg",
                         "promptdash.metrics: mae", "promptdash.generators: noise"}  # fmt: skip
    assert {one["plugin"].split(" of ")[1] for one in used.values()} == {"promptdash-example 0.1"}
    assert len({one["sha256"] for one in used.values()}) == 1
    assert (tmp_path / "run" / "figures" / "timeline.pdf").stat().st_size > 1000


def test_a_package_of_its_codec_is_built_in_parallel_inspected_and_played_over_http(command, site, tmp_path):
    demo = "from packager.demo import make_demo_clip; make_demo_clip('clip.mp4', seconds=2, size=64)"
    subprocess.run([sys.executable, "-c", demo], cwd=tmp_path, env=environment(site), check=True)
    words = ("--codec", "jpeg", "--bitrates", "150k,600k", "--segment", "1", "--size", "64", "--metrics", "mae,psnr_db")
    command("packager", "build", "clip.mp4", *words, "--jobs", "2", "-o", "parallel")
    command("packager", "build", "clip.mp4", *words, "-o", "alone")
    assert same_files(tmp_path / "parallel", tmp_path / "alone", "*/seg-*.m4s") == 4
    assert "codec        jpeg" in command("packager", "inspect", "alone").stdout
    words = [sys.executable, "-m", "packager", "serve", "alone", "--port", "0", "--access-log", "none"]
    serve = subprocess.Popen(words, cwd=tmp_path, env=environment(site), stdout=subprocess.PIPE, text=True)
    try:
        url = serve.stdout.readline().strip()
        played = command("player", "play", url, "--abr", "cautious", "--render", "--log", "log")
    finally:
        serve.terminate()
        serve.communicate()
    assert "mae" in played.stdout
    assert json.loads((tmp_path / "log" / "summary.json").read_text())["quality"]["mae"] > 0


def same_files(one, other, pattern):
    """Return how many files match, once all are the same in both folders."""
    names = sorted(path.relative_to(one) for path in one.glob(pattern))
    assert names == sorted(path.relative_to(other) for path in other.glob(pattern))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    return len(names)


def test_a_file_of_its_format_is_a_trace(command, tmp_path):
    (tmp_path / "tram.kbps").write_text("1000\n3000\n")
    figures = json.loads(command("traces", "info", "tram.kbps").stdout)
    assert (figures["name"], figures["period_s"]) == ("tram.kbps", 2.0)
    assert figures["mean_bps"] == pytest.approx(2e6, rel=0.01)
    (tmp_path / "bad.kbps").write_text("1000\nfast\n")
    broken_one, error = command("traces", "info", "bad.kbps", ok=False).stderr.splitlines()
    assert broken_one == broken("trace")
    assert error == "error: bad.kbps:2: found 'fast', expected a rate in kbit/s"
    assert "expected subway/ and one of day, night" in command("traces", "info", "subway/dawn", ok=False).stderr


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("trace=broken", "trace"),
        ("abr=broken", "controller"),
        ("codec=broken", "codec"),
        ("build.metrics=[broken]", "metric"),
        ("build.generator=broken", "generator"),
    ],
)
def test_a_broken_plug_in_ends_a_run_with_one_line_that_names_its_distribution(command, word, kind):
    last = command("experiments.run", "codec=h265", word, *TINY, ok=False).stderr.splitlines()[-1]
    assert last == f"experiments.run: {broken(kind)}"


def test_a_sweep_over_its_traces_is_one_data_set(command, site, tmp_path):
    swept = ("-m", "trace=subway/day,subway/night", "abr=cautious,bba", "output=study", "jobs=1")
    build = ("codec=h265", "build.bitrates_bps=[20000,60000]", "build.metrics=[psnr_db,mae]")
    command("experiments.run", *swept, *build, "trace.share=40", *TINY[:-1])
    code = (
        "import experiments; table = experiments.load('study')\n"
        "print(sorted(set(zip(table.family, table.trace, table.abr))), bool((table.mae > 0).all()))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment(site), text=True, capture_output=True, check=True)
    pairs = [("subway", f"subway/{part}", name) for part in ("day", "night") for name in ("bba", "cautious")]
    assert done.stdout.strip() == f"{pairs} True"


def test_changed_code_of_a_plug_in_makes_another_package(site, tmp_path):
    code = (
        "import json; from experiments.plugins import of_package; from packager.settings import BuildConfig\n"
        "print(json.dumps([of_package(codec, BuildConfig(metrics=['psnr_db'])) for codec in ('jpeg', 'h265')]))"
    )
    copy = tmp_path / "site"
    shutil.copytree(site, copy)

    def sources():
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=tmp_path, env=environment(copy), text=True, capture_output=True, check=True)
        return json.loads(done.stdout)

    jpeg, h265 = sources()
    source = copy / "promptdash_example" / "codec.py"
    source.write_text(source.read_text() + "# changed\n")
    changed, still = sources()
    assert h265 == still == {}
    assert jpeg["promptdash.codecs: jpeg"]["plugin"] == changed["promptdash.codecs: jpeg"]["plugin"]
    assert jpeg["promptdash.codecs: jpeg"]["sha256"] != changed["promptdash.codecs: jpeg"]["sha256"]


@pytest.mark.parametrize("group", GROUPS)
def test_each_kind_has_a_page_that_shows_its_file_and_entry_point(group):
    """The pages of docs/extending are the package's own files."""
    project = (SOURCE / "pyproject.toml").read_text()
    section = re.search(rf'\[project\.entry-points\."promptdash\.{group}"\]\n(?:\w+ = .+\n)+', project)[0]
    module = re.search(r'"promptdash_example\.(\w+):', section)[1]
    page = (ROOT / "docs" / "extending" / f"{module}.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    assert ("python", (SOURCE / "promptdash_example" / f"{module}.py").read_text()) in blocks
    assert ("toml", section) in blocks
