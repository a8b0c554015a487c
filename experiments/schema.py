"""What a run is configured with. The libraries' own dataclasses are the schema, so unknown keys and wrong types fail
before anything is built; this module only puts them together and registers them with Hydra."""

from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from abr import AbrConfig
from emulator import LinkConfig
from experiments.device import DeviceConfig
from experiments.errors import UsageError
from experiments.launchers import LauncherConfig
from experiments.shares import default_share
from packager.settings import BuildConfig
from player.codecs import is_known, known_codecs
from player.config import PlayerConfig
from traces import TraceConfig

CONF = Path(__file__).with_name("conf")
SCHEMA_NAME = "run_schema"

SIMULATE, REAL = MODES = ("simulate", "real")
PROXY, SHELL = SHAPERS = ("proxy", "shell")


@dataclass
class VideoConfig:
    """What is streamed."""

    name: str = "demo"
    """`demo`, a clip this project makes itself on first use, or the path of any video file."""
    seconds: float = 12.0
    """Length of the demo clip, s."""
    size: int = 512
    """Side of the demo clip's square frames, pixels."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UsageError(f"video.seconds={self.seconds:g}: expected a length above zero")


@dataclass
class QualityConfig:
    """When a frame counts as severely distorted; the rule is stated wherever the share is."""

    severe_metric: str = "auto"
    """Metric that decides; auto: the first measured of LPIPS, lpips-embedded, SSIMULACRA2, PSNR."""
    severe_threshold: float | None = None
    """Frames worse than this are severely distorted; null: the published threshold (docs/metrics.md)."""


@dataclass
class RealConfig:
    """How mode=real shapes what the player fetches."""

    shaper: str = PROXY
    """proxy: the emulator's TCP proxy, without privileges; shell: a network namespace around the player."""
    lead_s: float = 20.0
    """shell: the link runs from the start of the player's process on. The session, and the trace with it, begins this
    much later; until then the link is fast, for the manifest."""

    def __post_init__(self) -> None:
        if self.shaper not in SHAPERS:
            raise UsageError(f"real.shaper={self.shaper}: expected one of {', '.join(SHAPERS)}")
        if not 0 <= self.lead_s <= 600:
            raise UsageError(f"real.lead_s={self.lead_s:g}: expected 0 to 600 seconds")


@dataclass
class SuiteConfig:
    """A whole study in one configuration, such as experiment=paper: every trace with every controller and codec."""

    traces: list[str] = field(default_factory=list)
    """Families (all their traces), traces, files, or `all`; none: no suite. `trace=` on the command line goes first."""
    abr: list[str] = field(default_factory=list)
    """Controllers, options as mpc:horizon=3+utility=log, or `all`; none, or with `abr=` given: that one."""
    codec: list[str] = field(default_factory=list)
    """Codecs; none, or with `codec=` given: those."""
    offsets: int = 1
    """Start offsets for each trace, evenly spaced over it; the same for every codec, video and controller."""
    limit: int = 0
    """At most this many traces of each family, spread over its list; 0: all."""

    def __post_init__(self) -> None:
        if self.offsets < 1 or self.limit < 0:
            raise UsageError("offsets must be 1 or more, limit 0 or more")


@dataclass
class RunConfig:
    """One run: one video, one link, one controller, one or both codecs."""

    trace: TraceConfig = field(default_factory=TraceConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    abr: AbrConfig = field(default_factory=AbrConfig)
    player: PlayerConfig = field(default_factory=PlayerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    build: BuildConfig = field(default_factory=lambda: BuildConfig(jobs=0))
    quality: QualityConfig = field(default_factory=QualityConfig)
    codec: list[str] = field(default_factory=lambda: ["prompt", "h265"])
    """What to stream, each in a session of its own over the same link; `python -m packager list` lists the codecs."""
    mode: str = SIMULATE
    """simulate: in virtual time; real: an origin, a shaped link and the player, in real time."""
    real: RealConfig = field(default_factory=RealConfig)
    name: str = "run"
    """Last part of the run folder's name."""
    session_s: float = 180.0
    """Length of the programme, s; a shorter clip loops, a longer one is cut."""
    render_check: bool = True
    """Render every segment that was played once, and report the measured speed."""
    render: bool = False
    """Write what the viewer saw as session.mp4, rebuffering included."""
    figures: bool = True
    """Draw the figures."""
    overwrite: bool = False
    """Write into a folder that already holds a run."""
    cache_dir: str = "outputs/cache"
    """Where the demo clip and packaged videos are kept between runs."""
    seed: int | None = None
    """Draws the start offset, uniform over the trace, and the losses; null: trace.offset_s and link.seed say them."""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    videos: str = ""
    """Sweeps: a folder whose videos are all streamed, or videos separated by commas, in place of `video`."""
    package: str = ""
    """Sweeps: finished packages in place of `video`: folders or patterns such as 'packages/*-prompt', with commas."""
    output: str = ""
    """Sweeps: folder of the data set; empty: outputs/sweep-HASH, a hash of the command."""
    jobs: int = 0
    """Sweeps: sessions played at the same time; 0: all cores."""
    launcher: LauncherConfig = field(default_factory=LauncherConfig)

    def __post_init__(self) -> None:
        unknown = [codec for codec in self.codec if not is_known(codec)]
        if unknown or not self.codec:
            raise UsageError(f"codec={','.join(self.codec)}: expected some of {', '.join(known_codecs())}")
        if len(set(self.codec)) < len(self.codec):
            raise UsageError(f"codec={','.join(self.codec)}: each codec can be given once")
        if self.mode not in MODES:
            raise UsageError(f"mode={self.mode}: expected one of {', '.join(MODES)}")
        if self.device.passes_per_s is not None:
            if self.player.render_fps is not None:
                raise UsageError(
                    "device.passes_per_s and player.render_fps: two speeds of one device; give one of them"
                )
            if self.mode == REAL:
                raise UsageError(
                    "device.passes_per_s: in real time the device is the machine at hand; mode=simulate only"
                )
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"seed={self.seed}: expected 0 or more, or null")
        if self.jobs < 0:
            raise UsageError(f"jobs={self.jobs}: expected 0 or more")
        if not self.cache_dir.strip():
            raise UsageError("cache_dir: found an empty path, expected a folder")
        if not 0 < self.session_s <= 86_400:
            raise UsageError(f"session_s={self.session_s:g}: expected a length above zero and up to a day (86400)")


def register() -> None:
    """Make the schema and this project's resolvers known to Hydra; may be called any number of times."""
    ConfigStore.instance().store(name=SCHEMA_NAME, node=RunConfig)
    OmegaConf.register_new_resolver("default_share", default_share, replace=True)
    OmegaConf.register_new_resolver("file_name", _file_name, replace=True)


def _file_name(text: str) -> str:
    """Return ``text`` as one part of a folder's name: a path's last part, odd characters replaced."""
    stem = Path(str(text)).stem if "/" in str(text) and Path(str(text)).suffix else str(text)
    return "".join(character if character.isalnum() or character in "._=-" else "-" for character in stem)[:80]
