"""Forwards TCP connections on the loopback to the daemon's socket, for clients that cannot connect to a Unix socket."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def tcp_proxy(path: str) -> Iterator[str]:
    """Yields the URL of a proxy to the socket `path`. Stops the proxy when the block ends."""

    class Forwarder(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
                daemon.connect(path)
                there = threading.Thread(target=forward, args=(self.request, daemon))
                there.start()
                forward(daemon, self.request)
                there.join()

    class Proxy(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

    with Proxy(("127.0.0.1", 0), Forwarder) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()


def forward(source: socket.socket, sink: socket.socket) -> None:
    """Copies bytes until either side closes the connection, and then ends the other direction."""
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)
