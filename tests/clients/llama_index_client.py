"""Tests LlamaIndex's client of text-embeddings-inference, through a proxy from the loopback to the socket.

The client creates its own httpx.Client and does not accept a transport. It does not check the status (`base.py`,
`_call_api`): it posts `{"inputs": […], "truncate": …}` to `/embed` and treats any JSON response as vectors. So an error
response, which is an object instead of a list, makes it fail.
"""

import contextlib
import socket
import socketserver
import threading
from importlib.metadata import version

from expected import MODEL, SOCKET, TEXTS, VECTORS, done, refused, same
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference


class ToSocket(socketserver.BaseRequestHandler):
    """Forwards a loopback connection to the daemon's socket and back."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
            daemon.connect(SOCKET)
            there = threading.Thread(target=carry, args=(self.request, daemon))
            there.start()
            carry(daemon, self.request)
            there.join()


def carry(source: socket.socket, sink: socket.socket) -> None:
    # Either side may close the connection first.
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)


class Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True


with Proxy(("127.0.0.1", 0), ToSocket) as proxy:
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{proxy.server_address[1]}"
    client = TextEmbeddingsInference(model_name=MODEL, base_url=url, embed_batch_size=32, timeout=600)
    same(client.get_text_embedding_batch(TEXTS))
    same([client.get_text_embedding(TEXTS[0])], VECTORS[:1])
    same([client.get_query_embedding(TEXTS[0])], VECTORS[:1])
    whole = TextEmbeddingsInference(model_name=MODEL, base_url=url, truncate_text=False)
    with refused(KeyError, "0"):
        whole.get_text_embedding("word " * 1000)
    proxy.shutdown()
package = "llama-index-embeddings-text-embeddings-inference"
done(package, version(package), f"{len(TEXTS)} texts; an error response raises KeyError")
