import itertools
import json

import pytest
from conftest import hydrapack

from hydrapack.adapters.collect import read_adapters
from hydrapack.analysis.tradeoff import tradeoff
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.package import pack
from hydrapack.support.errors import HydrapackError


def errors(merged):
    """Root mean square of the tasks' relative errors, and the largest."""
    found = list(merged.relative_errors.values())
    return (sum(e**2 for e in found) / len(found)) ** 0.5, max(found)


def test_points_are_what_merging_gives(adapters, tmp_path):
    read = read_adapters([str(a) for a in adapters])
    points = {
        (p.method, p.heads, p.rank, p.bits): p for p in tradeoff(read, [2, 4, 6], [8, 32]).points
    }
    for heads, rank in [(1, 4), (2, 4), (3, 2), (3, 4), (3, 6)]:
        merged = merge_adapters(read, heads=heads, rank=rank)
        point = points["spectral", heads, rank, 32]
        found = point.relative_error, point.worst_error
        assert found == pytest.approx(errors(merged), rel=1e-4)
        assert point.decode_bytes == 4 * rank * sum(sum(m.shape) for m in merged.modules.values())
        assert point.parameters == merged.info.parameters
        assert point.s_percent == pytest.approx(merged.s_percent)
    # At 8 bits: what the packer writes.
    merged = merge_adapters(read, heads=2)
    merged.save(tmp_path / "bundle")
    manifest = pack(tmp_path / "bundle", tmp_path / "package").manifest
    point = points["spectral", 2, 4, 8]
    assert 0 < manifest.storage.bytes - point.bytes < 60_000
    assert point.bytes == manifest.storage.tensor_bytes
    assert point.percent_of_fp16 == pytest.approx(
        100 * manifest.storage.tensor_bytes / manifest.storage.baseline_bytes
    )
    packed = [t.packed_relative_error for t in manifest.tasks]
    assert min(packed) <= point.relative_error <= max(packed)
    two_sided = [p for p in tradeoff(read, [4], [8]).points if p.method == "two-sided"]
    assert [p.output_rank for p in two_sided] == [4, 8, 12]
    for point in two_sided:
        merged = merge_adapters(read, "two-sided", output_rank=point.output_rank)
        assert point.relative_error == pytest.approx(errors(merged)[0], rel=0.02)
        assert point.parameters == merged.info.parameters
    apart = points["adapters apart", 3, 4, 16]
    assert apart.s_percent == 100 and apart.relative_error == 0
    ties = merge_adapters(read, "ties")
    assert points["ties", 1, 4, 16].relative_error == pytest.approx(errors(ties)[0])


def test_falls_along_each_axis(adapters):
    read = read_adapters([str(a) for a in adapters])
    points = [p for p in tradeoff(read, [2, 4, 6], [8, 16, 32]).points if p.method == "spectral"]
    for axis in ("heads", "rank", "bits"):
        others = [a for a in ("heads", "rank", "bits") if a != axis]
        lines = {}
        for p in sorted(points, key=lambda p, axis=axis: getattr(p, axis)):
            lines.setdefault(tuple(getattr(p, a) for a in others), []).append(p)
        assert len(lines) == 9
        for line in lines.values():
            assert len(line) == 3
            errors = [p.relative_error for p in line]
            assert all(b <= a * 1.001 + 1e-6 for a, b in itertools.pairwise(errors))
            sizes = [p.bytes for p in line]
            assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_options(adapters):
    read = read_adapters([str(a) for a in adapters])
    with pytest.raises(HydrapackError, match="`ranks` 0"):
        tradeoff(read, [0, 4])
    with pytest.raises(HydrapackError, match="`bits` 5"):
        tradeoff(read, bits=[5])


def test_command(adapters, tmp_path):
    outputs = []
    for run in ("one", "two"):
        done = hydrapack("tradeoff", *adapters, "-o", tmp_path / run, "--ranks", "2,4")
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" and "task-arithmetic" in done.stdout
        files = sorted((tmp_path / run).iterdir())
        assert [f.name for f in files] == ["tradeoff.json", "tradeoff.png"]
        outputs.append([f.read_bytes() for f in files])
    assert outputs[0] == outputs[1]
    assert outputs[0][1].startswith(b"\x89PNG")
    # M by R by bits; Q of 1 to 3 ranks at the adapters' own R and 1 to 2 at the lower; the others.
    assert len(json.loads(outputs[0][0])["points"]) == 3 * 2 * 3 + (3 + 2) * 3 + 6
    done = hydrapack("tradeoff", *adapters, "-o", tmp_path / "x", "--objective", "minimax")
    assert done.returncode == 2 and "choose relative or absolute" in done.stderr
    done = hydrapack("tradeoff", *adapters, "-o", tmp_path / "x", "--bits", "many")
    assert done.returncode == 2 and "--bits many" in done.stderr
