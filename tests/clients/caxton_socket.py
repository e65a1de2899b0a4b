"""HTTP over the Unix socket with only Python's standard library. Its vectors are the expected ones for all clients."""

import base64
import http.client
import json
import pathlib
import socket
import struct


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: pathlib.Path):
        super().__init__("localhost", timeout=600)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def vectors(path: pathlib.Path, texts: list[str], model: str) -> list[list[float]]:
    """Returns the vectors of `texts`, bit for bit."""
    body = {"model": model, "input": texts, "encoding_format": "base64"}
    connection = UnixConnection(path)
    connection.request("POST", "/v1/embeddings", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    packed = [base64.b64decode(item["embedding"]) for item in answer["data"]]
    return [list(struct.unpack(f"<{len(bytes_) // 4}f", bytes_)) for bytes_ in packed]
