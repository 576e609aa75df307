"""The callback in a real test stage."""

from functools import partial

import pandas as pd
import pytest
import torch

from mmpds.callbacks.embedding_quality import EmbeddingQuality
from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.metrics.retrieval import retrieval
from tests.conftest import quiet_trainer
from tests.unit.models.test_clip import model


@pytest.fixture
def data():
    source = partial(Phantom, images=60, findings=["Pneumonia", "Cardiomegaly"])
    return ImageData(source, size=32, batch_size=8, cache_dir=None, fractions=[0.5, 0.1, 0.4])


def judged(data, folder, **arguments):
    clip, looked = model(), EmbeddingQuality(**{"replicates": 20} | arguments)
    quiet_trainer(folder, callbacks=[looked]).test(clip, data, verbose=False)
    return clip, looked.summary()


def test_images_without_a_caption_are_left_out_of_retrieval(data, tmp_path):
    data.setup("test")
    images = data.images["test"]
    images.caption[2] = ""
    clip, found = judged(data, tmp_path, shots=None)
    told = [row for row, text in enumerate(images.caption) if text]
    captions = [images.caption[row] for row in told]
    with torch.no_grad():
        image = torch.cat([clip.embed_images(batch["image"]) for batch in data.eval_dataloader("test")])[told]
        text = clip.embed_texts(captions)
    alone = retrieval(image, text, caption_id=pd.factorize(pd.Series(captions))[0], replicates=0)
    assert found["counts"]["retrieval/items"] == len(images) - 1
    assert {n: found["metrics"][n] for n in alone.metrics} == pytest.approx(alone.metrics)


def test_probes_learn_from_the_training_split(data, tmp_path):
    _, found = judged(data, tmp_path, ks=None, shots=(1, 900))
    assert {"linear_probe/auroc/macro", "few_shot_1/auroc/Pneumonia"} <= found["metrics"].keys()
    assert found["counts"] == {"probe/train": len(data.images["train"])}
    assert any("900 shots" in text for text in found["warnings"])
