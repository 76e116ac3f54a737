"""What the README shows works, and the files that name versions agree."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

import lmkit

ROOT = Path(__file__).resolve().parent.parent


def requirements() -> dict[str, str]:
    """Lower bound of each requirement and extra of setup.cfg, by name."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    for block in config["options.extras_require"].values():
        lines += block.splitlines()
    found = (re.match(r"([\w-]+)(?:\[\w+\])?.*?>=([\d.]+)", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines)
    # pip writes names in either form.
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def test_every_requirement_is_pinned_at_or_above_its_bound():
    pinned = pins("constraints.txt")
    bounds = requirements()
    assert bounds.keys() <= pinned.keys()
    assert all(numbers(pinned[name]) >= numbers(bound) for name, bound in bounds.items())


def test_the_minimum_versions_are_the_lower_bounds():
    minimum, bounds = pins("constraints-minimum.txt"), requirements()
    assert minimum.pop("pytorch-lightning") == bounds["lightning"]
    assert minimum == {name: bounds[name] for name in minimum}
    assert {"torch", "lightning", "transformers", "datasets", "numpy"} <= minimum.keys()


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-minimum.txt"])
def test_constraints_hold_nothing_but_versions(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    content = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in content)


def test_both_names_of_lightning_are_pinned():
    pinned = pins("constraints.txt")
    assert pinned["lightning"] == pinned["pytorch-lightning"]


def test_the_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", lmkit.__version__)


@pytest.mark.filterwarnings("ignore")
def test_the_script_of_the_readme_runs(tmp_path):
    script = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    small = {
        "max_steps=2000": "max_steps=2, accelerator='cpu', logger=False, log_every_n_steps=1",
        '"hidden_size": 128': '"hidden_size": 16',
        '"num_hidden_layers": 4': '"num_hidden_layers": 1',
        "max_length=128": "max_length=16",
        "batch_size=32": "batch_size=4",
    }
    for shown, tiny in small.items():
        assert script.count(shown) == 1
        script = script.replace(shown, tiny)
    lines = [
        f"The {word} reads line {n} of the text aloud." for n, word in enumerate("abcdef" * 30)
    ]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    exec(compile(script, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs/first/checkpoints/last.ckpt").is_file()
    assert (tmp_path / "runs/first/loss.png").is_file()
    assert (tmp_path / "runs/first/export/config.json").is_file()


def test_links_of_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
