"""The judgement of predictions, the same whether a model has just made them or a file holds them."""

from __future__ import annotations

import contextlib
import resource
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf

from mmpds import results
from mmpds.callbacks.predictions import prediction_table, write_table
from mmpds.data.attributes import attributes
from mmpds.data.predictions import Predictions, read_predictions
from mmpds.data.splits import leaks, split_by_group
from mmpds.metrics.calibration import Calibration
from mmpds.metrics.classification import FALSE_POSITIVE_RATE, decide
from mmpds.metrics.diagnosis import diagnose
from mmpds.metrics.fairness import audit
from mmpds.metrics.group_thresholds import group_thresholds
from mmpds.metrics.intervals import evaluate
from mmpds.metrics.operating_points import operating_points
from mmpds.metrics.thresholds import RULES, Threshold
from mmpds.world import cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mmpds.metrics.classification import Array

Sections = dict[str, Any]


def judge(
    prob: Array, label: Array, decision: Array, table: pd.DataFrame, threshold: Threshold, findings: Sequence[str], *,
    replicates: int, seed: int, input_range: Mapping[str, float] | None = None, leaked: Sequence[str] = (),
) -> Sections:  # fmt: skip
    """All that results.json says of test predictions.

    Args:
        prob: float [N, C] in [0, 1].
        label: float [N, C], 1, 0 or NaN (not labelled).
        decision: bool [N, C], whether each is flagged.
        table: the items, N rows: `group`, and `normal`, `sex`, `age`, `view` where they are known.
        threshold: fitted on other items than these.
        findings: C names.
        replicates: of the bootstrap by group; 0 for no intervals.
        seed: of the bootstrap.
        input_range: what `InputRange` saw of the network's input.
        leaked: sentences on what the test split shares with that of training.

    Returns:
        The sections `metrics`, `intervals`, `counts` (names beginning with `test/`), `warnings`, `threshold`,
        `diagnosis` (see `mmpds.metrics.diagnosis`) and, where anything is known of the patients, `fairness` (see
        `mmpds.metrics.fairness.audit`).
    """
    value = threshold.value.cpu().numpy()
    judged = evaluate(
        prob, label, value, findings, group=table["group"].to_numpy(), normal=_normal(table), replicates=replicates,
        seed=seed,
    )  # fmt: skip
    found: Sections = {
        section: {f"test/{name}": figure for name, figure in getattr(judged, section).items()}
        for section in ("metrics", "intervals", "counts")
    }
    found["warnings"] = [f"{finding}: {why}" for finding, why in threshold.unfit.items()]
    found["warnings"] += judged.warnings
    diagnosed = diagnose(prob, label, value, findings, input_range=input_range, leaks=leaked)
    found["diagnosis"] = [asdict(diagnosis) for diagnosis in diagnosed]
    if not (known := attributes(table)).empty:
        found["fairness"] = audit(
            prob, label, decision, findings, known, table["group"].to_numpy(), replicates=replicates, seed=seed
        )
    values = {finding: judged.metrics[f"threshold/{finding}"] for finding in findings}
    return found | {"threshold": {"rule": threshold.rule, "values": values}}


def add(found: Sections, sections: Mapping[str, Any]) -> None:
    """Add sections of results.json to others: dictionaries are united, lists go on."""
    for name, part in sections.items():
        found[name] = found.get(name, []) + part if isinstance(part, list) else found.get(name, {}) | part


def evaluate_stored(cfg: DictConfig, started: float) -> Sections:
    """Judge the predictions that a file holds: thresholds by every rule from some of the items, judged on the others.

    Args:
        cfg: the composed configuration, of stage `evaluate`.
        started: when the user pressed enter, as time.time().

    Returns:
        The sections of `judge` under the rule that the configuration chooses; ROC-AUCs of all items together as
        `all/auroc/<finding>`; `operating_points` of every rule; and what it cost. predictions.csv is written.

    Raises:
        ValueError: the files cannot be judged; the text says why, and the cure.
    """
    timing = {"startup_s": time.time() - started}
    began = time.perf_counter()
    stored = read_predictions(cfg.data.predictions, cfg.data.labels, cfg.data.findings)
    fit, test = halves(stored, cfg.data.fit_fraction, cfg.data.split_seed)
    timing["load_s"] = time.perf_counter() - began

    began = time.perf_counter()
    settings: Any = OmegaConf.to_container(cfg.model.threshold, resolve=True)
    found: Sections = {"metrics": _aurocs_of_all(stored), "warnings": list(stored.notes)}
    found["warnings"] += _calibrated_before(Path(cfg.data.predictions), cfg.model.calibration)
    fit, test = _calibrated(cfg.model.calibration, fit, test, found)
    chosen = _fitted(settings, fit)
    at, (values, unfit) = [chosen.value.numpy()] * 2, _every_rule(settings, fit)
    if by := cfg.model.threshold_by:
        own = group_thresholds(
            fit.prob, fit.label, _groups(fit, by), fit.findings, chosen.rule,
            specificity=settings["specificity"], sensitivity=settings["sensitivity"],
        )  # fmt: skip
        at = [own.thresholds(_groups(part, by)) for part in (fit, test)]
        values[f"{chosen.rule} by {by}"] = at[1]
        found["warnings"] += own.notes
    decisions = [decide(part.prob, value) for part, value in zip((fit, test), at, strict=True)]
    found["counts"] = {"fit/items": len(fit.table), "fit/groups": int(fit.table["group"].nunique())}
    again = {"replicates": cfg.bootstrap, "seed": cfg.seed}
    add(found, judge(test.prob, test.label, decisions[1], test.table, chosen, test.findings, **again))
    found["warnings"] += [text for rule, texts in unfit.items() if rule != chosen.rule for text in texts]
    found["operating_points"] = operating_points(
        test.prob, test.label, values, test.findings, group=test.table["group"].to_numpy(),
        normal=_normal(test.table), **again,
    )  # fmt: skip
    for row in found["operating_points"]:
        if by and row["rule"] == f"{chosen.rule} by {by}":
            _judge_by_group(found, row)
    if by:
        groups = {name: dict(zip(fit.findings, map(float, value), strict=True)) for name, value in own.values.items()}
        found["threshold"] |= {"by": by, "groups": groups}
        found["warnings"].append(
            f"thresholds differ by {by}: curves, diagnosis and the threshold of each finding are of common ones"
        )
    tables = [
        prediction_table(name, part.table, part.findings, part.prob, decision)
        for name, part, decision in zip(("val", "test"), (fit, test), decisions, strict=True)
    ]
    write_table(Path(cfg.run_dir) / "predictions.csv", pd.concat(tables))
    found["warnings"] += _unjudged(found["operating_points"], cfg.bootstrap)
    timing["evaluate_s"] = time.perf_counter() - began
    return found | {
        "timing": timing,
        "energy": {"joules": None, "joules_per_item": None, "method": "unavailable"},
        "memory": {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
        "hardware": results.hardware([], cores()),
        "artifacts": {"config": results.CONFIG, "predictions": "predictions.csv"},
        "error": None,
    }


def halves(stored: Predictions, fraction: float, seed: int) -> tuple[Predictions, Predictions]:
    """The items that thresholds are fitted on, and those that they are judged on; no patient is in both.

    They are the file's own `val` and `test` rows where it has both (others take no part), else a split by patient.

    Args:
        stored: predictions.
        fraction: share of the first part, in (0, 1).
        seed: of the split.

    Raises:
        ValueError: the file's own parts share a patient, or there are fewer than two patients.
    """
    table = stored.table
    if "split" in table and {"val", "test"} <= set(table["split"]):
        names = table["split"]
        used = names.isin(("val", "test"))
        if found := leaks(names[used], table["group"][used]):
            raise ValueError(
                f"data.predictions: {len(found)} patients are in val and in test ({'; '.join(found[:3])}); mend the "
                "column split, or leave it out to have the file split by patient"
            )
    else:
        if table["group"].nunique() < 2:
            raise ValueError(
                f"data.predictions: all {len(table):,} items are of one patient ({table['group'].iat[0]}): thresholds "
                "are fitted on some and judged on others; give items of two or more, or mend the column group"
            )
        known = table if "normal" in table else table.assign(normal=False)
        names = split_by_group(known, stored.findings, (0.0, fraction, 1 - fraction), seed)
    fit, test = ((names == name).to_numpy() for name in ("val", "test"))
    return stored.part(fit), stored.part(test)


def _calibrated(method: str, fit: Predictions, test: Predictions, found: Sections) -> list[Predictions]:
    """Both parts, calibrated by the first."""
    calibration = Calibration(fit.findings, method)
    calibration.update(torch.tensor(fit.prob), torch.tensor(fit.label))
    calibration.compute()
    found["calibration"] = {"method": method}
    found["warnings"] += [f"{finding}: {why}" for finding, why in calibration.unfit.items()]
    return [replace(part, prob=calibration.calibrate(torch.tensor(part.prob)).numpy()) for part in (fit, test)]


def _calibrated_before(path: Path, method: str) -> list[str]:
    """A sentence where the run that wrote the file has calibrated what is about to be calibrated."""
    record: Mapping[str, Any] = {}
    with contextlib.suppress(ValueError):  # it is the file that counts, not what lies beside it
        record = results.read(path.parent)
    wrote = (record.get("artifacts") or {}).get("predictions") == path.name
    before = (record.get("calibration") or {}).get("method", "none") if wrote else "none"
    if "none" in (before, method):
        return []
    return [
        f"{path} holds probabilities that its run has calibrated ({before}): model.calibration={method} is fitted on "
        "top of that; leave it out to judge them as they are"
    ]


def _groups(part: Predictions, by: str) -> Array:
    """The group of each item."""
    known = attributes(part.table)
    if by not in known:
        raise ValueError(f"model.threshold_by={by}: not known of these items; known are {list(known) or 'none'}")
    return known[by].to_numpy()


def _judge_by_group(found: Sections, row: Mapping[str, Any]) -> None:
    """Let an operating point at the groups' own thresholds stand for what `judge` found at common ones."""
    overall = row["finding"] == "macro"
    for name in ("precision", "recall", "f1", "specificity", FALSE_POSITIVE_RATE):
        key = f"test/{name}" if overall and name == FALSE_POSITIVE_RATE else f"test/{name}/{row['finding']}"
        for section, cell in (("metrics", name), ("intervals", f"{name}_interval")):
            found[section].pop(key, None)
            if cell in row:
                found[section][key] = row[cell]


def _fitted(settings: Mapping[str, Any], fit: Predictions) -> Threshold:
    threshold = Threshold(fit.findings, **settings)
    threshold.update(torch.tensor(fit.prob), torch.tensor(fit.label))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says is in `unfit`
        threshold.compute()
    return threshold


def _every_rule(settings: Mapping[str, Any], fit: Predictions) -> tuple[dict[str, Array], dict[str, list[str]]]:
    """Rule -> thresholds [C], and rule -> what it could not fit; the given values may leave findings out (NaN)."""
    rules = [_fitted({**settings, "rule": rule}, fit) for rule in RULES if rule != "class_specific"]
    thresholds = {rule.rule: rule.value.numpy() for rule in rules}
    if values := settings.get("values"):
        if unknown := set(values) - set(fit.findings):
            raise ValueError(f"model.threshold.values: no {sorted(unknown)} here; there are {list(fit.findings)}")
        thresholds["class_specific"] = np.array([values.get(finding, np.nan) for finding in fit.findings])
    return thresholds, {
        rule.rule: [f"{finding}, rule {rule.rule}: {why}" for finding, why in rule.unfit.items()] for rule in rules
    }


def _unjudged(points: Sequence[Mapping[str, Any]], replicates: int) -> list[str]:
    """A sentence for each rule whose means are not over all findings, or have no interval."""
    said = []
    for rule in dict.fromkeys(row["rule"] for row in points):
        rows = [row for row in points if row["rule"] == rule]
        if silent := [row["finding"] for row in rows if "precision" not in row]:
            mean = ", and none in its mean" if rows[-1]["finding"] == "macro" else ""
            said.append(f"rule {rule} flags nothing of {', '.join(silent)}: no precision{mean}")
        elif replicates and (bare := [row["finding"] for row in rows if "precision_interval" not in row]):
            said.append(f"rule {rule} flags too little of {', '.join(bare)} for an interval of precision")
    return said


def _aurocs_of_all(stored: Predictions) -> dict[str, float]:
    judged = evaluate(stored.prob, stored.label, np.full(len(stored.findings), 0.5), stored.findings, replicates=0)
    return {f"all/{name}": value for name, value in judged.metrics.items() if name.startswith("auroc/")}


def _normal(table: pd.DataFrame) -> Array | None:
    return table["normal"].to_numpy(dtype=bool) if "normal" in table else None
