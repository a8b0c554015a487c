"""A session in virtual time: one event loop between the player's state machine, a transport and a renderer.

No wall clock, no sockets, no threads: time jumps from event to event, and the same inputs give the same log.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from emulator import Transfer, Transport
from experiments.errors import ExperimentError
from player.events import TIMEOUT
from player.session import Finished, Request, Session, Wait

_MAX_IDLE_TURNS = 1000
"""Turns without the clock moving after which the state machine must be stuck; a real session needs a handful."""


class SimulationError(ExperimentError):
    """A session that neither finishes nor waits for anything: a fault in the player or in a controller."""


@dataclass
class RenderServer:
    """The renderer as a queue with one server: segments in order, each taking frames / render_fps seconds.

    With ``render_fps`` None rendering costs no time.
    """

    segment_frames: Sequence[int]
    """Frames of each segment of the programme."""
    render_fps: float | None
    """Frames rendered per second."""
    free_s: float = 0.0
    """When the server has finished what it was given so far."""
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    """(completion time, segment) of what is not done yet, in order."""

    def submit(self, segment: int, now_s: float) -> None:
        """Queue a segment that has just arrived."""
        cost_s = self.segment_frames[segment] / self.render_fps if self.render_fps else 0.0
        self.free_s = max(self.free_s, now_s) + cost_s
        self.waiting.append((self.free_s, segment))

    @property
    def next_s(self) -> float:
        """When the next segment is done; infinite if there is none."""
        return self.waiting[0][0] if self.waiting else math.inf


def simulate(
    session: Session, transport: Transport, *, segment_frames: Sequence[int], render_fps: float | None = None
) -> float:
    """Drive ``session`` to its end over ``transport`` and return the virtual time at which it finished, in seconds.

    Events at the same instant are handled in this order: a transfer's end, finished renders, the player's own timers.

    Args:
        segment_frames: [S] frames of each segment of the programme.
        render_fps: speed of the renderer; None if rendering is free.
    Raises:
        SimulationError: the session is stuck.
    """
    renderer = RenderServer(segment_frames, render_fps)
    pending: tuple[Request, Transfer] | None = None
    now_s, turns = 0.0, 0
    while True:
        action = session.next_action(now_s)
        if isinstance(action, Finished):
            return now_s
        if isinstance(action, Request):
            transfer = transport.request(action.size_bytes, now_s, now_s + action.timeout_s)
            pending = (action, transfer)
            continue
        next_s = _next_event_s(action, pending, renderer)
        turns = 0 if next_s > now_s else turns + 1
        if not math.isfinite(next_s) or turns > _MAX_IDLE_TURNS:
            raise SimulationError(f"the session is stuck at {now_s:.3f} s: nothing is under way and it does not finish")
        now_s = max(now_s, next_s)
        if pending is not None and pending[1].finish_s <= now_s:
            _finish_transfer(session, renderer, *pending, now_s=now_s)
            pending = None
        while renderer.next_s <= now_s:
            session.on_rendered(now_s, renderer.waiting.popleft()[1])


def _next_event_s(action: Wait, pending: tuple[Request, Transfer] | None, renderer: RenderServer) -> float:
    # A transfer ends at its deadline at the latest, so while one runs the player's own timer has nothing to add.
    return min(pending[1].finish_s if pending else action.until_s, renderer.next_s)


def _finish_transfer(
    session: Session, renderer: RenderServer, request: Request, transfer: Transfer, *, now_s: float
) -> None:
    if transfer.complete:
        session.on_complete(now_s, transfer)
        renderer.submit(request.segment, now_s)
    else:
        first_byte_s = transfer.first_byte_s if transfer.received_bytes else None
        session.on_error(now_s, TIMEOUT, transfer.received_bytes, first_byte_s=first_byte_s)
