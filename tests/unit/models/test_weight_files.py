"""Nothing untrusted is loaded: downloads, hashes, pickles."""

import hashlib
import http.server
import os
import pickle
import threading
import warnings
from collections import OrderedDict

import pytest
import torch

from mmpds.models import weight_files
from mmpds.models.pretrained import TORCHXRAYVISION
from mmpds.models.weight_files import PretrainedError, torchxrayvision

NAME = "densenet121-res224-nih"
LABELS = ["Atelectasis", "", "Pleural_Thickening", "Pneumonia"]


@pytest.fixture(scope="module")
def xray():
    with warnings.catch_warnings():
        from torchxrayvision.models import DenseNet
    torch.manual_seed(0)
    return DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=8, num_classes=len(LABELS)).eval()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine in the place of GitHub: its folder, the paths asked for, its address."""
    folder, asked = tmp_path / "server", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def do_GET(self):
            asked.append(self.path)
            if self.path == "/moved.pt":
                self.send_response(302)
                self.send_header("Location", "http://elsewhere.invalid/weights.pt")
                self.end_headers()
            elif self.path == "/cut.pt":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{httpd.server_port}/"
        monkeypatch.setattr(weight_files, "TRUSTED", (address,))
        monkeypatch.setattr(weight_files, "_published", lambda _: (f"{address}weights.pt", LABELS))
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        yield folder, asked, address
        httpd.shutdown()


@pytest.mark.parametrize("zipfile", [True, False], ids=["torch>=1.6", "torch<1.6"])
def test_torchxrayvision_weights_are_fetched_and_converted_once(xray, server, tmp_path, zipfile):
    folder, asked, _ = server
    torch.save(xray, folder / "weights.pt", _use_new_zipfile_serialization=zipfile)
    filters = list(warnings.filters)
    state, findings = torchxrayvision(NAME, tmp_path / "cache")
    assert warnings.filters == filters
    assert findings == LABELS
    expected = xray.state_dict()
    assert state.keys() == {key for key in expected if key.startswith(("features.", "classifier."))}
    assert all(torch.equal(value, expected[key]) for key, value in state.items())

    (tmp_path / "cache" / f"{NAME}.pt").unlink()  # only the safetensors is read from now on
    again, findings = torchxrayvision(NAME, tmp_path / "cache")
    assert findings == LABELS
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert asked == ["/weights.pt"]


def test_a_changed_file_is_refused_and_leaves_nothing(xray, server, tmp_path):
    folder, _, _ = server
    cache = tmp_path / "cache"
    torch.save(xray, folder / "weights.pt")
    good = hashlib.sha256((folder / "weights.pt").read_bytes()).hexdigest()
    torchxrayvision(NAME, cache, good.upper())
    with pytest.raises(PretrainedError, match="stems from a file of SHA-256"):
        torchxrayvision(NAME, cache, "0" * 64)

    (cache / f"{NAME}.safetensors").unlink()
    (cache / f"{NAME}.pt").unlink()
    (folder / "weights.pt").write_bytes(b"something else")
    with pytest.raises(PretrainedError, match="damaged or replaced"):
        torchxrayvision(NAME, cache)
    assert {path.name for path in cache.iterdir()} == {f".{NAME}.lock", f"{NAME}.pt.sha256"}


def test_wrong_expected_hash_stops_the_first_download(xray, server, tmp_path):
    torch.save(xray, server[0] / "weights.pt")
    with pytest.raises(PretrainedError, match=f"expected {'0' * 64}"):
        torchxrayvision(NAME, tmp_path / "cache", "0" * 64)
    assert not list((tmp_path / "cache").glob("*.pt*"))


class Bomb:
    def __reduce__(self):
        return os.system, ("false",)


def test_nothing_but_layers_is_unpickled(server, tmp_path):
    with (server[0] / "weights.pt").open("wb") as file:
        torch.save(OrderedDict(weight=Bomb()), file)
    with pytest.raises(PretrainedError, match=r"refuses posix\.system"):
        torchxrayvision(NAME, tmp_path / "cache")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r"refuses posix\.system"):
        weight_files._unpickle(tmp_path / "plain.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        weight_files.read(tmp_path / "plain.pt")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("moved.pt", "refuses to download from http://elsewhere"),
        ("cut.pt", "4 of 1000 bytes"),
        ("none.pt", "404"),
    ],
)
def test_a_failed_download_says_what_to_do(server, tmp_path, monkeypatch, path, reason):
    monkeypatch.setattr(weight_files, "_published", lambda _: (f"{server[2]}{path}", LABELS))
    cache = tmp_path / "cache"
    with pytest.raises(PretrainedError, match=reason) as caught:
        torchxrayvision(NAME, cache)
    assert f"download {server[2]}{path} on another machine and put it at {cache / f'{NAME}.pt'}" in str(caught.value)
    assert [item.name for item in cache.iterdir()] == [f".{NAME}.lock"]


@pytest.mark.parametrize("url", ["http://github.com/mlmed/torchxrayvision/w.pt", "https://github.com.evil.org/w.pt"])
def test_only_https_and_known_hosts(tmp_path, monkeypatch, url):
    monkeypatch.setattr(weight_files, "_published", lambda _: (url, LABELS))
    with pytest.raises(PretrainedError, match="refuses to download"):
        torchxrayvision(NAME, tmp_path)


def test_published_table_is_trusted_and_warnings_survive():
    filters = list(warnings.filters)
    for name in TORCHXRAYVISION:
        url, labels = weight_files._published(name)
        assert url.startswith(weight_files.TRUSTED)
        assert "Pneumonia" in labels
    assert warnings.filters == filters


def test_file_put_by_hand_needs_no_network(xray, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "_published", lambda _: ("https://nowhere.invalid/w.pt", LABELS))
    torch.save(xray, tmp_path / f"{NAME}.pt")
    assert torchxrayvision(NAME, tmp_path)[1] == LABELS
