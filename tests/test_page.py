"""The page of a release meeting, and the ten lines of a pull request that say the same."""

import html as escaping
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from conftest import TASKS, hydrapack

from hydrapack.footprint.budgets import Budget, judge
from hydrapack.footprint.growth import Release, read_release
from hydrapack.footprint.page import html
from hydrapack.footprint.report import storage
from hydrapack.footprint.summary import Point, Scores, Summary, markdown
from hydrapack.support.errors import HydrapackError
from hydrapack.support.sizes import readable

LONG = "a task whose name is as long as a product manager's wish, in one word: " + "x" * 60


@pytest.fixture(scope="module")
def summary(tiny):
    """A page with everything on it, and names and numbers that are hard to fit."""
    report = storage(tiny[1], tiny[0])
    errors = {**report.task_errors, LONG: 0.97}
    report = replace(
        report,
        tasks=4,
        task_names=(*report.task_names, LONG),
        task_errors=errors,
        merge_errors={task: error / 2 for task, error in errors.items()},
        baseline_bytes=25 * report.bytes,
    )
    budgets = [
        Budget(name="package", measure="package", limit="1MB", warn="10kB"),
        Budget(name=LONG, measure="head", limit="1kB"),
        Budget(name="download", measure="total-zip", preset="play-asset-pack"),
    ]
    scores = Scores("spectral M=2", dict.fromkeys(errors, 50.0), dict.fromkeys(errors, 62.5))
    releases = [
        Release(name=f"1.{k}", bytes=9000 * (k + 1), tasks=k + 1, head_bytes=9, task_names=("one",))
        for k in range(3)
    ]
    points = [Point(bytes=10 ** (3 + k), relative_error=0.8 / 2**k) for k in range(5)]
    return Summary(report, judge(budgets, report), releases, scores, points)


def test_readable_sizes():
    sizes = (0, 987, 999.6, 1000, 9_994, 9_996, 99_960, 391_784, 999_600, 25_000_000, 1.5e9, 3e15)
    assert [readable(size) for size in sizes] == [
        "0 bytes", "987 bytes", "1.00 kB", "1.00 kB", "9.99 kB", "10.0 kB", "100 kB", "392 kB",
        "1.00 MB", "25.0 MB", "1.50 GB", "3000 TB",
    ]  # fmt: skip


def test_the_headline(summary):
    page = html(summary)
    size = readable(summary.report.bytes)
    assert f"<h1>4 tasks in {size}</h1>" in page
    assert "25 times less than the adapters apart" in page
    assert "scores 50.0 on average, the adapters&#39; own 62.5 (80.0 % of them)" in page
    assert summary.verdict == "fail" and "Budgets: fail" in page
    for heading in (
        "Quality by task", "Budgets", "Growth by release", "Where the bytes lie", "By module",
        "The same tasks stored otherwise", "Bytes against error",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page, heading
    assert not re.search(r"(src|href)=\"(?!data:,)", page) and "<script" not in page
    assert html(summary) == page


def test_parts_are_all_the_bytes(tiny):
    package, bundle = storage(tiny[1]), storage(tiny[2] / "bundle")
    assert sum(package.parts.values()) == package.bytes
    assert {"A", "B", "factors", "program", "manifest"} == set(package.parts)
    assert sum(bundle.parts.values()) == bundle.bytes
    tensors = sum(package.parts[name] for name in ("A", "B", "factors"))
    assert tensors == sum(package.modules.values())


def test_ten_lines(summary):
    lines = markdown(summary).splitlines()
    assert lines[0].startswith("### Storage: 4 tasks in ") and "**FAIL**" in lines[0]
    assert len(lines) <= 12 and all(line.startswith("- ") for line in lines[2:])
    text = "\n".join(lines)
    assert "25 times less" in text and "since 1.2: 27.0 kB →" in text
    assert "one 50.0 (62.5)" in text and "**lost**" in text
    assert [line for line in lines if line.startswith("- budgets, ")] == [
        line for level in ("fail", "warn", "pass") for line in lines if f"budgets, {level}:" in line
    ]


def test_the_command(tiny, tmp_path):
    results = {
        "metrics": {},
        "rows": {},
        "results": [
            {"label": "own", "method": "own", "scores": dict.fromkeys(TASKS, 80.0)},
            {"label": "spectral M=2", "method": "spectral", "scores": dict.fromkeys(TASKS, 60.0)},
        ],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    points = [{"bytes": 9000, "relative_error": 0.3, "method": "spectral"}]
    (tmp_path / "tradeoff.json").write_text(json.dumps({"points": points, "adapters": []}))
    done = hydrapack("storage", tiny[1], "--json")
    (tmp_path / "1.0.json").write_text(done.stdout)
    assert read_release(tmp_path / "1.0.json").name == "1.0"
    page = tmp_path / "page.html"
    command = (
        "storage", tiny[1], "--html", page, "--scores", tmp_path / "results.json", "--curve",
        tmp_path / "tradeoff.json", "--against", tmp_path / "1.0.json", "--against", tiny[1],
    )  # fmt: skip
    done = hydrapack(*command, "--markdown")
    assert done.returncode == 0, done.stderr
    assert "one 60.0 (80.0)" in done.stdout and "(+0.0 %)" in done.stdout
    assert "60.0" in page.read_text() and "<b>1.0</b>" in page.read_text()
    assert json.loads(hydrapack(*command, "--json").stdout)["against"]["bytes"] == 0
    for options, words in (
        (("--row", "x"), "--row: goes with --scores"),
        (("--scores", tmp_path / "tradeoff.json"), "metrics: Field required"),
        (("--scores", tmp_path / "results.json", "--row", "x"), "set --row to one of: 'own'"),
        (("--curve", tmp_path / "results.json"), "points: Field required"),
        (("--against", tmp_path / "tradeoff.json"), "name: Field required"),
        (("--curve", tmp_path / "none"), "cannot be read"),
    ):
        done = hydrapack("storage", tiny[1], *options)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    with pytest.raises(HydrapackError, match="neither a package"):
        read_release(tmp_path)


PROBE = """
const page = document.querySelector("iframe").contentDocument;
const view = page.defaultView, found = {cut: [], pale: [], small: [], texts: 0};
function channels(text) {
  const parts = text.match(/[0-9.]+/g).map(Number);
  return {rgb: parts.slice(0, 3), alpha: parts.length > 3 ? parts[3] : 1};
}
function light(rgb) {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const [r, g, b] = rgb.map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
}
function behind(element) {
  for (let at = element; at; at = at.parentElement) {
    const color = channels(view.getComputedStyle(at).backgroundColor);
    if (color.alpha === 1) return color.rgb;
  }
  return [255, 255, 255];
}
for (const details of page.querySelectorAll("details")) details.open = true;
const walk = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const text = walk.currentNode.data.trim(), element = walk.currentNode.parentElement;
  if (!text) continue;
  found.texts++;
  const style = view.getComputedStyle(element), range = page.createRange();
  range.selectNodeContents(walk.currentNode);
  const color = channels(element.closest("svg") ? style.fill : style.color).rgb;
  const [a, b] = [light(color), light(behind(element))].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 4.5) found.pale.push(text);
  const box = range.getBoundingClientRect();
  const scrolls = element.closest(".scroll");
  if (!scrolls && (box.right > WIDTH || box.left < 0)) found.cut.push(text);
  const svg = element.closest("svg"), frame = svg && svg.getBoundingClientRect();
  if (svg && (box.right > frame.right || box.left < frame.left)) found.cut.push(text);
  const scale = svg ? frame.width / svg.viewBox.baseVal.width : 1;
  if (parseFloat(style.fontSize) * scale < 11) found.small.push(text);
}
found.wide = page.documentElement.scrollWidth;
found.paper = view.getComputedStyle(page.body).backgroundColor;
document.body.textContent = JSON.stringify(found);
"""


@pytest.fixture(scope="session")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("the page is looked at in Chromium (Debian: apt install chromium)")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_in_a_browser(chromium, summary, tmp_path, width, scheme):
    """No error on its console, nothing cut, every text of AA contrast and not too small."""
    wrapper = tmp_path / "wrapper.html"
    page = escaping.escape(html(summary))
    probe = PROBE.replace("WIDTH", str(width))
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><body><iframe style="border:0;height:900px;'
        f'width:{width}px" srcdoc="{page}"></iframe>'
        f'<script>addEventListener("load", () => {{{probe}}})</script>'
    )
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 100},1000",
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    body = re.search(r"<body>(\{.*\})", done.stdout, re.DOTALL)
    assert body, done.stdout[-2000:]
    found = json.loads(escaping.unescape(body[1]))
    assert found["texts"] > 80
    assert found["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 23, 29)"}[scheme]
    for fault in ("cut", "pale", "small"):
        assert found[fault] == [], (fault, found[fault])
    assert found["wide"] <= width
