"""Pretrained DenseNet-121 weights: the one place that fetches, checks and translates them.

Shapes: C = findings, F = features of the last layer (1024 for DenseNet-121).
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import logging
import pickle
import re
import tempfile
import types
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.serialization import SourceChangeWarning

log = logging.getLogger(__name__)

TORCHXRAYVISION = tuple(
    f"densenet121-res224-{data}" for data in ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")
)
"""Names of torchxrayvision's DenseNet-121 weights (Cohen et al., MIDL 2022)."""

# (scale, shift): scale * image + shift is what the weights were trained on.
XRAY_INPUT = (2048.0, -1024.0)  # torchxrayvision.datasets.normalize: [-1024, 1024]
IMAGENET_INPUT = (1 / 0.226, -0.449 / 0.226)  # mean and deviation of ImageNet, averaged over R, G and B
SCRATCH_INPUT = (4.0, -2.0)  # radiographs have a mean near 0.5 and a deviation near 0.25

# GitHub sends a release's download on to its storage; an address must start with one of these, redirects too.
TRUSTED = (
    "https://github.com/mlmed/torchxrayvision/",
    "https://objects.githubusercontent.com/",
    "https://release-assets.githubusercontent.com/",
)

_CONTAINERS = dict.fromkeys(("_DenseBlock", "_DenseLayer", "_Transition"), nn.Sequential)
_HARMLESS = """
    collections.OrderedDict builtins.set __builtin__.set torch.FloatStorage torch.LongStorage
    torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter
    torch.nn.backends.thnn._get_thnn_function_backend torch.nn.modules.activation.ReLU
    torch.nn.modules.batchnorm.BatchNorm2d torch.nn.modules.container.Sequential torch.nn.modules.conv.Conv2d
    torch.nn.modules.linear.Linear torch.nn.modules.pooling.AvgPool2d torch.nn.modules.pooling.MaxPool2d
    numpy.ndarray numpy.dtype numpy.core.multiarray._reconstruct _codecs.encode
"""


class PretrainedError(RuntimeError):
    """Pretrained weights cannot be had or do not fit; the text names them, their place and the cure."""


@dataclass(frozen=True)
class Pretrained:
    """Weights in the shape our models take, and the input that they expect.

    features: state dict for `torchvision.models.densenet121().features` whose conv0 takes one channel,
        float32; empty where training starts from scratch.
    rows: finding, in lower case with blanks → (weight float32 [F], bias float32 []), for those that the
        weights were trained on.
    scale, shift: the weights expect `scale * image + shift` for an image in [0, 1].
    """

    features: dict[str, Tensor]
    rows: dict[str, tuple[Tensor, Tensor]]
    scale: float
    shift: float

    def load_into(self, features: nn.Module, head: nn.Linear, findings: Sequence[str]) -> None:
        """Copy the weights into a body and a classifier [C, F], whose rows are the C `findings`.

        Names are compared without case and `_` equals a blank; rows of other findings stay as they are.

        Raises:
            PretrainedError: a tensor is missing, left over or of another shape.
        """
        known = [name for name in findings if _plain(name) in self.rows]
        try:
            if self.features:
                features.load_state_dict(self.features)
                fresh = [name for name in findings if name not in known]
                log.info("pretrained body; classifier rows loaded: %s; freshly initialised: %s", known, fresh)
            with torch.no_grad():
                for row, finding in enumerate(findings):
                    if finding in known:
                        weight, bias = self.rows[_plain(finding)]
                        head.weight[row].copy_(weight)
                        head.bias[row].copy_(bias)
        except RuntimeError as error:
            raise PretrainedError(f"the weights do not fit this network: {error}") from error


def densenet121(
    weights: str | None,
    *,
    cache_dir: str | Path | None = None,
    sha256: str | None = None,
) -> Pretrained:
    """Weights of a DenseNet-121 (Huang et al., CVPR 2017) for one-channel images.

    Args:
        weights: None or "none" (from scratch), "imagenet", a name in `TORCHXRAYVISION`, or a path: a
            checkpoint of ours, a .safetensors, or a state dict saved by torch.
        cache_dir: folder of downloads; default `<torch hub>/mmpds`.
        sha256: expected hash of torchxrayvision's file. Without one the first file is trusted, its hash
            recorded beside it and demanded ever after.

    Raises:
        PretrainedError: the weights cannot be had, are not the expected file or are no DenseNet.
    """
    folder = Path(cache_dir or Path(torch.hub.get_dir()) / "mmpds").expanduser()
    if weights is None or weights == "none":
        return Pretrained({}, {}, *SCRATCH_INPUT)
    if weights == "imagenet":
        return _translate(_imagenet(folder), (), weights)
    if weights in TORCHXRAYVISION:
        state, meta = _torchxrayvision(weights, folder, sha256)
        return _translate(state, json.loads(meta["pathologies"]), weights)
    if Path(weights).expanduser().is_file():
        return _local(Path(weights).expanduser())
    names = ", ".join(("none", "imagenet", *TORCHXRAYVISION))
    raise PretrainedError(f"weights={weights!r} is neither a file nor one of: {names}")


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _translate(state: Mapping[str, Any], names: Sequence[str], source: str) -> Pretrained:
    """Find body and classifier in a state dict; `names` label the rows of its classifier ("" = untrained)."""
    bodies = [key.removesuffix("conv0.weight") for key in state if key.endswith("features.conv0.weight")]
    if len(bodies) != 1:
        raise PretrainedError(
            f"{source} holds {len(bodies)} DenseNet bodies (keys ending in features.conv0.weight), not one: "
            "give the state dict of a DenseNet-121"
        )
    body, ours = bodies[0], bodies[0].endswith("backbone.features.")
    root = body.removesuffix("features.").removesuffix("backbone." if ours else "")
    # torchvision's published files still say `norm.1`, a name that modules may no longer have
    features = {
        re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key.removeprefix(body)): value.float()
        if value.is_floating_point()
        else value
        for key, value in state.items()
        if key.startswith(body)
    }
    channels = features["conv0.weight"].shape[1]
    if channels == 3:
        features["conv0.weight"] = features["conv0.weight"].sum(1, keepdim=True)
    elif channels != 1:
        raise PretrainedError(f"{source}: conv0 takes {channels} channels: only 1 and 3 are understood")
    if ours:
        if f"{root}input_scale" not in state:
            raise PretrainedError(f"{source} has no input_scale and input_shift: save it again with this version")
        scale, shift = float(state[f"{root}input_scale"]), float(state[f"{root}input_shift"])
    else:
        scale, shift = IMAGENET_INPUT if channels == 3 else XRAY_INPUT
    head = f"{root}{'head' if ours else 'classifier'}."
    rows = {}
    if names and f"{head}weight" in state:
        weight, bias = state[f"{head}weight"].float(), state[f"{head}bias"].float()
        if len(weight) != len(names):
            raise PretrainedError(f"{source}: {len(weight)} classifier rows but {len(names)} findings")
        rows = {_plain(name): (weight[row], bias[row]) for row, name in enumerate(names) if name}
    return Pretrained(features, rows, scale, shift)


def _local(path: Path) -> Pretrained:
    """Weights from a file; nothing in it is executed."""
    cure = "give a Lightning checkpoint of ours, a .safetensors or a plain torch state dict"
    names: Sequence[str] = ()
    with _refusal(f"cannot read weights={str(path)!r}", cure):
        if path.suffix == ".safetensors":
            state, meta = _read_safetensors(path)
            names = json.loads(meta.get("pathologies", "[]"))
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded)
            names = list(loaded.get("hyper_parameters", {}).get("findings", ()))
        return _translate(state, names, str(path))


def _imagenet(folder: Path) -> Mapping[str, Tensor]:
    from torchvision.models import DenseNet121_Weights

    source = DenseNet121_Weights.IMAGENET1K_V1
    path = folder / source.url.rsplit("/", 1)[-1]
    with _refusal("cannot load weights='imagenet'", _fetch_by_hand(source.url, path)):
        state: Mapping[str, Tensor] = source.get_state_dict(
            progress=False, check_hash=True, model_dir=str(folder), map_location="cpu", weights_only=True
        )
    return state


def _fetch_by_hand(url: str, path: Path) -> str:
    return f"without a network, download {url} on another machine and put it at {path}"


def _torchxrayvision(name: str, folder: Path, sha256: str | None) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """State dict and metadata of torchxrayvision's weights, from a safetensors file made of them once."""
    converted = folder / f"{name}.safetensors"
    with _refusal(f"cannot load weights={name!r}", f"delete {converted} to have it made anew"):
        if not converted.exists():
            _convert(name, folder, sha256)
        state, meta = _read_safetensors(converted)
        if sha256 and meta.get("sha256") != sha256.lower():
            raise PretrainedError(
                f"weights={name!r}: {converted} stems from a file of SHA-256 {meta.get('sha256')}, not "
                f"{sha256}: delete it and {name}.pt beside it, or correct sha256"
            )
    return state, meta


def _convert(name: str, folder: Path, sha256: str | None) -> None:
    url, pathologies = _published(name)
    original = folder / f"{name}.pt"
    with _refusal(f"cannot load weights={name!r} from {url}", _fetch_by_hand(url, original)):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one rank of a node fetches, the others find its file
            if (folder / f"{name}.safetensors").exists():
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
            with _replacing(folder / f"{name}.safetensors") as file:
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
        if module == "torchxrayvision.models" and (name == "DenseNet" or name in _CONTAINERS):
            return _CONTAINERS.get(name, nn.Module)
        if f"{module}.{name}" in _HARMLESS.split():
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


@contextmanager
def _refusal(what: str, cure: str) -> Iterator[None]:
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
