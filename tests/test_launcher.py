"""The process is set up before torch is there, by one option, and only where it helps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lmkit import launcher
from lmkit.cli import _take_switch


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("OMP", "THP"))} | environment,
    )
    return done.stdout.strip()


SHOW = "import os, sys; print(os.environ['OMP_WAIT_POLICY'], os.environ['THP_MEM_ALLOC_ENABLE'], "


def test_the_environment_is_set_without_importing_torch() -> None:
    code = f"from lmkit import tune_process; tune_process(); {SHOW} 'torch' in sys.modules)"
    assert python(code) == "PASSIVE 1 False"


def test_what_the_environment_says_stays() -> None:
    code = f"from lmkit import tune_process; tune_process(); {SHOW} 0)"
    assert python(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE 1 0"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays_with_the_process() -> None:
    code = """if True:
        import sys
        from lmkit import tune_process
        early = tune_process() if sys.argv[1:] != ["off"] else None
        block = bytearray(300 << 20)
        del block
        pages = int(open("/proc/self/statm").read().split()[1])
        print(early, pages * 4096 > 250 << 20)
    """
    assert python(code) == "True True"
    assert python(code.replace('sys.argv[1:] != ["off"]', "False")) == "None False"


def test_too_late_is_said() -> None:
    assert python("import torch; from lmkit import tune_process; print(tune_process())") == "False"


def test_there_is_at_least_one_core() -> None:
    assert 1 <= launcher.available_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fit"], True),
        (["fit", "--cpu_tuning=false"], False),
        (["fit", "--cpu_tuning"], True),
        (["fit", "--cpu_tuning=False", "--x=1"], False),
    ],
)
def test_one_option_decides_and_goes_no_further(words: list[str], expected: bool) -> None:
    assert _take_switch(words, "--cpu_tuning", default=True) is expected
    assert not any(word.startswith("--cpu_tuning") for word in words)


def test_another_value_is_refused() -> None:
    with pytest.raises(ValueError, match="must be true or false"):
        _take_switch(["fit", "--cpu_tuning=maybe"], "--cpu_tuning", default=True)
