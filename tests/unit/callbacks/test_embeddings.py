"""Archives from predictions: each image once, whatever ended the last build."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from mmpds.callbacks.embeddings import Embeddings
from mmpds.data.phantom import Phantom
from mmpds.models.densenet import DenseNet121
from mmpds.search.archive import Archive
from tests.conftest import quiet_trainer
from tests.unit.models.test_clip import model, phantom

COUNT = 21


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    drawn = Phantom(images=COUNT)
    for row in range(COUNT):
        Image.fromarray(drawn.image(row, 40)).save(folder / f"{row:02d}.png")
    return folder


class Crash(Callback):
    """Ends a run after so many batches."""

    def __init__(self, after, error):
        self.after, self.error = after, error

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *_):
        if batch_idx + 1 == self.after:
            raise self.error


def build(folder, images, *more, clip=None, **arguments):
    callback = Embeddings(str(folder / "archive"), shard_rows=6, **{"dtype": "float32"} | arguments)
    data = phantom(predict_root=str(images), batch_size=4)
    run = quiet_trainer(folder, callbacks=[callback, *more])
    run.predict(clip or model(), data, return_predictions=False)
    return callback.summary()


def whole(folder):
    """Each image's vector, of an archive in which each occurs once."""
    archive = Archive.open(folder / "archive", verify=True)
    names = [name for _, name in archive.at(range(len(archive)))]
    assert len(set(names)) == len(names)
    return dict(zip(names, np.concatenate(archive.vectors()), strict=True))


def test_the_archive_holds_what_the_model_gives(images, tmp_path):
    assert build(tmp_path, images) == {"predict/embedded": COUNT, "predict/already_embedded": 0}
    found = whole(tmp_path)
    assert list(found) == [f"{row:02d}.png" for row in range(COUNT)]
    data = phantom(predict_root=str(images), batch_size=COUNT)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    with torch.inference_mode():
        expected = model().embed_images(batch["image"]).numpy()
    assert np.allclose(np.stack(list(found.values())), expected, atol=1e-5)
    assert [shard.rows for shard in Archive.open(tmp_path / "archive").shards] == [6, 6, 6, 3]


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt(), 16), (RuntimeError("killed"), 12)])
def test_a_build_that_was_killed_goes_on(images, tmp_path, error, kept):
    """An interruption leaves all that is embedded; a crash, as of a rank that is killed, whole shards alone."""
    with pytest.raises((SystemExit, RuntimeError, KeyboardInterrupt)):
        build(tmp_path, images, Crash(4, error))  # sixteen images
    with pytest.raises(ValueError, match="not whole"):
        Archive.open(tmp_path / "archive")
    assert build(tmp_path, images) == {"predict/embedded": COUNT - kept, "predict/already_embedded": kept}
    once = tmp_path / "once"
    build(once, images)
    found, expected = whole(tmp_path), whole(once)
    assert found.keys() == expected.keys()
    assert all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_a_half_written_shard_is_made_again(images, tmp_path):
    build(tmp_path, images)
    before = whole(tmp_path)
    path = tmp_path / "archive" / "shard-00001.npy"
    path.write_bytes(path.read_bytes()[:-5])
    assert build(tmp_path, images) == {"predict/embedded": 6, "predict/already_embedded": COUNT - 6}
    assert {name: vector.tobytes() for name, vector in whole(tmp_path).items()}.keys() == before.keys()


def test_images_are_added_and_none_is_embedded_twice(images, tmp_path):
    some = tmp_path / "some"
    some.mkdir()
    for row in (3, 5):
        (some / f"{row:02d}.png").write_bytes((images / f"{row:02d}.png").read_bytes())
    build(tmp_path, some)
    (some / "new.png").write_bytes((images / "07.png").read_bytes())
    assert build(tmp_path, some) == {"predict/embedded": 1, "predict/already_embedded": 2}
    assert build(tmp_path, some) == {"predict/embedded": 0, "predict/already_embedded": 3}
    assert list(whole(tmp_path)) == ["03.png", "05.png", "new.png"]
    build(tmp_path, images)  # another folder's images are others, whatever their names
    archive = Archive.open(tmp_path / "archive")
    assert len(archive) == 3 + COUNT
    assert archive.sources == [str(some), str(images)]


def test_half_precision_is_kept_as_such(images, tmp_path):
    build(tmp_path, images, dtype="float16")
    assert {vector.dtype for vector in whole(tmp_path).values()} == {np.dtype("float16")}
    with pytest.raises(ValueError, match="dtype=float8"):
        Embeddings("archive", dtype="float8")


def test_another_model_is_refused(images, tmp_path):
    build(tmp_path, images)
    with pytest.raises(ValueError, match="embeddings of two models cannot be compared"):
        build(tmp_path, images, clip=model(stem="convolutions"))
    assert len(whole(tmp_path)) == COUNT


def test_a_model_without_embeddings_is_refused(images, tmp_path):
    detector = DenseNet121(["Pneumonia"], growth_rate=4, block_config=(1, 1, 1, 1), init_features=8)
    with pytest.raises(ValueError, match="DenseNet121 gives no embeddings"):
        build(tmp_path, images, clip=detector)


def test_the_first_weights_that_are_given_are_remembered(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.ckpt").touch()
    build(tmp_path, images, weights=[None, "best.ckpt", "openai/clip"])
    assert Archive.open(tmp_path / "archive").weights == str(tmp_path / "best.ckpt")
    build(tmp_path, images, weights=[None, None, "openai/clip"])
    assert Archive.open(tmp_path / "archive").weights == "openai/clip"
