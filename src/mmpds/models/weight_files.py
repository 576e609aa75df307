"""State dicts out of files that others wrote: fetched from trusted places, checked, nothing in them executed.

What goes wrong on the way becomes a `PretrainedError`, which names the file and the cure.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import logging
import pickle
import tempfile
import types
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.serialization import SourceChangeWarning

log = logging.getLogger(__name__)

# GitHub sends a release's download on to its storage; an address must start with one of these, redirects too.
TRUSTED = (
    "https://github.com/mlmed/torchxrayvision/",
    "https://objects.githubusercontent.com/",
    "https://release-assets.githubusercontent.com/",
)

_CONTAINERS = dict.fromkeys(("_DenseBlock", "_DenseLayer", "_Transition"), nn.Sequential) | {"DenseNet": nn.Module}
_HARMLESS = {
    "collections.OrderedDict", "builtins.set", "__builtin__.set", "torch.FloatStorage", "torch.LongStorage",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch.nn.backends.thnn._get_thnn_function_backend", "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d", "torch.nn.modules.linear.Linear", "torch.nn.modules.pooling.AvgPool2d",
    "torch.nn.modules.pooling.MaxPool2d", "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct",
    "_codecs.encode",
}  # fmt: skip


class PretrainedError(RuntimeError):
    """Pretrained weights cannot be had or do not fit; the text names them, their place and the cure."""


@contextmanager
def refusal(what: str, cure: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file or a network into one error with its cure."""
    try:
        yield
    except PretrainedError:
        raise
    except (
        OSError, http.client.HTTPException, pickle.UnpicklingError, SafetensorError,
        RuntimeError, ValueError, AttributeError, KeyError, TypeError, EOFError,
    ) as error:  # fmt: skip
        raise PretrainedError(f"{what}: {error}; {cure}") from error


def read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """State dict, on the CPU, of a .safetensors or of what torch saved, and the findings of its classifier's rows.

    The findings are empty where the file does not name them. Errors are those of the file's format: the caller
    knows what the file is for and names the cure with `refusal`.
    """
    if path.suffix == ".safetensors":
        state, meta = _read_safetensors(path)
        return state, json.loads(meta.get("pathologies", "[]"))
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return loaded.get("state_dict", loaded), list(loaded.get("hyper_parameters", {}).get("findings", ()))


def imagenet(folder: Path) -> Mapping[str, Tensor]:
    """State dict of torchvision's DenseNet-121, downloaded into `folder` once.

    Raises:
        PretrainedError: it cannot be had or is damaged.
    """
    from torchvision.models import DenseNet121_Weights

    source = DenseNet121_Weights.IMAGENET1K_V1
    path = folder / source.url.rsplit("/", 1)[-1]
    with refusal("cannot load weights='imagenet'", _fetch_by_hand(source.url, path)):
        state: Mapping[str, Tensor] = source.get_state_dict(
            progress=False, check_hash=True, model_dir=str(folder), map_location="cpu", weights_only=True
        )
    return state


def torchxrayvision(name: str, folder: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """State dict of torchxrayvision's DenseNet-121 `name`, and the findings of its classifier's rows ("" = untrained).

    The published pickle is downloaded into `folder` and converted to safetensors once. Its hash must be `sha256`;
    without one the first file is trusted, its hash recorded beside it and demanded ever after.

    Raises:
        PretrainedError: the file cannot be had or is not the expected one.
    """
    converted = folder / f"{name}.safetensors"
    with refusal(f"cannot load weights={name!r}", f"delete {converted} to have it made anew"):
        if not converted.exists():
            _convert(name, converted, sha256)
        state, meta = _read_safetensors(converted)
        if sha256 and meta.get("sha256") != sha256.lower():
            raise PretrainedError(
                f"weights={name!r}: {converted} stems from a file of SHA-256 {meta.get('sha256')}, not "
                f"{sha256}: delete it and {name}.pt beside it, or correct sha256"
            )
        return state, json.loads(meta["pathologies"])


def _fetch_by_hand(url: str, path: Path) -> str:
    return f"without a network, download {url} on another machine and put it at {path}"


def _convert(name: str, converted: Path, sha256: str | None) -> None:
    url, pathologies = _published(name)
    folder, original = converted.parent, converted.with_suffix(".pt")
    with refusal(f"cannot load weights={name!r} from {url}", _fetch_by_hand(url, original)):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one rank of a node fetches, the others find its file
            if converted.exists():
                return
            if not original.exists():
                with _replacing(original) as file:
                    _download(url, file)
                    file.flush()
                    _check(Path(file.name), original, sha256)
            digest = _check(original, original, sha256)
            state = {
                key: value.contiguous()
                for key, value in _unpickle(original).state_dict().items()
                if key.startswith(("features.", "classifier."))
            }
            with _replacing(converted) as file:
                meta = {"url": url, "sha256": digest, "pathologies": json.dumps(pathologies)}
                save_file(state, file.name, meta)


def _published(name: str) -> tuple[str, list[str]]:
    """Address and labels from torchxrayvision's table; its import silences all warnings, which is undone."""
    with warnings.catch_warnings():
        from torchxrayvision.models import model_urls

    return model_urls[name]["weights_url"], model_urls[name]["labels"]


class _TrustedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _demand_trusted(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _demand_trusted(url: str) -> None:
    if not url.startswith(TRUSTED):
        raise urllib.error.URLError(f"refuses to download from {url}: not one of {', '.join(TRUSTED)}")


def _download(url: str, file: IO[bytes]) -> None:
    _demand_trusted(url)
    log.info("downloading %s", url)
    with urllib.request.build_opener(_TrustedRedirects).open(url, timeout=60) as response:
        while block := response.read(1 << 20):
            file.write(block)
        expected = response.headers.get("Content-Length")
    if expected is not None and file.tell() != int(expected):  # http.client does not notice a cut line itself
        raise urllib.error.URLError(f"the connection ended after {file.tell()} of {expected} bytes")


def _check(path: Path, name: Path, sha256: str | None) -> str:
    """SHA-256 of `path`: equal to the expected and the recorded one, or recorded for `name` as the first."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = name.with_name(f"{name.name}.sha256")
    recorded = record.read_text().split()[0] if record.exists() else None
    for origin, expected in (("sha256=", sha256 and sha256.lower()), (f"recorded in {record}", recorded)):
        if expected and expected != digest:
            raise PretrainedError(
                f"{name} has SHA-256 {digest}, expected {expected} ({origin}): the file was damaged or "
                f"replaced. Fetch it again; if you trust the new one, delete {record}"
            )
    if recorded is None:
        with _replacing(record) as file:
            file.write(f"{digest}  {name.name}\n".encode())
    return digest


class _LayersOnly(pickle.Unpickler):
    """Unpickles a DenseNet and nothing else.

    The published files are whole models in torch's format of before 1.6, which `weights_only=True` cannot
    read. Their own classes are replaced by torch's containers: only the tensors are wanted.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torchxrayvision.models" and name in _CONTAINERS:
            return _CONTAINERS[name]
        if f"{module}.{name}" in _HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refuses {module}.{name}: no part of a DenseNet")


def _unpickle(path: Path) -> nn.Module:
    layers_only = types.SimpleNamespace(
        __name__="layers_only",
        Unpickler=_LayersOnly,
        load=lambda file, **kwargs: _LayersOnly(file, **kwargs).load(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SourceChangeWarning)  # the layers' code is newer than the file
        model = torch.load(path, map_location="cpu", weights_only=False, pickle_module=layers_only)
    if not isinstance(model, nn.Module):
        raise PretrainedError(f"{path} holds a {type(model).__name__}, not a model")
    return model


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path` that takes its place when the block ends well."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            yield file
            file.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
