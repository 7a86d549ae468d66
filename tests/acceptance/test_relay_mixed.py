"""`bench/relay_mixed.py` in small: mixed sizes, one row of poison, a slow sink, and a relay that is killed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "relay_mixed.py"


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("relay_mixed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["relay_mixed"] = module
    spec.loader.exec_module(module)
    return module


def test_all_but_the_poison_is_sent_in_order_under_kills() -> None:
    small = ["--rows", "150", "--large", "1", "--seconds", "0.01", "--kills", "2", "--lanes", "4"]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("149 sent"), done.stdout


def test_its_judge_sees_what_is_missing_overtaken_or_cut(tmp_path: Path) -> None:
    log = tmp_path / "sent.log"
    log.write_text("0 a 5\n2 a 5\n0 a 5\n1 a 5\n4 b 3\n5 b 5\n", encoding="utf-8")
    verdict = loaded().judge(log, [5] * 6, 0, 0.0)
    assert (verdict.missing, verdict.overtaken, verdict.poison_sent) == ([3, 4], ["a: 1 after 2"], True)
    assert not verdict.holds
