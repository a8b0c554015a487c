"""Commands behind the link, in real namespaces; skipped, with the shell's own reason, where they are not permitted."""

import functools
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from emulator import graph
from emulator.errors import RealTimeError
from emulator.shell import ShellConfig

FETCH = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())"
ECHO = """
import socket, sys
try:
    socket.create_connection(("100.64.0.1", int(sys.argv[1])))
except ConnectionRefusedError:
    print("refused")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.sendto(b"x" * 1400, ("100.64.0.1", int(sys.argv[1])))
data, sender = s.recvfrom(2000)
print(len(data), *sender)
"""


def shell(*arguments, **options):
    command = [sys.executable, "-m", "emulator", "shell", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


@functools.lru_cache(maxsize=1)
def reason_to_skip():
    """Why no shell runs here; empty if one does."""
    tried = shell("--trace", "lte", "--", "true")
    return "" if tried.returncode == 0 else tried.stderr.decode().strip()


@pytest.fixture
def permitted():
    if reason_to_skip():
        pytest.skip(reason_to_skip())


@pytest.fixture
def site(tmp_path):
    """A server of files at the host's 127.0.0.1: (folder, port)."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("command", "status"), [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137)])
def test_the_status_is_the_commands(permitted, command, status):
    assert shell("--trace", "lte", "--", *command).returncode == status


def test_a_command_that_does_not_exist_takes_one_line(permitted):
    ran = shell("--trace", "lte", "--", "no-such-command")
    assert ran.returncode == 127
    assert ran.stderr.decode().startswith("emulator: no-such-command: No such file or directory\n")


def test_a_file_of_the_host_arrives_through_the_logged_link(permitted, site, tmp_path):
    folder, port = site
    body = os.urandom(60_000)
    (folder / "file").write_bytes(body)
    log = tmp_path / "link.log"
    url = f"http://100.64.0.1:{port}/file"
    options = ["--trace", "lte", "--delay-ms", "5", "--loss", "0.01", "--log", str(log)]
    ran = shell(*options, "--", sys.executable, "-c", FETCH, url)
    assert ran.stdout == body
    events = graph.read_log(log)
    departed_bytes = sum(size_bytes for _, size_bytes, _ in events.departures)
    assert departed_bytes > len(body)
    assert events.departures[-1][0] <= events.opportunities[-1][0]
    times = {time_ms for time_ms, _ in events.opportunities}
    assert all(time_ms in times for time_ms, _, _ in events.departures)


def test_datagrams_come_back_and_a_port_where_nobody_listens_refuses(permitted):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        port = server.getsockname()[1]

        def answer():
            data, client = server.recvfrom(2000)
            server.sendto(data[:1000], client)

        thread = threading.Thread(target=answer)
        thread.start()
        ran = shell("--trace", "lte", "--delay-ms", "1", "--", sys.executable, "-c", ECHO, str(port))
        thread.join()
    assert ran.stdout.decode().split() == ["refused", "1000", "100.64.0.1", str(port)]


def test_shells_nest(permitted, site):
    folder, port = site
    (folder / "file").write_bytes(b"through two links")
    inner = [sys.executable, "-m", "emulator", "shell", "--trace", "umts", "--delay-ms", "1", "--"]
    fetch = [sys.executable, "-c", FETCH, f"http://100.64.0.1:{port}/file"]
    ran = shell("--trace", "lte", "--delay-ms", "1", "--", *inner, *fetch)
    assert ran.stdout == b"through two links"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_shell(permitted, number):
    command = [
        sys.executable,
        "-m",
        "emulator",
        "shell",
        "--trace",
        "lte",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.stdout.read() == b""  # ends when the last process that holds the pipe has ended
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)


def test_an_unknown_congestion_control_takes_one_line(permitted):
    ran = shell("--trace", "lte", "--congestion", "quick", "--", "true")
    assert ran.returncode == 1
    assert ran.stderr.decode().startswith("emulator: TCP congestion control 'quick'; this kernel has ")
    assert ran.stderr.count(b"\n") == 1


def test_what_is_missing_is_named_without_privileges():
    """As a user without any capability: either it works, or one line says what would help."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give privileges up")
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    reads = [*drop, sys.executable, "-c", "import numpy, emulator"]
    if subprocess.run(reads, capture_output=True, check=False).returncode != 0:
        pytest.skip("an unprivileged user cannot run this Python with its packages")
    ran = subprocess.run(
        [*drop, sys.executable, "-m", "emulator", "shell", "--trace", "lte", "--", "true"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    if ran.returncode != 0:
        assert ran.stderr.startswith(b"emulator: ")
        assert ran.stderr.count(b"\n") == 1
        assert b"emulator proxy" in ran.stderr


@pytest.mark.parametrize("fields", [{"delay_ms": -1}, {"delay_ms": float("nan")}, {"uplink_log": "x"}, {"log": "x"}])
def test_a_wrong_description_is_refused(fields):
    with pytest.raises(RealTimeError):
        ShellConfig(trace=None, **fields)
