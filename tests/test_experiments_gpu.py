"""The GPU measurement on a CPU in its tiny configuration, and SD-Turbo's exact architecture with random weights."""

import json
import os
from pathlib import Path

import pytest
import torch

from experiments.bench_gpu import main
from experiments.gpu_rows import Plan, operations
from experiments.random_models import SD_TURBO, parameters_of, random_generator
from player.generator import set_precision
from player.one_step import one_step_constants

PLAN = Plan(torch.device("cpu"), "bfloat16", "taesd", frames=3, tiny=False, quick=True)


def test_the_constants_are_the_published_ones_to_their_digits():
    scheduler = json.loads((SD_TURBO / "scheduler" / "scheduler_config.json").read_text())
    c_skip, c_out = one_step_constants(scheduler)
    assert f"{1 / c_skip:.4f}" == "0.0683"
    assert f"{c_out:.4f}" == "-14.6146"


def test_the_architecture_counts_what_sd_turbo_does():
    found = operations(PLAN)
    assert found["parameters_unet"] == 865_910_724
    assert found["gflop_unet"] == pytest.approx(804, rel=0.01)
    assert found["gflop_decoder"] == pytest.approx(141, rel=0.01)


def test_shapes_are_those_of_512_pixels():
    ghost = random_generator(device="meta")
    assert (ghost.tokens, ghost.width, ghost.native_size) == (77, 1024, (512, 512))
    assert ghost.generate(torch.empty(2, 77, 1024, device="meta")).shape == (2, 3, 512, 512)
    own = random_generator(decoder=SD_TURBO / "vae", device="meta")
    assert own.generate(torch.empty(1, 77, 1024, device="meta")).shape == (1, 3, 512, 512)
    assert parameters_of(own.decoder) > 40 * parameters_of(ghost.decoder) / 3


_NEEDED_BYTES = 8_000_000_000  # its float32 weights, their copy in half precision, and torch itself


def _available_bytes():
    """Memory that this machine has free, where it says so (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else _NEEDED_BYTES


@pytest.mark.slow
@pytest.mark.skipif(
    "CI" not in os.environ and _available_bytes() < _NEEDED_BYTES, reason="needs 8 GB of memory that is available"
)
def test_random_weights_render_in_half_precision():
    """One evaluation of all 866 million parameters, for frames of 64x64 pixels."""
    generator = random_generator(latent_side=8)
    embeddings = torch.randn(1, 77, 1024, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = generator.denoise(embeddings)
        frames = generator.decode_latents(latents)
        set_precision(generator, torch.bfloat16)
        rounded = generator.denoise(embeddings)
        shown = generator.decode_latents(rounded).float()
    assert frames.shape == (1, 3, 64, 64)
    assert torch.isfinite(frames).all()
    assert latents.std() > 1
    assert (rounded - latents).norm() / latents.norm() <= 1e-2
    assert (shown - frames).norm() / frames.norm() <= 1e-2


def test_the_bench_runs_tiny_on_a_cpu(tmp_path, capsys):
    target = tmp_path / "bench.json"
    assert main(["--tiny", "--device", "cpu", "--frames", "3", "--dtype", "bfloat16", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["finished"]
    assert "small model of random weights" in report["weights"]
    rows = {row["name"]: row for row in report["rendering"]}
    assert rows["keys"]["frames_per_s"] > 0
    assert "share_of_ceiling" not in rows["keys"]  # a CPU's ceiling is none of half precision's
    assert rows["max-autotune"]["skipped"] == "skipped: needs a CUDA device"
    assert set(report["cards"].values()) == {"not measured"}
    *measured, compiled = report["fitting"]
    assert [row["frames_a_step"] for row in measured] == [3, 4, 4, 4, 8]
    assert measured[-1]["segments_at_once"] == 2
    assert compiled["skipped"] == "skipped: needs a CUDA device"
    assert 0 < report["relative_error_latents"] < 3e-2  # layers of 32 channels average little away
    assert str(target) in capsys.readouterr().out


def test_a_spent_budget_leaves_reasons(tmp_path):
    target = tmp_path / "bench.json"
    assert main(["--tiny", "--device", "cpu", "--frames", "2", "--budget-s", "1e-6", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    rows = [row for part in ("rendering", "memory", "fitting") for row in report[part]]
    assert rows
    assert all(row["skipped"] == "skipped: the time budget is spent" for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_a_gpu_the_tiny_model_is_named(capsys):
    assert main(["--quick"]) == 1
    assert capsys.readouterr().err == (
        "bench_gpu: no CUDA device here: --tiny tries the script on a CPU, with numbers that say nothing\n"
    )


def test_bad_arguments_are_one_line(capsys):
    assert main(["--tiny", "--device", "cpu", "--frames", "0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
