"""The public release of VQA-RAD, its counts and its traps."""

from mmpds.data.vqa_rad import VqaRad


def test_the_public_release(real_data):
    source = VqaRad(real_data / "vqa_rad")
    assert len(source.table) == 315
    assert source.table["organ"].isna().sum() == 1
    assert source.table[["Head", "Chest", "Abdomen"]].sum(axis=1).value_counts().to_dict() == {1.0: 314, 0.0: 1}
    questions = source.questions
    assert questions["split"].value_counts().to_dict() == {"train": 1797, "test": 451}
    assert questions[questions["split"] == "test"]["answer_type"].value_counts().to_dict() == {
        "CLOSED": 272,
        "OPEN": 179,
    }
    assert questions["image_organ"].value_counts().to_dict() == {"CHEST": 794, "ABD": 739, "HEAD": 715}
    shared = set(questions[questions["split"] == "test"]["image_name"]) & set(
        questions[questions["split"] == "train"]["image_name"]
    )
    assert len(shared) == 202
    assert all(isinstance(answer, str) and answer == answer.strip() for answer in questions["answer"])
    assert source.image(0, 64).shape == (64, 64)
