"""The network in virtual time: Mahimahi's link, and HTTP transfers over it at two fidelities. No clock, no sockets."""

from emulator.config import MODELS, LinkConfig
from emulator.elements import BernoulliLoss, Delay
from emulator.errors import EmulatorError, LinkError, TransportError
from emulator.fifo import Packet
from emulator.link import Link
from emulator.queues import QUEUE_NAMES, PacketQueue, create_queue, parse_queue
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
    "parse_queue",
]
