import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pooch
import pytest

from steadymap.training import downloads
from steadymap.training.downloads import DownloadError, check_file, download

CONTENT = np.random.default_rng(0).bytes(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A file on 127.0.0.1; `answers` are what the next requests get, the last one forever."""

    def __init__(self):
        self.paths, self.answers = [], [{}]
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                server.paths.append(self.path)
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                server.answer(self, **answer)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler, *, content=CONTENT, status=200, end=None, length=True, location=None):
        handler.send_response(status)
        if location:
            handler.send_header("Location", location)
        body = content if status == 200 else b""
        if length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:end])


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda _: None))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    """Download into a folder that does not exist yet."""

    def run(path="/file.pt", sha256=SHA256):
        return download(server.address + path, tmp_path / "new" / "file.pt", sha256=sha256)

    return run


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "new").iterdir())


class TestWhatArrives:
    @pytest.mark.parametrize("length", [True, False])
    def test_the_file_and_nothing_else(self, fetch, tmp_path, server, length):
        server.answers = [{"length": length}]

        assert fetch().read_bytes() == CONTENT
        assert names(tmp_path) == ["file.pt"]
        assert server.paths == ["/file.pt"]

    def test_first_digits_of_a_hash_may_do(self, fetch):
        assert fetch(sha256=SHA256[:8].upper()).read_bytes() == CONTENT

    def test_through_redirections(self, fetch, server):
        server.answers = [
            {"status": 302, "location": "/other"},
            {"status": 307, "location": f"{server.address}/third"},
            {},
        ]

        assert fetch().read_bytes() == CONTENT
        assert server.paths == ["/file.pt", "/other", "/third"]

    def test_a_file_that_is_there_is_not_asked_for(self, fetch, server):
        fetch()

        fetch()

        assert len(server.paths) == 1

    @pytest.mark.parametrize("failure", [{"status": 503}, {"status": 429}, {"end": 1000}], ids=str)
    def test_failures_are_retried(self, fetch, server, tmp_path, failure):
        server.answers = [failure, failure, {}]

        assert fetch().read_bytes() == CONTENT
        assert len(server.paths) == 3
        assert names(tmp_path) == ["file.pt"]

    def test_a_bar_is_drawn_in_a_terminal_alone(self, fetch, monkeypatch, capsys):
        terminal = SimpleNamespace(isatty=lambda: True)
        monkeypatch.setattr(downloads, "sys", SimpleNamespace(stderr=terminal))
        path = fetch()
        assert "100%" in capsys.readouterr().err

        path.unlink()
        monkeypatch.undo()
        fetch()
        assert "%" not in capsys.readouterr().err


class TestRefusals:
    def test_wrong_bytes(self, fetch, server, tmp_path):
        server.answers = [{"content": b"other"}]
        actual = hashlib.sha256(b"other").hexdigest()[:16]

        with pytest.raises(
            ValueError, match=rf"file.pt: what came has sha256 {actual}…, not the {SHA256[:16]}… w"
        ):
            fetch()

        assert names(tmp_path) == []
        assert len(server.paths) == 1

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            ({"status": 404}, "the server says 404 Not Found"),
            ({"status": 503}, "the server says 503 Service Unavailable"),
            ({"end": 1000}, "IncompleteRead"),
            ({"status": 302, "location": "/file.pt"}, "Exceeded 30 redirects"),
        ],
    )
    def test_failures_that_stay_name_reason_and_remedy(
        self, fetch, server, tmp_path, answer, reason
    ):
        server.answers = [answer]

        with pytest.raises(
            DownloadError,
            match=rf"file.pt: not downloaded \(.*{reason}.*\); correct the address, .* place it at "
            rf"\S+/new/file.pt \(sha256 {SHA256}\)$",
        ):
            fetch()

        assert names(tmp_path) == []

    def test_nobody_listens(self, tmp_path, server):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/file.pt"

        with pytest.raises(
            DownloadError, match=r"\(.*Connection refused\); .*HTTPS_PROXY .*place it at \S+file.pt"
        ):
            download(url, tmp_path / "file.pt", sha256=SHA256)

        assert list(tmp_path.iterdir()) == []

    def test_a_host_that_is_not_known(self, tmp_path, server, monkeypatch):
        def unknown(*_, **__):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)

        with pytest.raises(DownloadError, match=r"Name or service not known.*place it at"):
            download("http://weights.example/w.pt", tmp_path / "w.pt", sha256=SHA256)

    def test_what_was_placed_by_hand_is_checked_and_kept(self, fetch, tmp_path, server):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file.pt").write_bytes(b"other")

        with pytest.raises(
            ValueError, match=r"file.pt: sha256 \S+… is not the .*; delete the file"
        ):
            fetch()

        assert (tmp_path / "new" / "file.pt").read_bytes() == b"other"
        assert server.paths == []

    def test_what_is_no_address_or_no_hash(self, tmp_path):
        with pytest.raises(ValueError, match="file:///etc/passwd: no http or https address"):
            download("file:///etc/passwd", tmp_path / "a", sha256=SHA256)
        with pytest.raises(ValueError, match="sha256 'abc': write its 64 hex digits"):
            download("http://a.example/b", tmp_path / "a", sha256="abc")


def test_the_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", server.address)

    path = download("http://weights.example/w.pt", tmp_path / "w.pt", sha256=SHA256)

    assert path.read_bytes() == CONTENT
    assert server.paths == ["http://weights.example/w.pt"]


def test_check_file(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)

    assert check_file(tmp_path / "a", sha256=SHA256) == tmp_path / "a"
    with pytest.raises(ValueError, match=f"a: sha256 {SHA256[:16]}… is not the 0000"):
        check_file(tmp_path / "a", sha256="0" * 64)
