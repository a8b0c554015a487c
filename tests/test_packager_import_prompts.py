"""Published prompts: exact values, and one line for everything that is wrong with a folder."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from packager.__main__ import main
from packager.errors import BuildError
from packager.import_prompts import GENERATOR_ID, ImportedPromptsError, import_prompts, read_prompts
from player.bitstream import read_init, read_segment
from player.errors import ManifestError
from player.presentation import Presentation

RANK, KEYS = 2, 4


def prompt(frame):
    source = torch.Generator().manual_seed(frame)
    return {
        "U": torch.randint(100, 140, (77, RANK), generator=source, dtype=torch.uint8),
        "V": torch.randint(100, 140, (RANK, 1024), generator=source, dtype=torch.uint8),
        "U_scale": torch.tensor(0.019 + frame / 1000),
        "U_zero_point": torch.tensor(114.0),
        "V_scale": torch.tensor(0.1),
        "V_zero_point": torch.tensor(120.0),
    }


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "clip"
    path.mkdir()
    for frame in range(0, 10 * KEYS, 10):
        torch.save(prompt(frame), path / f"frame_{frame:05d}.prompt")
    torch.save(torch.zeros(1, 4, 64, 64), path / "init.pth")
    return path


def test_values_survive_and_segments_stand_alone(folder, tmp_path):
    presentation = import_prompts(folder, tmp_path / "out", segment_s=20 / 30)
    info = read_init(presentation.read_init(0))
    assert (info.generator_id, info.rank, info.norm_rank, info.frame_width) == (GENERATOR_ID, RANK, RANK, 512)
    segments = [read_segment(info, presentation.read_segment(index, 0)) for index in range(2)]
    assert [[key.frame_offset for key in s.keys] for s in segments] == [[0, 10, 20], [0, 10]]
    assert [s.frames for s in segments] == list(presentation.manifest.frames) == [20, 11]
    frame = 0
    for segment in segments:
        for key, u_scale in zip(segment.keys, segment.u_scales, strict=True):
            published = prompt(frame + key.frame_offset)
            expected = published["U_scale"] * (published["U"].float() - published["U_zero_point"])
            np.testing.assert_array_equal(key.u * u_scale, expected.numpy())
        frame += segment.frames
    total = sum(path.stat().st_size for path in (tmp_path / "out" / "r02").iterdir())
    assert presentation.bitrate_bps[0] == pytest.approx(total * 8 * 30 / 31)


def test_a_chained_stream_carries_its_first_latent(folder, tmp_path, capsys):
    latent = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.save(latent, folder / "init.pth")
    alone = import_prompts(folder, tmp_path / "alone")
    assert main(["import", str(folder), "-o", str(tmp_path / "chained"), "--carry", "0.05"]) == 0
    chained = Presentation.load(tmp_path / "chained")
    info = read_init(chained.read_init(0))
    assert info.chain.carry == pytest.approx(0.05)
    np.testing.assert_array_equal(info.chain.array(), latent[0].numpy())
    assert chained.manifest.chained
    assert not alone.manifest.chained
    assert chained.init_bytes[0] - alone.init_bytes[0] == 4 * 4 * 64 * 64 + 10
    text = (tmp_path / "chained" / "manifest.mpd").read_text()
    assert 'startWithSAP="0"' in text
    assert "EssentialProperty" in text
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "chained" / "r02" / "init.mp4")]) == 0
    assert "carry 0.05, first latent 4 x 64 x 64; decodes in order only" in capsys.readouterr().out
    assert main(["import", str(folder), "-o", str(tmp_path / "chained"), "--carry", "1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (rung,) = chained.manifest.representations
    with pytest.raises(ManifestError, match="2 prompt representations, expected one of prompts"):
        replace(chained.manifest, representations=(rung, replace(rung, id="other")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"U": torch.zeros(76, RANK, dtype=torch.uint8)}, r"U \[76, 2\].*expected \[77, r\]"),
        ({"V": torch.zeros(3, 1024, dtype=torch.uint8)}, r"V \[3, 1024\]"),
        ({"V": torch.zeros(RANK, 1024)}, "expected torch.uint8"),
        ({"U": [1]}, "expected tensors U, V"),
        ({"U_scale": torch.tensor(float("nan"))}, "one finite number"),
        ({"U_scale": torch.tensor(-1.0)}, "scale -1"),
        ({"V_zero_point": torch.tensor(0.5)}, "zero point 0.5"),
        ({"V_scale": torch.ones(2)}, "one finite number"),
    ],
)
def test_wrong_prompts_are_named(folder, change, message):
    torch.save(prompt(10) | change, folder / "frame_00010.prompt")
    with pytest.raises(ImportedPromptsError, match=f"frame_00010.prompt: .*{message}"):
        read_prompts(folder)


def test_foreign_files_are_not_run(folder):
    class Bomb:
        def __reduce__(self):
            return (exit, (1,))

    for content in (pickle.dumps(Bomb()), b"junk", b""):
        (folder / "frame_00010.prompt").write_bytes(content)
        with pytest.raises(ImportedPromptsError, match="frame_00010"):
            read_prompts(folder)


def test_folders_are_checked(folder, tmp_path, capsys):
    torch.save(torch.zeros(1, 4, 32, 32), folder / "init.pth")
    with pytest.raises(ImportedPromptsError, match=r"init.pth: expected a finite tensor \[1, 4, 64, 64\]"):
        read_prompts(folder)
    (folder / "frame_00020.prompt").unlink()
    assert main(["import", str(folder), "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"packager: {folder}: frame 20 is missing, next is frame 30\n"
    with pytest.raises(ImportedPromptsError, match="no folder"):
        read_prompts(tmp_path / "absent")
    with pytest.raises(ImportedPromptsError, match="no frame_"):
        read_prompts(tmp_path)
    for options in ({"fps": 0}, {"segment_s": -1}):
        with pytest.raises(BuildError):
            import_prompts(folder, tmp_path / "out", **options)


def test_published_folders_are_read(shared_data):
    prompts = read_prompts(shared_data / "promptus" / "uvg")
    assert [later.frame - one.frame for one, later in pairwise(prompts)] == [10] * 14
