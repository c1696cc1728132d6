import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from kfrtrl_jax.errors import DataError
from kfrtrl_jax.tasks import download

NAME = "ptb.test.txt"
CONTENT = b" no it was n't black monday \n" * 1000
CHECKSUMS = {NAME: hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def server(monkeypatch):
    """A server on this machine: (address, the answers by path, the paths asked for)."""
    answers: dict[str, bytes | str] = {f"/{NAME}": CONTENT}
    asked: list[str] = []
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = answers.get(self.path)
            if answer is None:
                self.send_error(404)
                return
            if answer == "silent":
                done.wait()
                return
            self.send_response(200)
            cut = answer == "cut"
            self.send_header("Content-Length", str(len(CONTENT) if cut else len(answer)))
            self.end_headers()
            self.wfile.write(CONTENT[:100] if cut else answer)

        def log_message(self, *args):
            pass

    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/", answers, asked
        done.set()
        running.shutdown()
        thread.join()


def fetch(folder, server, **kwargs):
    return download.fetch(folder, NAME, url=server[0], checksums=CHECKSUMS, **kwargs)


def refused(folder, server, **kwargs):
    with pytest.raises(DataError) as error:
        fetch(folder, server, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_file_is_fetched_once(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert fetch(folder, server)
    assert (folder / NAME).read_bytes() == CONTENT
    assert not fetch(folder, server)
    assert not fetch(folder, server, force=True)
    assert server[2] == [f"/{NAME}"]
    assert os.listdir(folder) == [NAME]


def test_an_endless_answer_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_LARGEST", 1000)
    assert "is not the file: it has more than 1000 bytes" in refused(tmp_path, server)
    assert os.listdir(tmp_path) == []


def test_address_needs_no_slash_at_its_end(server, tmp_path):
    assert fetch(tmp_path, (server[0].rstrip("/"),))


def test_corrupt_answer_is_not_written(server, tmp_path):
    server[1][f"/{NAME}"] = CONTENT[:-1] + b"!"
    message = refused(tmp_path / "new", server)
    assert CHECKSUMS[NAME] in message
    assert server[0] + NAME in message
    assert os.listdir(tmp_path) == []


def test_wrong_file_is_kept_unless_forced(server, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(CONTENT[:-1])
    message = refused(tmp_path, server)
    assert str(path) in message
    assert "--force" in message
    assert path.read_bytes() == CONTENT[:-1]
    assert server[2] == []
    assert fetch(tmp_path, server, force=True)
    assert path.read_bytes() == CONTENT


def test_forced_fetch_that_fails_keeps_the_file(server, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(b"mine")
    server[1][f"/{NAME}"] = b"corrupt"
    refused(tmp_path, server, force=True)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("answer", "timeout", "said"),
    [(None, 30.0, "404"), ("cut", 30.0, "Incomplete"), ("silent", 0.1, "timed out")],
)
def test_failing_server_is_one_clear_line(server, tmp_path, answer, timeout, said):
    server[1][f"/{NAME}"] = answer
    message = refused(tmp_path, server, timeout=timeout)
    assert message.startswith(f"{server[0]}{NAME} cannot be fetched: ")
    assert said in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "nonsense", "http://[/"])
def test_address_that_does_not_answer_is_one_clear_line(server, tmp_path, url):
    assert "cannot be fetched" in refused(tmp_path, (url,))


def test_write_that_fails_leaves_nothing_behind(server, tmp_path, monkeypatch):
    def no_replace(*args):
        raise OSError(28, "No space left on device")

    path = tmp_path / NAME
    path.write_bytes(b"mine")
    monkeypatch.setattr(os, "replace", no_replace)
    assert "No space left on device" in refused(tmp_path, server, force=True)
    assert os.listdir(tmp_path) == [NAME]
    assert path.read_bytes() == b"mine"


def test_folder_that_is_a_file_is_refused(server, tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", server)


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.data", *arguments],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_program_reports_every_file_that_it_could_not_fetch(server, tmp_path):
    result = program(f"--out={tmp_path}", f"--url={server[0]}")
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3
    assert "404" in lines[0]
    assert "ptb.test.txt has the wrong content" in lines[2]
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(
    not os.environ.get("KFRTRL_DATA_DIR"),
    reason="KFRTRL_DATA_DIR does not name the folder of ptb.train.txt",
)
def test_program_fetches_the_penn_treebank(server, tmp_path):
    source = pathlib.Path(os.environ["KFRTRL_DATA_DIR"])
    for name in download.PENN_TREEBANK_SHA256:
        server[1][f"/{name}"] = (source / name).read_bytes()
    there = tmp_path / "ptb.valid.txt"
    there.write_bytes(server[1].pop("/ptb.valid.txt"))
    result = program(f"--out={tmp_path}", f"--url={server[0]}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "ptb.train.txt: fetched",
        "ptb.valid.txt: already there",
        "ptb.test.txt: fetched",
    ]
    for name in download.PENN_TREEBANK_SHA256:
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
