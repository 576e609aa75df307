"""What a phantom's caption says, and the questions that can be asked about it."""

from __future__ import annotations

from collections.abc import Iterator

from mmpds.data.anatomy.patient import FINDINGS
from mmpds.data.anatomy.scene import Lesion, Scene

_OPENINGS = {
    "chest": (
        "Frontal chest radiograph, {view} view.",
        "Chest X-ray, {view} projection.",
        "{view} radiograph of the chest.",
    ),
    "head": ("Axial CT slice of the head.", "CT of the head, axial plane."),
    "abdomen": ("Axial CT slice of the abdomen.", "CT of the abdomen, axial plane."),
}
_CLEAR = {
    "chest": (
        "No acute finding.",
        "The lungs are clear and the heart is of normal size.",
        "Normal heart and lungs.",
        "No abnormality seen.",
    ),
    "head": ("No acute finding.", "Normal brain."),
    "abdomen": ("No acute finding.", "Normal liver, spleen and kidneys."),
}
_SENTENCES = {
    "Pneumonia": (
        "Focal opacity in the {side} {zone} zone, consistent with pneumonia.",
        "Pneumonia in the {zone} zone of the {side} lung.",
    ),
    "Infiltration": ("Patchy infiltration of {lungs}.", "Diffuse hazy infiltration over {lungs}."),
    "Effusion": ("{amount} {side} pleural effusion.", "Effusion blunting the {side} costophrenic angle."),
    "Cardiomegaly": (
        "Enlarged heart, in keeping with cardiomegaly.",
        "Cardiomegaly with a cardiothoracic ratio of {ratio:.2f}.",
    ),
    "Nodule": (
        "Small round nodule in the {side} {zone} zone.",
        "Pulmonary nodule in the {zone} zone of the {side} lung.",
    ),
    "Pneumothorax": ("{amount} {side} pneumothorax.", "Visible pleural line: {side} pneumothorax."),
    "Haemorrhage": ("Bright haemorrhage in the {side} hemisphere.",),
    "Mass": ("Rim-enhancing mass in the {side} hemisphere.",),
}
_NOUNS = {
    "Pneumonia": "pneumonia",
    "Infiltration": "infiltration",
    "Effusion": "pleural effusion",
    "Cardiomegaly": "cardiomegaly",
    "Nodule": "nodule",
    "Pneumothorax": "pneumothorax",
    "Haemorrhage": "haemorrhage",
    "Mass": "mass",
}
_ASKED = {"chest": FINDINGS, "head": ("Haemorrhage", "Mass"), "abdomen": ()}


def caption(scene: Scene) -> str:
    """A short report that names exactly what the image shows."""
    organ, turn = scene.patient.organ, scene.phrasing
    openings, clear = _OPENINGS[organ], _CLEAR[organ]
    sentences = [openings[turn % len(openings)].format(view=scene.view)]
    for lesion in scene.lesions:
        wordings = _SENTENCES[lesion.finding]
        text = wordings[turn // 10 % len(wordings)].format(
            side=lesion.side,
            lungs="both lungs" if lesion.side == "both" else f"the {lesion.side} lung",
            zone=_zone(scene, lesion),
            amount=("Small", "Moderate", "Large")[int(3 * lesion.severity)],
            ratio=scene.heart_ratio,
        )
        sentences.append(text)
    if not scene.lesions:
        sentences.append(clear[turn // 10 % len(clear)])
    return " ".join(sentences)


def _zone(scene: Scene, lesion: Lesion) -> str:
    depth = (lesion.y - scene.patient.apex) / (scene.patient.dome - scene.patient.apex)
    return "upper" if depth < 0.38 else "middle" if depth < 0.7 else "lower"


def questions(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    """Question, answer, answer type and question type."""
    organ = scene.patient.organ
    shown = {lesion.finding: lesion for lesion in scene.lesions}
    for finding in _ASKED[organ]:
        yield (
            f"Is there evidence of {_NOUNS[finding]}?",
            "Yes" if finding in shown else "No",
            "CLOSED",
            "PRES",
        )
    yield "Is this image normal?", "No" if shown else "Yes", "CLOSED", "ABN"
    for finding, lesion in shown.items():
        if lesion.side:
            where = "Both" if lesion.side == "both" else lesion.side.capitalize()
            yield f"On which side is the {_NOUNS[finding]}?", where, "OPEN", "POS"
    yield "Which modality is this?", "X-ray" if organ == "chest" else "CT", "OPEN", "MODALITY"
    yield "Which part of the body is shown?", organ.capitalize(), "OPEN", "ORGAN"
    if organ == "chest":
        yield "Is this a PA or an AP view?", scene.view, "OPEN", "PLANE"
    else:
        yield "In which plane is this image?", "Axial", "OPEN", "PLANE"
