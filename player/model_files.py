"""Where models are and how their parts are read: hub ids and folders, devices and dtypes, weights, digests.

Nothing here knows what a generator is; every error is one line that says what was found and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn

from player.autoencoder import LatentDecoder
from player.errors import GeneratorError
from player.generators import known_generators, plugin_folder

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "weights" / "embedded"
SETTINGS_FILE, TENSORS_FILE = "promptdash.json", "promptdash.safetensors"
_DECODERS = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL, "LatentDecoder": LatentDecoder}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PARTS = ["unet/*", "vae/*", "scheduler/*", "promptdash.*", "config.json", "*.safetensors"]
_NOT_NEEDED = ["*.fp16.*", "sd_turbo*", "sd_xl*"]  # copies of the same weights
_SNAPSHOT = re.compile(r"models--(.+?)--(.+)")


def resolve_device(device: str) -> torch.device:
    """Return the device a user's word means; `auto` is CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise GeneratorError(f"device {device!r} is not known: expected auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise GeneratorError(f"device {device!r} was asked for, but this machine has no CUDA device")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise GeneratorError(f"device {device!r} was asked for, but this machine has {torch.cuda.device_count()}")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype a user's word means; `auto` is float32 on a CPU and float16 on CUDA."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise GeneratorError(f"dtype {dtype!r} is not known: expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def find_folder(spec: str, patterns: list[str] | None = None) -> Path:
    """Return the local folder of a model, downloading a hub id if need be; `patterns`: which of its files."""
    if spec == EMBEDDED:
        return EMBEDDED_FOLDER
    if (offered := plugin_folder(spec)) is not None:
        return offered
    if Path(spec).is_dir():
        return Path(spec)
    if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
        known = ", ".join(f"`{name}`" for name in known_generators())
        raise GeneratorError(f"generator {spec!r}: no such folder; expected {known}, a folder or a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    advice = "a copy on another machine works as a folder: --generator DIR"
    try:
        return Path(snapshot_download(spec, allow_patterns=patterns or _PARTS, ignore_patterns=_NOT_NEEDED))
    except GatedRepoError as error:
        raise GeneratorError(f"generator {spec!r}: the hub wants its licence accepted first (hf auth login)") from error
    except RepositoryNotFoundError as error:
        raise GeneratorError(f"generator {spec!r}: the hub has no model of that name") from error
    except LocalEntryNotFoundError as error:
        raise GeneratorError(
            f"generator {spec!r}: not on this machine, and the hub is out of reach; {advice}"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise GeneratorError(
            f"generator {spec!r}: not to be had from the hub ({first_line(error)}); {advice}"
        ) from error


def label(spec: str) -> str:
    """Return what a generator is called in ids: the hub id it was fetched by, a folder's name, or `embedded`."""
    if not Path(spec).is_dir():
        return spec
    path = Path(spec).resolve()
    cached = _SNAPSHOT.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
    return f"{cached[1]}/{cached[2]}" if cached else path.name


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Hold back diffusers' remarks on loading; what matters is raised."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model in place, and return it, as `torch.nn.Module.to` does.

    diffusers puts a method in that one's place which remarks on every cast that parts of some models, none of those
    used here, should stay in float32.
    """
    return nn.Module.to(module, dtype)


def read_json(path: Path, spec: str) -> dict:
    """Return a JSON object of the model `spec`."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise GeneratorError(f"generator {spec!r}: {path} is missing") from error
    except (OSError, ValueError) as error:
        raise GeneratorError(f"{path}: not readable as JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise GeneratorError(f"{path}: found {type(content).__name__}, expected a JSON object")
    return content


def load_part(kind: Any, folder: Path) -> nn.Module:
    """Return a diffusers model of a class from its folder, float32 on the CPU."""
    try:
        return kind.from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise GeneratorError(f"{folder}: cannot be loaded ({first_line(error)})") from error
    except MemoryError as error:
        raise GeneratorError(f"{folder}: does not fit this machine's memory") from error


def load_unet(folder: Path, spec: str) -> UNet2DConditionModel:
    """Return the UNet of a model's folder."""
    name = read_json(folder / "unet" / "config.json", spec).get("_class_name")
    if name != "UNet2DConditionModel":
        raise GeneratorError(f"{folder / 'unet'}: found a {name}, expected a UNet2DConditionModel")
    return load_part(UNet2DConditionModel, folder / "unet")


def decoder_folder(folder: Path) -> Path:
    """Return where the latent decoder of a model's folder is: its `vae/`, or the folder itself."""
    return folder / "vae" if (folder / "vae").is_dir() else folder


def load_decoder(folder: Path, spec: str) -> nn.Module:
    """Return the latent decoder of a model's folder, or of its own folder."""
    vae = decoder_folder(folder)
    name = read_json(vae / "config.json", spec).get("_class_name")
    if name not in _DECODERS:
        raise GeneratorError(f"{vae}: found a {name}, expected one of {', '.join(_DECODERS)}")
    return load_part(_DECODERS[name], vae)


def check_memory(parameters: int, dtype: torch.dtype, device: torch.device, spec: str) -> None:
    """Raise GeneratorError where a CUDA device cannot hold a model's parameters in a dtype."""
    if device.type != "cuda":
        return
    needed_bytes = parameters * dtype.itemsize
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    if needed_bytes > free_bytes:
        half_bytes = parameters * 2
        advice = " (float16 needs half: --dtype float16)" if dtype.itemsize > 2 and half_bytes < free_bytes else ""
        raise GeneratorError(
            f"generator {spec!r}: {needed_bytes / 1e9:.1f} GB of weights in {str(dtype).removeprefix('torch.')}, but "
            f"{device} has {free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB free{advice}"
        )


def digest(folder: Path, decoder: Path | None) -> str:
    """Return 12 hex digits over every file that decides what a generator renders; `decoder`: another's folder."""
    total = hashlib.sha256()
    named = {"unet", "vae", "scheduler", SETTINGS_FILE, TENSORS_FILE}
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if relative.parts[0] in (named - {"vae"} if decoder else named):
            _add_file(total, file, str(relative))
    if decoder:
        for file in sorted(decoder_folder(decoder).glob("*")):
            _add_file(total, file, f"decoder/{file.name}")
    return total.hexdigest()[:12]


def _add_file(total: Any, file: Path, name: str) -> None:
    if not file.is_file():
        return
    total.update(name.encode())
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 22), b""):
            total.update(block)
