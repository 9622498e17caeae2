"""Small archives in the layout of the IMDb data set, and a local server with bad habits."""

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def write_archive(
    path: Path, num_per_class: int = 4, extra: dict[str, bytes] | None = None
) -> Path:
    """A labelled archive, with `extra` members by name."""
    with tarfile.open(path, "w:gz") as tar:
        for part in ("train", "test"):
            for label, word in (("neg", "awful"), ("pos", "superb")):
                for i in range(num_per_class):
                    text = f"The {part} film number {i} is {word}, said éva."
                    _add(tar, f"aclImdb/{part}/{label}/{i}_{9 if label == 'pos' else 2}.txt", text)
        for name, content in (extra or {}).items():
            _add(tar, name, content)
    return path


def _add(tar: tarfile.TarFile, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class Server:
    """Serves bytes by path on the loopback; `cut` and `fail` say how often it goes wrong first."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut = 0
        self.headers: dict[str, str] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, with_body: bool) -> None:
                path = self.path.partition("?")[0]
                server.requests.append(path)
                content = server.files.get(path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("ETag", f'"{hash(path) & 0xFFFFFF:x}"')
                self.end_headers()
                if with_body and server.cut > 0:
                    server.cut -= 1
                    self.wfile.write(content[: len(content) // 2])
                elif with_body:
                    self.wfile.write(content)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
