"""What a report and the terminal say of a generator's run."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpds import console, report
from mmpds.report import figures, generation, page
from mmpds.report.__main__ import main
from mmpds.report.stored import StoredRun
from tests.unit.report.generated import FINDINGS, run_of_a_test, run_of_images
from tests.unit.report.test_report import Headings


def html(folder):
    (path,) = report.write(folder)
    text = path.read_text()
    return text.replace(re.search(r'id="plotly">(.*?)</script>', text, re.S)[1], "")


def edit(folder, **sections):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


def embedded(text):
    kind, content = re.search(r'src="data:image/(\w+);base64,([^"]+)"', text).groups()
    return kind, base64.b64decode(content)


@pytest.fixture
def made(tmp_path):
    return run_of_images(tmp_path / "made")


@pytest.fixture
def tested(tmp_path):
    return run_of_a_test(tmp_path / "tested")


def test_a_generating_run_has_its_images_and_no_section_of_a_detector(made):
    text = html(made)
    assert Headings(text).found == ["Warnings", "Generated images", "Time, energy and provenance"]
    assert generation.SYNTHETIC in text
    assert "<strong>11 images (3 made before, 1 failed).</strong>" in text
    assert "0.041 images/s" in text
    assert embedded(text) == ("png", (made / "contact_sheet.png").read_bytes())


def test_a_tested_generator_has_its_tables_and_no_section_of_a_detector(tested):
    text = html(tested)
    assert Headings(text).found == [
        "Warnings", "Quality of the images", "Do the images show what was asked for?", "Time, energy and provenance",
    ]  # fmt: skip
    assert generation.SYNTHETIC in text
    tags = Headings(text).tags
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags) == 3


def test_tables_state_the_metrics_beside_those_of_real_images(tested):
    result = json.loads((tested / "results.json").read_text())
    quality = {row[0].text: row[1:] for row in generation.quality(result).rows}
    assert quality["FID"] == [("4.24", "3.90–4.60"), ("1.25", "")]
    assert quality["KID"][1] == ("-0.000400", "-0.00300 to 0.00200")
    assert "Distance to the nearest training image, pixels" not in quality, "it was not measured"
    fidelity = generation.fidelity(result)
    assert [row[0].text for row in fidelity.rows] == [*FINDINGS, "Mean (macro)"]
    metrics = result["metrics"]
    names = [f"{name}{of}" for of in ("", "_real") for name in ("fidelity", "fidelity_chance", "fidelity_auroc")]
    for row, finding in zip(fidelity.rows, FINDINGS, strict=False):
        assert row[1].text == str(result["counts"][f"test/asked/{finding}"])
        assert [float(cell.text) for cell in row[2:]] == pytest.approx(
            [metrics[f"test/{name}/{finding}"] for name in names], abs=5e-4
        )
    classes = generation.classes(result)
    assert list(classes.heads) == ["Finding", "Asked", "FID: generated", "FID: shuffled", "FID: real"], (
        "KID has no value"
    )
    assert [cell.text for cell in classes.rows[1]] == ["Effusion", classes.rows[1][1].text, "7.00", "9.00", "4.00"]


def test_the_figure_has_every_finding_at_its_value(tested):
    run = StoredRun.read(tested)
    drawn = figures.fidelity(run)
    assert drawn["layout"]["yaxis"]["ticktext"] == list(FINDINGS[::-1])
    for trace, name in zip(drawn["data"], figures.FIDELITY, strict=True):
        assert trace["x"] == [run.section("metrics")[f"test/{name}/{finding}"] for finding in FINDINGS[::-1]]
        low = np.array(trace["x"]) - trace["error_x"]["arrayminus"]
        assert low == pytest.approx(
            [run.section("intervals")[f"test/{name}/{finding}"][0] for finding in FINDINGS[::-1]]
        )


def test_without_a_classifier_only_what_needs_none_is_shown(tmp_path):
    text = html(run_of_a_test(tmp_path / "run", classifier=False))
    assert "MS-SSIM of two images" in text
    assert "FID</th>" not in text
    assert Headings(text).found[1:] == ["Quality of the images", "Time, energy and provenance"]


def test_a_large_sheet_is_made_smaller_but_stays_a_picture(tmp_path):
    folder = run_of_images(tmp_path / "run", images=65, side=224, columns=8)
    assert (folder / "contact_sheet.png").stat().st_size > 3e6
    kind, content = embedded(html(folder))
    assert kind == "webp"
    assert len(content) <= page.SHEET_BYTES
    with Image.open(io.BytesIO(content)) as shown, Image.open(folder / "contact_sheet.png") as whole:
        assert 600 < shown.width < whole.width
        assert shown.width / shown.height == pytest.approx(whole.width / whole.height, rel=0.01)


def test_the_gallery_lists_two_hundred_images(tmp_path):
    folder = run_of_images(tmp_path / "run", images=230, side=16)
    table = generation.gallery(StoredRun.read(folder).manifest)
    written = pd.read_csv(folder / "images" / "manifest.csv", dtype=str)
    assert table.caption.startswith("The first 200 of 230 images")
    assert len(table.rows) == 200
    assert [cell.text for cell in table.rows[7]] == list(written.loc[7, ["id", "prompt", "seed", "model", "status"]])


def test_prompts_cannot_run_and_are_shown_as_they_were_written(made):
    path = made / "images" / "manifest.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[0, "prompt"], table.loc[1, "prompt"] = "<script>alert(1)</script>", "'=1+1"
    table.to_csv(path, index=False)
    text = html(made)
    assert "<script>alert" not in text
    assert "<td>=1+1</td>" in text


def test_markdown_and_csv_of_a_generator(made, tested):
    report.write(made, "md")
    text = (made / "report.md").read_text()
    assert "](contact_sheet.png)" in text
    assert "| study-0 | Chest radiograph 0: pneumonia |" in text
    assert generation.SYNTHETIC in text
    report.write(tested, "md")
    assert "| FID | 4.24 (3.90–4.60) | 1.25 |" in (tested / "report.md").read_text()
    (path,) = report.write(tested, "csv")
    table = pd.read_csv(path, keep_default_na=False).set_index(["metric", "finding"])
    assert table.loc[("fid", ""), "value"] == 4.237
    assert ("ms_ssim/generated", "") in table.index
    assert ("fidelity", "Nodule") in table.index


def test_images_alone_have_no_csv_and_the_message_says_where_they_are_listed(made, capsys):
    assert main([str(made), "--format", "csv"]) == 2
    assert "images/manifest.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("images/manifest.csv", "id,prompt\na,b\n", "no column seed, model, status"),
        ("contact_sheet.png", "no picture", "contact_sheet.png is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(made, capsys, file, content, said):
    (made / file).write_text(content)
    assert main([str(made)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_failed_generator_states_its_error(made):
    edit(made, status="failed", error="no space left", counts={})
    text = html(made)
    assert "no space left" in text
    assert "study-0" in text, "the images that were made are listed"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"images": 6, "already_made": 0, "retried": 0, "failed": 0}, "6 images"),
        ({"images": 1, "already_made": 0, "retried": 1, "failed": 0}, "1 image (1 in float32)"),
        (
            {"images": 1200, "already_made": 1000, "retried": 0, "failed": 2},
            "1,200 images (1,000 made before, 2 failed)",
        ),
    ],
)
def test_counts_in_words(counts, said):
    assert generation.counted({f"predict/{name}": n for name, n in counts.items()}) == said


def test_the_terminal_says_how_many_images_and_how_fast(made, capsys):
    console.print_results(json.loads((made / "results.json").read_text()), made)
    said = capsys.readouterr().out
    assert "  11 images (3 made before, 1 failed)\n" in said
    assert " 0.041 images/s " in said
    assert said.count("\n") == 3, "the images, the cost and the directory"


def test_the_terminal_has_the_tables_of_the_report(tested, capsys):
    console.print_results(json.loads((tested / "results.json").read_text()), tested)
    said = capsys.readouterr().out
    for line in (r"FID +4\.24 +1\.25", r"3\.90–4\.60", r"Mean \(macro\) +0\.\d{3}", r"-0\.00300 to 0\.00200"):
        assert re.search(line, said), line


def test_the_terminal_says_nothing_of_generation_for_a_detector(capsys, tmp_path):
    result = {"metrics": {}, "counts": {}, "world_size": 1, "threads_per_rank": 1, "timing": {}}
    console.print_results(result | {"timing": {"throughput_items_per_s": 94.84}}, tmp_path)
    assert capsys.readouterr().out == f"  1 rank × 1 thread: 94.8 images/s\n  {tmp_path}\n"
