"""Small problems of many updates: leading directions, the tasks' cores, and memory that is kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from conftest import write_adapter
from safetensors.torch import save, save_file

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.read import read_adapter
from hydrapack.adapters.update import LoraModule, StoredLora
from hydrapack.bundle import held
from hydrapack.bundle.format import Bundle
from hydrapack.merging import span
from hydrapack.merging.assignment import route
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.spectral import merge_spectral
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.errors import HydrapackError
from hydrapack.support.stored_tensor import write_tensors
from hydrapack.support.threads import in_parallel


def planted(count: int, groups: int, d_out: int, d_in: int, rank: int) -> list[LoraModule]:
    """Updates that share half of A, and most of B within a group."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    start, common = normal(rank, d_in), [normal(d_out, rank) for _ in range(groups)]
    return [
        LoraModule(start + 0.5 * normal(rank, d_in), common[k % groups] + 0.5 * normal(d_out, rank))
        for k in range(count)
    ]


def dense(update: LoraModule) -> torch.Tensor:
    A, B = update.factors()
    return B @ A


@pytest.mark.parametrize("count", [3, 12, 60])
@pytest.mark.parametrize("d_in", [90, 500])
def test_the_best_a_in_either_space(count, d_in):
    """Fewer rows than inputs or more, decomposed whole or by Krylov blocks: the optimum."""
    updates = planted(count, count, 40, d_in, 8)
    merged = merge_spectral(updates, MergeOptions(count, 8))
    whole = torch.cat([dense(u) for u in updates])
    kept = float(torch.linalg.svdvals(whole)[:8].square().sum())
    assert float(merged.heads.double().square().sum()) == pytest.approx(kept, rel=1e-6)
    torch.testing.assert_close(merged.A @ merged.A.T, torch.eye(len(merged.A)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("count", "heads"), [(9, 3), (60, 5), (60, 2)])
def test_a_head_s_rows(count, heads):
    """Tasks that share a head: rows for their mean, of fewer ranks than outputs or more."""
    updates = planted(count, heads, 40, 90, 4)
    weights = tuple(1.0 + k % 3 for k in range(count))
    options = MergeOptions(heads, 6, weights=weights)
    merged = merge_spectral(updates, options)
    means = []
    for head in range(heads):
        own = [k for k in range(count) if merged.assignment[k] == head]
        total = sum(weights[k] for k in own)
        mean = sum(weights[k] * dense(updates[k]) for k in own) / total
        means.append(total**0.5 * mean)
    kept = float(torch.linalg.svdvals(torch.cat(means))[:6].square().sum())
    found = sum(float((mean @ merged.A.double().T).square().sum()) for mean in means)
    assert found == pytest.approx(kept, rel=1e-6)


def test_cores_of_many_tasks_keep_groups_and_size(monkeypatch):
    """Above the limit cores hold the leading directions alone, and the groups are still found."""
    updates = planted(24, 3, 48, 64, 8)
    whole = span.core_of(updates, 8)
    monkeypatch.setattr(span, "EXACT", 100)
    small = span.core_of(updates, 8, 100)
    assert whole.cores.shape == (24, 48, 64) and small.cores.shape == (24, 8, 8)
    for update, core in zip(updates, whole.cores, strict=True):
        torch.testing.assert_close(whole.output @ core @ whole.input.T, dense(update))
    assert route(updates, MergeOptions(3, 8))[0] == (0, 1, 2) * 8
    exact = merge_two_sided(updates, MergeOptions(24, 8), 8)
    monkeypatch.setattr(
        "hydrapack.merging.two_sided.core_of", lambda u, width: span.core_of(u, width, 24 * 20**2)
    )
    near = merge_two_sided(updates, MergeOptions(24, 8), 8)
    energy = [float(m.heads.double().square().sum()) for m in (exact, near)]
    assert 0.99 * energy[0] < energy[1] <= energy[0] * (1 + 1e-9)


def test_krylov_gives_up_on_a_flat_spectrum():
    """Where all directions are alike, the matrix is decomposed whole: the same eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 450, generator=generator, dtype=torch.float64)
    gram = span.square(rows)
    torch.testing.assert_close(gram, rows.T @ rows)
    vectors = span.top_eigenvectors(gram, 40)
    values = torch.linalg.eigvalsh(gram).flip(0)[:40]
    torch.testing.assert_close((vectors * (gram @ vectors)).sum(0), values, rtol=1e-6, atol=0)


def test_no_update_at_all():
    nothing = LoraModule(torch.zeros(2, 9), torch.zeros(7, 2))
    absent = nothing.absent()
    for updates in ([nothing, absent], [absent, absent]):
        merged = merge_spectral(updates, MergeOptions(2, 2))
        assert merged.A.shape[0] == 1 and not bool(merged.heads.any())


def test_large_heads_wait_in_a_file(tmp_path, monkeypatch):
    """The bundle has the same bytes, and reads as the one in memory."""
    for k in range(3):
        write_adapter(tmp_path / f"a{k}", seed=k)
    adapters = read_adapters([tmp_path / f"a{k}" for k in range(3)])
    plain = merge_adapters(adapters)
    monkeypatch.setattr(held, "HELD", 3000)
    spilled = merge_adapters(adapters)
    assert spilled.shapes == plain.shapes
    assert spilled.modules._places and len(spilled.modules._places) < len(spilled.modules)
    for name, module in plain.modules.items():
        assert torch.equal(module.heads, spilled.modules[name].heads)
    plain.save(tmp_path / "plain")
    spilled.save(tmp_path / "spilled")
    written = [(tmp_path / n / "bundle.safetensors").read_bytes() for n in ("plain", "spilled")]
    assert written[0] == written[1]
    loaded = Bundle.load(tmp_path / "spilled")
    assert {n: m.assignment for n, m in loaded.modules.items()} == {
        n: m.assignment for n, m in spilled.modules.items()
    }


def test_no_room_for_large_heads(tmp_path, monkeypatch):
    write_adapter(tmp_path / "a")
    monkeypatch.setattr(held, "HELD", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(HydrapackError, match=r"none: cannot be written: No such file.*TMPDIR"):
        merge_adapters(read_adapters([tmp_path / "a"]))


def test_written_as_the_library_does(tmp_path):
    tensors = {
        "b.B": torch.randn(2, 3),
        "b.of": torch.tensor([1, 0]),
        "a.A": torch.randn(4, 1),
        "ä": torch.randn(1),
    }
    digest, each = write_tensors(tmp_path / "t", tensors)
    assert (tmp_path / "t").read_bytes() == save(tensors)
    assert digest == hashlib.sha256(save(tensors)).hexdigest()
    raw = {name: hashlib.sha256(tensor.numpy().tobytes()) for name, tensor in tensors.items()}
    assert each == {name: one.hexdigest() for name, one in raw.items()}


@pytest.mark.parametrize("change", ["other", "gone"])
def test_an_adapter_changed_while_it_is_in_use(tmp_path, change):
    write_adapter(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a", "a")
    module = next(iter(adapter.modules.values()))
    assert isinstance(module, StoredLora)
    assert torch.equal(replace(module, scaling=2.0).B, module.B)
    path = tmp_path / "a" / "adapter_model.safetensors"
    if change == "gone":
        path.unlink()
    else:
        save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(HydrapackError, match=r"adapter_model.safetensors: (was changed|cannot be)"):
        module.factors()


def test_in_parallel_keeps_the_order_and_runs_little_ahead(monkeypatch):
    monkeypatch.setattr("hydrapack.support.threads.THREADS", 3)
    started = []

    def square(number: int) -> int:
        started.append(number)
        if number == 7:
            raise ValueError("seven")
        return number**2

    results = in_parallel(square, range(10), 3)
    assert next(results) == 0 and len(started) <= 4
    found = []
    with pytest.raises(ValueError, match="seven"):
        found.extend(results)
    assert 9 not in started


def test_the_same_bytes_on_many_threads(tmp_path, monkeypatch):
    for k in range(3):
        write_adapter(tmp_path / f"a{k}", seed=k)
    adapters = read_adapters([tmp_path / f"a{k}" for k in range(3)])
    bundles = []
    for threads in (1, 4):
        monkeypatch.setattr("hydrapack.support.threads.THREADS", threads)
        bundles.append(merge_adapters(adapters, "dare", density=0.5, seed=3))
    one, many = (b.modules for b in bundles)
    assert all(torch.equal(one[n].heads, many[n].heads) for n in one)
