"""Network namespaces and TUN devices of Linux, by system calls: no `ip`, no `unshare`, no shell.

`enter_outside` and `enter_inside` change the namespaces of the calling process, which must be single-threaded (a fresh
fork). Between the two live the packets: whatever the one end's kernel sends can be read from its TUN, and whatever is
written to a TUN arrives at that kernel.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from emulator.errors import RealTimeError

OUTSIDE_DEVICE = "outside"
INSIDE_DEVICE = "ingress"
MTU_BYTES = 1500

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFDSTADDR, _SIOCSIFMTU = 0x8914, 0x8916, 0x8918, 0x8922
_RTM_NEWROUTE, _NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 24, 0x1, 0x4, 0x400
_NLM_F_REPLACE = 0x100
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTA_DST, _RTA_OIF, _RTA_METRICS, _RTAX_CC_ALGO = 254, 3, 1, 4, 8, 16
_UNICAST, _LOCAL = (1, 253), (2, 254)  # type of a route and its scope: a link's, this host's

_libc = ctypes.CDLL(None, use_errno=True)


def outside_address(number: int) -> str:
    """Return the address of the far end of shell `number`; 100.64.0.1 unless shells are nested, as in Mahimahi."""
    return f"100.64.{number}.1"


def inside_address(number: int) -> str:
    """Return the address of the command in shell `number`."""
    return f"100.64.{number}.2"


def free_number() -> int:
    """Return the first shell number whose addresses nobody has here."""
    for number in range(256):
        if not any(_is_local(address) for address in (outside_address(number), inside_address(number))):
            return number
    raise RealTimeError("all of 100.64.0.0/16 is in use; expected fewer nested shells")


def enter_new_user_and_network() -> None:
    """Leave for a new network namespace (and user namespace, unless we may make networks without one)."""
    if os.geteuid() == 0:
        try:
            return _unshare(_CLONE_NEWNET | _CLONE_NEWNS)
        except PermissionError:
            pass  # root without CAP_SYS_ADMIN, as in a container: like any other user
    uid, gid = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        raise RealTimeError(
            f"no user namespace ({error.strerror}); run as root, or have sysctl user.max_user_namespaces raised, and "
            "where they exist kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; "
            "in a container, seccomp must allow unshare(2); `emulator proxy` needs none of this"
        ) from error


def enter_new_network() -> None:
    """Leave for one more network namespace; we own the present one."""
    _unshare(_CLONE_NEWNET)


def configure_outside(number: int, congestion: str) -> int:
    """Make this namespace the far end: its kernel answers for every address there is. Return its TUN."""
    tun = open_device(OUTSIDE_DEVICE, outside_address(number), inside_address(number), congestion)
    _up("lo")
    _add_route("lo", _LOCAL)
    write_sysctl("ipv4/tcp_no_metrics_save", "1")  # a connection starts from nothing, not from its predecessor
    return tun


def configure_inside(number: int, congestion: str) -> int:
    """Make this namespace the command's: every address there is lies behind its TUN, which is returned."""
    tun = open_device(INSIDE_DEVICE, inside_address(number), outside_address(number), congestion)
    _up("lo")
    _add_route(INSIDE_DEVICE, _UNICAST, congestion=congestion)
    write_sysctl("ipv4/tcp_no_metrics_save", "1")
    group = os.getegid()
    write_sysctl("ipv4/ping_group_range", f"{group} {group}")  # ping without privileges
    return tun


def open_device(name: str, address: str, peer: str, congestion: str) -> int:
    """Create a TUN in this namespace, a point-to-point link to `peer`; it goes away with its file descriptor.

    Args:
        name: of the device.
        address: our end.
        peer: the other end.
        congestion: congestion control of TCP connections to the peer.
    """
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        remedy = {
            errno.ENOENT: "modprobe tun, or give the container --device /dev/net/tun",
            errno.EACCES: "run as root, or chmod 0666 /dev/net/tun",
            errno.EPERM: "the container must be allowed the device: --device /dev/net/tun",
        }.get(error.errno or 0, "the kernel needs CONFIG_TUN")
        raise RealTimeError(f"/dev/net/tun: {error.strerror}; {remedy}; `emulator proxy` does without") from error
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")  # its neighbour discovery would take opportunities
        _configure(name, _SIOCSIFADDR, _address(address))
        _configure(name, _SIOCSIFDSTADDR, _address(peer))
        _configure(name, _SIOCSIFMTU, struct.pack("i20x", MTU_BYTES))
        _up(name)
        _add_route(name, _UNICAST, peer, congestion)
    except OSError as error:
        os.close(tun)
        raise RealTimeError(
            f"TUN device {name}: {error.strerror}; run as root, or set sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0 where it exists; `emulator proxy` does without"
        ) from error
    return tun


def write_sysctl(name: str, value: str) -> None:
    """Set /proc/sys/net/NAME of this network namespace; nothing happens if this kernel does not have it."""
    path = Path("/proc/sys/net", name)
    if path.exists():
        path.write_text(value)


def mount_over(source: Path, target: Path) -> None:
    """Show `source` in the place of `target` to this mount namespace only."""
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    _check(_libc.mount(os.fsencode(source), os.fsencode(target.resolve()), None, _MS_BIND, None))


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal when the parent is gone, however it went."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def wake_on_time() -> None:
    """Ask the kernel not to put off this thread's timers (they may be 50 us late by default)."""
    _check(_libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0))


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def _check(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _is_local(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def _address(text: str) -> bytes:
    return struct.pack("HH4s8x8x", socket.AF_INET, 0, socket.inet_aton(text))


def _up(name: str) -> None:
    _configure(name, _SIOCSIFFLAGS, struct.pack("H22x", _IFF_UP | _IFF_RUNNING))


def _configure(name: str, request: int, value: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, request, struct.pack("16s24s", name.encode(), value))


def _add_route(device: str, kind: tuple[int, int], host: str | None = None, congestion: str | None = None) -> None:
    """Route one host, or every address, to a device, by netlink (rtnetlink(7)): struct rtmsg and attributes.

    The congestion control is that of TCP connections over this route. It is set here because a namespace's own default
    (net.ipv4.tcp_congestion_control) may only be one of net.ipv4.tcp_allowed_congestion_control of the whole machine.
    """
    bits = 0 if host is None else 32
    message = struct.pack("=BBBBBBBBI", socket.AF_INET, bits, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, kind[1], kind[0], 0)
    message += _attribute(_RTA_OIF, struct.pack("=i", socket.if_nametoindex(device)))
    if host is not None:
        message += _attribute(_RTA_DST, socket.inet_aton(host))
    if congestion is not None:
        message += _attribute(_RTA_METRICS, _attribute(_RTAX_CC_ALGO, congestion.encode() + b"\0"))
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_REPLACE
    header = struct.pack("=IHHII", 16 + len(message), _RTM_NEWROUTE, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as control:
        control.send(header + message)
        (status,) = struct.unpack_from("=i", control.recv(4096), 16)
    if status == -errno.EINVAL and congestion is not None:
        known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        raise RealTimeError(f"TCP congestion control {congestion!r}; this kernel has {', '.join(known)}")
    if status != 0:
        raise RealTimeError(f"route over {device}: {os.strerror(-status)}")


def _attribute(kind: int, value: bytes) -> bytes:
    """Return a netlink attribute, padded to 4 bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
