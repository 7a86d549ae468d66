"""Layers are taken away in the proof, at a seam; production code holds no switch for it."""

from __future__ import annotations

import re

from tests.tidy.sources import PACKAGE, imports, python_files, short


def test_production_code_knows_nothing_of_the_ablation() -> None:
    production = [*PACKAGE.rglob("*.py")]
    assert len(production) > 30
    for file in [*production, *python_files("examples")]:
        assert not re.search(r"ablat|remove_layer|sabotage", file.read_text(encoding="utf-8"), re.IGNORECASE), short(file)


def test_statements_hold_no_switch() -> None:
    for file in PACKAGE.rglob("*.sql"):
        assert not re.search(r"ablat|current_setting\('onceward\.(?!delivery)", file.read_text(encoding="utf-8")), file.name


def test_only_the_proofs_workers_remove_layers() -> None:
    remove_layer = "onceward_proof.ablation.layer_removal.remove_layer"
    users = [short(file) for file in python_files("proof/src") if remove_layer in imports(file)]
    assert users == ["proof/src/onceward_proof/workers/supervisor.py"]
