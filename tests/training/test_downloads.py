import hashlib
import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from steadymap.training.downloads import DownloadError, check_file, download

CONTENT = np.random.default_rng(0).bytes(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# Whole chunks: what arrived of another is lost.
HALF = 8 << 16


class Server:
    """A file on 127.0.0.1; `answers` are what the next requests get, the last one forever."""

    def __init__(self):
        self.requests, self.answers = [], [{}]
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                server.requests.append({"path": self.path, **dict(self.headers)})
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                server.answer(self, **answer)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(
        self,
        handler,
        *,
        content=CONTENT,
        status=None,
        ranges=True,
        tag='"one"',
        end=None,
        length=True,
        stall=0.0,
        location=None,
        wrong_range=False,
        headers=(),
    ):
        start, asked = 0, handler.headers.get("Range")
        if ranges and asked and handler.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if status is None:
            status = 200 if start == 0 else 206 if start < len(content) else 416
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        if location:
            handler.send_header("Location", location)
        if tag:
            handler.send_header("ETag", tag)
        body = content[start:] if status in (200, 206) else b""
        if status == 206:
            first = 0 if wrong_range else start
            handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if status == 416:
            handler.send_header("Content-Range", f"bytes */{len(content)}")
        if length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body if end is None else body[: max(0, end - start)])
        if stall:
            handler.wfile.flush()
            time.sleep(stall)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    """Download into a folder that does not exist yet; quick to try again."""

    def run(path="/file.pt", **options):
        options = {"sha256": SHA256, "backoff": 0.001, "attempts": 3, "timeout": 5.0} | options
        return download(server.address + path, tmp_path / "new" / "file.pt", **options)

    return run


def there(tmp_path):
    return sorted(path.name for path in (tmp_path / "new").iterdir())


class TestWhatArrives:
    def test_the_file_and_nothing_else(self, fetch, tmp_path, server):
        path = fetch()

        assert path.read_bytes() == CONTENT
        assert there(tmp_path) == ["file.pt"]
        assert server.requests[0]["Accept-Encoding"] == "identity"
        assert "Range" not in server.requests[0]

    def test_first_digits_of_a_hash_may_do(self, fetch):
        assert fetch(sha256=SHA256[:8].upper()).read_bytes() == CONTENT

    def test_without_a_length(self, fetch, server):
        server.answers = [{"length": False}]

        assert fetch().read_bytes() == CONTENT

    def test_through_redirections(self, fetch, server):
        server.answers = [
            {"status": 302, "location": "/other", "content": b""},
            {"status": 307, "location": f"{server.address}/third", "content": b""},
            {},
        ]

        assert fetch().read_bytes() == CONTENT
        assert [request["path"] for request in server.requests] == ["/file.pt", "/other", "/third"]

    def test_a_file_that_is_there_is_not_asked_for(self, fetch, server):
        fetch()

        fetch()

        assert len(server.requests) == 1

    def test_progress_is_told(self, fetch, monkeypatch, caplog):
        monkeypatch.setattr("steadymap.training.downloads._LOG_SECONDS", -1)
        with caplog.at_level(logging.INFO, "steadymap.training.downloads"):
            fetch()

        assert "file.pt: 1 of 1 MB" in caplog.text
        assert " left" in caplog.text


class TestResuming:
    def test_goes_on_where_the_server_broke_off(self, fetch, server, tmp_path):
        server.answers = [{"end": HALF}, {"end": HALF + (1 << 16)}, {}]

        assert fetch().read_bytes() == CONTENT

        assert [request.get("Range") for request in server.requests] == [
            None,
            f"bytes={HALF}-",
            f"bytes={HALF + (1 << 16)}-",
        ]
        assert server.requests[1]["If-Range"] == '"one"'
        assert there(tmp_path) == ["file.pt"]

    def test_the_next_run_goes_on_too(self, fetch, server, tmp_path):
        server.answers = [{"end": HALF}, {"status": 503}]
        with pytest.raises(
            DownloadError,
            match=rf"not downloaded in 3 tries \(status 503\); {HALF} bytes are kept and the next "
            rf"run .* place it at \S+/new/file.pt \(sha256 {SHA256}\)",
        ):
            fetch()
        assert there(tmp_path) == ["file.pt.part", "file.pt.part.json"]

        server.answers, server.requests = [{}], []
        assert fetch().read_bytes() == CONTENT
        assert server.requests[0]["Range"] == f"bytes={HALF}-"

    def test_after_a_stall(self, fetch, server):
        server.answers = [{"end": HALF, "stall": 1.0}, {}]

        assert fetch(timeout=0.2).read_bytes() == CONTENT
        assert server.requests[1]["Range"] == f"bytes={HALF}-"

    def test_a_server_without_ranges_sends_all_again(self, fetch, server):
        server.answers = [{"end": HALF, "ranges": False}, {"ranges": False}]

        assert fetch().read_bytes() == CONTENT

    def test_another_content_by_now_is_taken_from_the_start(self, fetch, server):
        server.answers = [{"content": CONTENT[::-1], "end": HALF, "tag": '"old"'}, {}]

        assert fetch().read_bytes() == CONTENT
        assert server.requests[1]["If-Range"] == '"old"'

    def test_parts_that_do_not_fit_are_taken_from_the_start_once(self, fetch, server):
        """A server without validators, whose content changed in between."""
        server.answers = [{"content": CONTENT[::-1], "end": HALF, "tag": None}, {"tag": None}]

        assert fetch().read_bytes() == CONTENT
        assert [request.get("Range") for request in server.requests] == [
            None,
            f"bytes={HALF}-",
            None,
        ]
        assert "If-Range" not in server.requests[1]

    def test_another_range_than_asked_for(self, fetch, server):
        server.answers = [{"end": HALF}, {"wrong_range": True}, {}]

        assert fetch().read_bytes() == CONTENT

    def test_a_part_of_another_address_is_not_used(self, fetch, server):
        server.answers = [{"content": b"x" * 100, "end": 50}, {"status": 404}]
        with pytest.raises(DownloadError, match="404"):
            fetch("/other.pt")

        server.answers, server.requests = [{}], []
        assert fetch().read_bytes() == CONTENT
        assert "Range" not in server.requests[0]

    @pytest.mark.parametrize("extra", [0, 10])
    def test_a_part_that_is_all_or_too_much(self, fetch, server, tmp_path, extra):
        """Killed between the last byte and the new name; or of a longer file."""
        folder = tmp_path / "new"
        folder.mkdir()
        (folder / "file.pt.part").write_bytes(CONTENT + b"y" * extra)
        note = {"url": f"{server.address}/file.pt", "validator": '"one"'}
        (folder / "file.pt.part.json").write_text(json.dumps(note))

        assert fetch().read_bytes() == CONTENT
        assert len(server.requests) == (2 if extra else 1)

    def test_a_damaged_note_is_no_part(self, fetch, server, tmp_path):
        folder = tmp_path / "new"
        folder.mkdir()
        (folder / "file.pt.part").write_bytes(b"y" * 10)
        (folder / "file.pt.part.json").write_text("[")

        assert fetch().read_bytes() == CONTENT


class TestRefusals:
    def test_wrong_bytes(self, fetch, server, tmp_path):
        server.answers = [{"content": b"other"}]
        found = hashlib.sha256(b"other").hexdigest()[:16]

        with pytest.raises(
            ValueError, match=rf"file.pt: what came has sha256 {found}…, not the {SHA256[:16]}… wan"
        ):
            fetch()

        assert there(tmp_path) == []
        assert len(server.requests) == 1

    def test_wrong_bytes_in_parts_end_too(self, fetch, server, tmp_path):
        other = CONTENT[::-1]
        half = {"content": other, "end": HALF}
        server.answers = [half, {"content": other}, half, {"content": other}]

        with pytest.raises(ValueError, match="nothing was kept: correct the address or the sha256"):
            fetch()

        assert there(tmp_path) == []
        assert len(server.requests) == 4

    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    def test_final_answers_are_not_asked_for_again(self, fetch, server, tmp_path, status):
        server.answers = [{"status": status}]

        with pytest.raises(
            DownloadError, match=rf"the server says {status} .*; correct the address, or place the"
        ):
            fetch()

        assert len(server.requests) == 1
        assert there(tmp_path) == []

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_passing_answers_are_asked_for_again(self, fetch, server, status):
        server.answers = [{"status": status, "headers": [("Retry-After", "0")]}, {}]

        assert fetch().read_bytes() == CONTENT
        assert len(server.requests) == 2

    def test_a_server_that_always_stalls(self, fetch, server, tmp_path):
        server.answers = [{"end": 0, "stall": 0.4}]

        with pytest.raises(DownloadError, match=r"in 2 tries \(no answer in time\)\. Where there"):
            fetch(timeout=0.1, attempts=2)

        assert there(tmp_path) == []

    def test_a_server_that_always_breaks_off_at_the_start(self, fetch, server):
        server.answers = [{"end": 0}]

        with pytest.raises(DownloadError, match=r"in 3 tries \(the server broke off\)"):
            fetch()

        assert len(server.requests) == 3

    def test_redirections_without_end(self, fetch, server):
        server.answers = [{"status": 302, "location": "/file.pt", "content": b""}]

        with pytest.raises(DownloadError, match=r"Exceeded 30 redirects\.; correct the address"):
            fetch()

    def test_nobody_listens(self, tmp_path, server):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/file.pt"

        with pytest.raises(
            DownloadError,
            match=r"\(connection refused\)\. Where there is no network, or a proxy that "
            r"HTTPS_PROXY does not name, download it elsewhere and place it at \S+file.pt "
            rf"\(sha256 {SHA256}\)",
        ):
            download(url, tmp_path / "file.pt", sha256=SHA256, attempts=2, backoff=0.001)

        assert list(tmp_path.iterdir()) == []

    def test_a_host_that_is_not_known(self, tmp_path, server, monkeypatch):
        def unknown(*_, **__):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)

        with pytest.raises(DownloadError, match=r"\(the host's name is not known here\)"):
            download(
                "http://weights.example/w.pt",
                tmp_path / "w.pt",
                sha256=SHA256,
                attempts=1,
            )

    def test_more_than_allowed(self, fetch, server, tmp_path):
        for answer in ({}, {"length": False}):
            server.answers = [answer]
            with pytest.raises(DownloadError, match=r"bytes or more, and max_bytes is 1000"):
                fetch(max_bytes=1000)
            assert there(tmp_path) == []

    def test_a_compressed_answer(self, fetch, server):
        server.answers = [{"headers": [("Content-Encoding", "gzip")]}]

        with pytest.raises(DownloadError, match="sends the file compressed; place it at"):
            fetch()

    def test_no_room(self, fetch, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))

        with pytest.raises(
            DownloadError, match=r"1000003 bytes to come and 10 free at .*make room"
        ):
            fetch()

    def test_what_was_placed_by_hand_is_checked_and_kept(self, fetch, tmp_path, server):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file.pt").write_bytes(b"other")

        with pytest.raises(
            ValueError, match=r"file.pt: sha256 \S+… is not the .*; delete the file"
        ):
            fetch()

        assert (tmp_path / "new" / "file.pt").read_bytes() == b"other"
        assert server.requests == []

    def test_what_is_no_address_or_no_hash(self, tmp_path):
        with pytest.raises(ValueError, match="file:///etc/passwd: no http or https address"):
            download("file:///etc/passwd", tmp_path / "a", sha256=SHA256)
        with pytest.raises(ValueError, match="sha256 'abc': write its 64 hex digits"):
            download("http://a.example/b", tmp_path / "a", sha256="abc")

    def test_two_at_a_time(self, fetch, server, tmp_path):
        server.answers = [{"end": HALF, "stall": 1.0}, {}]
        first = threading.Thread(target=fetch)
        first.start()
        while not server.requests:
            time.sleep(0.01)

        with pytest.raises(DownloadError, match="another process is downloading it; wait until"):
            fetch()
        first.join()

        assert (tmp_path / "new" / "file.pt").read_bytes() == CONTENT


def test_the_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", server.address)

    path = download("http://weights.example/w.pt", tmp_path / "w.pt", sha256=SHA256)

    assert path.read_bytes() == CONTENT
    assert server.requests[0]["path"] == "http://weights.example/w.pt"


def test_check_file(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)

    assert check_file(tmp_path / "a", sha256=SHA256) == tmp_path / "a"
    with pytest.raises(ValueError, match=f"a: sha256 {SHA256[:16]}… is not the 0000"):
        check_file(tmp_path / "a", sha256="0" * 64)
