"""Where LPIPS' weights come from: a weights folder, torch hub's cache, or a download; every file is checked.

Only safetensors and `weights_only` checkpoints are read, so no file can run code.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import pickle
import tempfile
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from player.errors import WeightsError
from player.quality.lpips import BACKBONES, LpipsNetwork

log = logging.getLogger(__name__)

WEIGHTS_VARIABLE = "PROMPTDASH_WEIGHTS"
"""Environment variable that names the weights folder where no argument does."""

_DOWNLOADS = "https://download.pytorch.org/models/"
_PROBE_TIMEOUT_S = 3.0  # per connection attempt
_PROBE_LIMIT_S = 4.0  # in all; name resolution has no timeout of its own
_READ_TIMEOUT_S = 10.0
_BLOCK_BYTES = 1 << 20

State = dict[str, torch.Tensor]


class MissingWeightsError(WeightsError):
    """Weights that are nowhere to be found, as against weights that were found and are not right."""


@dataclass(frozen=True)
class _Published:
    """The files a network is published in, and how to tell that they are intact."""

    backbone: str  # torchvision's file; its name ends in the start of its SHA-256
    heads_sha256: str  # of LPIPS v0.1's `<net>.pth`, the same bytes in the packages lpips and torchmetrics
    state_digest: str | None  # `_digest` of backbone and heads together, where it is known

    @property
    def sha256_start(self) -> str:
        return self.backbone.removesuffix(".pth").rpartition("-")[2]


_PUBLISHED = {
    "squeeze": _Published(
        "squeezenet1_1-b8a52dc0.pth",
        "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
        "1c150b2b8deeed2c0906b6038ea02741a4b05d2838d07b1d0ed17b90ed21fd24",
    ),
    "alex": _Published(
        "alexnet-owt-7be5be79.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", None
    ),
    "vgg": _Published("vgg16-397923af.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", None),
}


def load_lpips_network(net: str, *, weights_dir: Path | None = None, download: bool = True) -> LpipsNetwork:
    """Return LPIPS' network with published weights.

    Looks in `weights_dir` (else in the folder that PROMPTDASH_WEIGHTS names) for `lpips/<net>.safetensors` with
    backbone and heads, or for torchvision's backbone file; then in torch hub's cache; then downloads the backbone
    into that cache, if `download` allows it and the server answers. Heads come with the package torchmetrics.

    Raises:
        MissingWeightsError: nothing was found.
        WeightsError: what was found is not what was published.
    """
    published = _PUBLISHED[net]
    folder = weights_folder(weights_dir)
    cache = Path(torch.hub.get_dir()) / "checkpoints" / published.backbone
    network = LpipsNetwork(net)
    if folder is not None and (complete := folder / "lpips" / f"{net}.safetensors").is_file():
        network.load_state_dict(_read_complete(complete, net, network))
        return network
    places = [] if folder is None else [folder / published.backbone, folder / "lpips" / published.backbone]
    backbone = next((path for path in [*places, cache] if path.is_file()), None)
    if backbone is None:
        if not (download and _server_answers()):
            raise MissingWeightsError(_not_found(net, folder, cache, download=download))
        backbone = _download(published, cache)
    network.load_state_dict(_read_backbone(backbone, published, network) | _read_heads(net))
    return network


def weights_folder(weights_dir: Path | None) -> Path | None:
    """Return the folder to search for weights, or None if neither argument nor environment names one."""
    named = os.environ.get(WEIGHTS_VARIABLE)
    folder = weights_dir if weights_dir is not None else Path(named) if named else None
    if folder is not None and not folder.is_dir():
        origin = "weights folder" if weights_dir is not None else f"{WEIGHTS_VARIABLE}:"
        raise WeightsError(f"{origin} {folder} is not a folder")
    return folder


def _not_found(net: str, folder: Path | None, cache: Path, *, download: bool) -> str:
    """Say in one line what was looked for and how to get it."""
    where = f"in {folder} or " if folder is not None else ""
    online = f"{_DOWNLOADS} does not answer" if download else "downloading is switched off"
    return (
        f"no weights for lpips_{net}: {cache.name} is not {where}in {cache.parent}, and {online}; "
        f"download {_DOWNLOADS}{cache.name}, put it into a folder and set {WEIGHTS_VARIABLE} to that folder"
    )


def _digest(state: State) -> str:
    """Return the SHA-256 over names, shapes and little-endian float32 values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {list(state[name].shape)}\n".encode())
        digest.update(state[name].contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _read_complete(path: Path, net: str, network: LpipsNetwork) -> State:
    """Read and check a safetensors file that holds backbone and heads."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({_one_line(error)})") from error
    heads = {name: tensor.reshape(1, -1, 1, 1) for name, tensor in state.items() if name.startswith("lin")}
    state = _checked({**state, **heads}, network.state_dict(), path)
    digest = _PUBLISHED[net].state_digest
    if digest is not None and _digest(state) != digest:
        raise WeightsError(f"{path}: weights differ from those published for lpips_{net} (checksum)")
    if digest is None and any(not torch.equal(state[name], head) for name, head in _read_heads(net).items()):
        raise WeightsError(f"{path}: heads differ from those published for lpips_{net}")
    return state


def _read_backbone(path: Path, published: _Published, network: LpipsNetwork) -> State:
    """Read and check the layers that LPIPS uses of torchvision's checkpoint of a backbone."""
    found = _sha256(path)
    if not found.startswith(published.sha256_start):
        raise WeightsError(f"{path}: SHA-256 begins {found[:8]}, expected {published.sha256_start}: a damaged file?")
    expected = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("features.")}
    state = _load_checkpoint(path)
    return _checked({name: state[name] for name in expected if name in state}, expected, path)


@functools.cache
def _read_heads(net: str) -> State:
    """Read LPIPS v0.1's heads, which torchmetrics carries, without importing it (that takes seconds)."""
    package = importlib.util.find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        raise WeightsError(f"no heads for lpips_{net}: the package torchmetrics, which carries them, is not installed")
    path = Path(package.submodule_search_locations[0], "functional", "image", "lpips_models", f"{net}.pth")
    if not path.is_file():
        raise WeightsError(f"no heads for lpips_{net}: this torchmetrics has no {path}; install torchmetrics>=1.4,<2")
    if _sha256(path) != _PUBLISHED[net].heads_sha256:
        raise WeightsError(f"{path}: heads differ from those published for lpips_{net} (checksum)")
    state = _load_checkpoint(path)
    return {f"lin{index}": state[f"lin{index}.model.1.weight"] for index in range(len(BACKBONES[net].taps))}


def _load_checkpoint(path: Path) -> State:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: not a readable checkpoint ({_one_line(error)})") from error


def _checked(state: State, expected: State, path: Path) -> State:
    """Return `state` if its names, shapes and types are the expected ones and all its values are finite."""
    if missing := sorted(expected.keys() - state.keys()):
        raise WeightsError(f"{path}: {missing[0]} is missing")
    if unknown := sorted(state.keys() - expected.keys()):
        raise WeightsError(f"{path}: {unknown[0]} is unknown")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape or tensor.dtype != torch.float32:
            found = f"{list(tensor.shape)} {tensor.dtype}"
            raise WeightsError(f"{path}: {name} is {found}, expected {list(expected[name].shape)} torch.float32")
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite")
    return state


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _server_answers() -> bool:
    """Ask the download server once per process; False within four seconds on a machine without network."""
    answers: list[int] = []

    def probe() -> None:
        request = urllib.request.Request(_DOWNLOADS + _PUBLISHED["squeeze"].backbone, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S) as response:
                answers.append(response.status)
        except OSError as error:
            log.debug("%s does not answer: %s", _DOWNLOADS, error)

    thread = threading.Thread(target=probe, name="weights-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_LIMIT_S)
    return bool(answers)


def _download(published: _Published, destination: Path) -> Path:
    """Fetch a backbone into torch hub's cache; only a whole file with the right checksum gets its name there."""
    # torch.hub.download_url_to_file would do but for a timeout, which it lacks: a stalled server would hang the run.
    url = _DOWNLOADS + published.backbone
    log.info("downloading %s to %s", url, destination.parent)
    digest = hashlib.sha256()
    partial: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=_READ_TIMEOUT_S) as response,
            tempfile.NamedTemporaryFile(dir=destination.parent, suffix=".partial", delete=False) as file,
        ):
            partial = Path(file.name)
            while block := response.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
        if not digest.hexdigest().startswith(published.sha256_start):
            found = digest.hexdigest()[:8]
            raise MissingWeightsError(f"{url}: SHA-256 begins {found}, expected {published.sha256_start}")
        partial.replace(destination)
    except OSError as error:
        raise MissingWeightsError(f"{url}: no download to {destination.parent} ({_one_line(error)})") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return destination


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
