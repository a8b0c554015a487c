"""A session in virtual time: one event loop between the player's state machine, a transport and a renderer.

No wall clock, no sockets, no threads: time jumps from event to event, and the same inputs give the same log.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emulator import Download, Transport
from experiments.errors import ExperimentError
from player.events import TIMEOUT
from player.session import Finished, Request, Session

RenderCost = Callable[[Request], float]
"""What rendering the answer to a request takes, in s."""

_MAX_IDLE_TURNS = 1000
"""Turns without the clock moving after which the state machine must be stuck; a real session needs a handful."""
PROGRESS_S = 0.05
"""A browser reports progress at most every 50 ms (XMLHttpRequest); Sabre and dash.js decide at that grain."""


class SimulationError(ExperimentError):
    """A session that neither finishes nor waits for anything: a fault in the player or in a controller."""


@dataclass
class _Job:
    """A segment to be rendered once, for all versions of it that have arrived since it was asked for."""

    segment: int
    cost_s: float
    versions: int = 1


class RenderServer:
    """The renderer as a queue with one server. Segments are rendered in order of playback.

    An upgrade of a segment that has not been begun takes its place; otherwise the segment is rendered again.
    """

    def __init__(self) -> None:
        self._waiting: list[_Job] = []
        self._current: _Job | None = None
        self.next_s = math.inf
        """When the job under way is done; infinite if there is none."""

    def submit(self, segment: int, cost_s: float, now_s: float) -> None:
        """Take in a segment, or an upgrade of one, that has just arrived and takes `cost_s` to render."""
        for job in self._waiting:
            if job.segment == segment:
                job.cost_s, job.versions = cost_s, job.versions + 1
                return
        bisect.insort(self._waiting, _Job(segment, cost_s), key=lambda job: job.segment)
        if self._current is None:
            self._begin(now_s)

    def finish(self) -> tuple[int, int]:
        """End the job under way and begin the next one; return its segment and how many versions it stands for."""
        job, done_s = self._current, self.next_s
        if job is None:
            raise SimulationError("nothing is being rendered")
        self._current, self.next_s = None, math.inf
        if self._waiting:
            self._begin(done_s)
        return job.segment, job.versions

    def _begin(self, now_s: float) -> None:
        self._current = self._waiting.pop(0)
        self.next_s = now_s + self._current.cost_s


def simulate(
    session: Session,
    transport: Transport,
    *,
    segment_frames: Sequence[int],
    render_fps: float | None = None,
    progress_s: float = PROGRESS_S,
) -> float:
    """Drive ``session`` to its end over ``transport`` and return the virtual time at which it finished, in seconds.

    Events at the same instant are handled in this order: a transfer's end, finished renders, the player's own timers.

    Args:
        segment_frames: [S] frames of each segment of the programme.
        render_fps: speed of the renderer, every frame costing the same; None: as the ladder's `rendering` says, which
            makes it free if there is none.
        progress_s: how often a session that may abandon a request hears of its progress.
    Raises:
        SimulationError: the session is stuck.
    """
    renderer, cost_s = RenderServer(), _render_cost(session, segment_frames, render_fps)
    fetch: _Fetch | None = None
    now_s, turns = 0.0, 0
    while True:
        action = session.next_action(now_s)
        if isinstance(action, Finished):
            return now_s
        if isinstance(action, Request):
            fetch = _Fetch(action, transport, now_s, progress_s if session.wants_progress else math.inf, cost_s)
            next_s = fetch.next_s
        else:  # a transfer ends at its deadline at the latest: while one runs the player's own timer adds nothing
            next_s = action.until_s if fetch is None else fetch.next_s
        next_s = min(next_s, renderer.next_s)
        turns = 0 if next_s > now_s else turns + 1
        if not math.isfinite(next_s) or turns > _MAX_IDLE_TURNS:
            raise SimulationError(f"the session is stuck at {now_s:.3f} s: nothing is under way and it does not finish")
        now_s = max(now_s, next_s)
        if fetch is not None and fetch.next_s <= now_s and fetch.report(session, renderer, now_s):
            fetch = None
        while renderer.next_s <= now_s:
            segment, versions = renderer.finish()
            session.on_rendered(now_s, segment, versions=versions)


def _render_cost(session: Session, segment_frames: Sequence[int], render_fps: float | None) -> RenderCost:
    """Return what tells the rendering time of a request's answer."""

    def cost_s(request: Request) -> float:
        if render_fps is not None:
            return segment_frames[request.segment] / render_fps
        rendering = session.ladder.rendering
        if rendering is None:
            return 0.0
        return float(rendering.passes[request.segment, request.representation, request.mode]) / rendering.passes_per_s

    return cost_s


class _Fetch:
    """A request under way: when to look at it next, and what to tell the session then."""

    def __init__(
        self, request: Request, transport: Transport, now_s: float, progress_s: float, cost_s: RenderCost
    ) -> None:
        """Send the request. Without looks on the way (`progress_s` infinite) the transport answers at once."""
        self._request, self._progress_s, self._cost_s = request, progress_s, cost_s
        deadline_s = now_s + request.timeout_s
        self._download: Download | None = None
        if math.isinf(progress_s):
            self._transfer = transport.request(request.size_bytes, now_s, deadline_s)
            self._end_s = self._transfer.finish_s
        else:
            self._download = transport.begin(request.size_bytes, now_s)
            self._end_s = min(self._download.finish_s, deadline_s)
        self.next_s = min(now_s + progress_s, self._end_s)

    def report(self, session: Session, renderer: RenderServer, now_s: float) -> bool:
        """Tell the session what `now_s` has brought; return whether the request is over."""
        download = self._download
        if download is not None and now_s < self._end_s:
            self.next_s = min(now_s + self._progress_s, self._end_s)
            first_byte_s = download.first_byte_s if download.first_byte_s <= now_s else None
            abandoned = session.on_progress(now_s, download.received_bytes(now_s), first_byte_s=first_byte_s)
            if abandoned:
                download.cancel(now_s)
            self._render_kept(session, renderer, now_s)
            return abandoned
        transfer = self._transfer if download is None else download.cancel(self._end_s)
        if transfer.complete:
            session.on_complete(now_s, transfer)
            renderer.submit(self._request.segment, self._cost_s(self._request), now_s)
        else:
            first_byte_s = transfer.first_byte_s if transfer.received_bytes else None
            session.on_error(now_s, TIMEOUT, transfer.received_bytes, first_byte_s=first_byte_s)
            self._render_kept(session, renderer, now_s)
        return True

    def _render_kept(self, session: Session, renderer: RenderServer, now_s: float) -> None:
        kept = session.take_kept()
        if kept is not None:
            renderer.submit(kept.segment, self._cost_s(kept), now_s)
