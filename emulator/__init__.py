"""The network in virtual time: Mahimahi's link, and HTTP transfers over it at two fidelities. No clock, no sockets."""

from emulator.config import MODELS, LinkConfig
from emulator.errors import EmulatorError, LinkError, TransportError
from emulator.link import BernoulliLoss, Delay, Link
from emulator.queues import QUEUE_NAMES, Packet, PacketQueue, create_queue
from emulator.transfer import Download, Transfer
from emulator.transport import Transport, create_transport

__all__ = [
    "MODELS",
    "QUEUE_NAMES",
    "BernoulliLoss",
    "Delay",
    "Download",
    "EmulatorError",
    "Link",
    "LinkConfig",
    "LinkError",
    "Packet",
    "PacketQueue",
    "Transfer",
    "Transport",
    "TransportError",
    "create_queue",
    "create_transport",
]
