"""A bank of task sets: the trunk is stored and held once, and a set is loaded by the bytes that it needs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_models import SIZE, m3vit, workload
from test_foreign_layouts import ListMoE, language
from test_foreign_layouts import workload as words

import secateur as sc
from secateur.compress.compressed import load_model
from secateur.compress.experts import Settings, extract
from secateur.compress.experts.banked import Bank
from secateur.core.bundle import Bundle
from secateur.core.errors import BudgetError, BundleError

SETS = [["depth"], ["edges"], ["depth", "edges"]]


class Counting(io.BytesIO):
    """A file that remembers which of its bytes were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.read_bytes())
        self.read_at: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        data = super().read(size)
        self.read_at += range(start, start + len(data))
        return data


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Sets of depth and edges; at a second point half of the experts are gone and the model was fine-tuned."""
    folder = tmp_path_factory.mktemp("bank")
    found = sc.extract(workload(), SETS, "params<=72%", "90%", epochs=1, rounds=1)
    return found.save(folder / "bundle")


def weights(bundle: Bundle) -> Path:
    return bundle.file(bundle.manifest.point.weights)


def test_each_set_computes_what_the_whole_does_on_calibration_data(bundle: Bundle) -> None:
    whole = load_model(bundle, m3vit)
    bank = Bank(bundle, m3vit)
    assert bank.sets == [("depth",), ("edges",), ("depth", "edges")]
    for inputs, _ in workload().calibration:
        for task in ("depth", "edges"):
            with torch.no_grad():
                expected = whole(inputs, task)
                assert torch.equal(bank.model(task)(inputs, task), expected)
                assert torch.equal(bank.model(["edges", "depth"])(inputs, task), expected)
    for name, tensor in bank.model("depth").state_dict().items():
        assert "edges" not in name or not tensor.numel()


def test_loading_reads_what_a_set_needs_and_switching_what_is_missing(bundle: Bundle) -> None:
    file = Counting(weights(bundle))
    bank = Bank(bundle, m3vit, file)
    header = bank.bytes_read
    assert header < 20_000
    bank.model("depth")
    first = bank.bytes_read - header
    assert first == bank.needed_bytes("depth") < weights(bundle).stat().st_size - header
    bank.model("edges")
    second = bank.bytes_read - header - first
    assert 0 < second < 0.6 * bank.needed_bytes("edges")  # the trunk was there
    assert len(file.read_at) == len(set(file.read_at)) == bank.bytes_read  # no byte was read twice
    bank.model("depth")
    bank.model("depth,edges")
    assert bank.bytes_read == header + first + second  # all that both need together is there


def test_sets_share_the_trunk_in_memory_and_what_is_dropped_is_freed(bundle: Bundle) -> None:
    bank = Bank(bundle, m3vit)
    one, two = bank.model("depth"), bank.model("edges")
    assert one.patch_embed.weight.data_ptr() == two.patch_embed.weight.data_ptr()  # type: ignore[union-attr, operator]
    both = bank.resident_bytes
    separate = bank.needed_bytes("depth") + bank.needed_bytes("edges")
    trunk = sum(tensor.nbytes for name, tensor in one.state_dict().items() if ".attn." in name)
    assert both <= separate - trunk
    bank.drop("edges")
    assert bank.resident_bytes == bank.needed_bytes("depth")
    before = bank.bytes_read
    bank.model("edges")
    assert bank.bytes_read > before


def test_a_damaged_expert_is_refused_by_who_needs_it_only(bundle: Bundle) -> None:
    import safetensors

    state = Bank(bundle, m3vit)
    depth, edges = (state.model(task).blocks[1].mlp.kept.tolist() for task in ("depth", "edges"))  # type: ignore
    only = next(number for number in edges if number not in depth)
    union = load_model(bundle, m3vit).blocks[1].mlp.kept.tolist()  # type: ignore
    with safetensors.safe_open(weights(bundle), "pt") as opened:
        needle = opened.get_slice("blocks.1.mlp.experts.h4toh.weight")[union.index(only)].numpy().tobytes()
    file = Counting(weights(bundle))
    place = file.getvalue().index(needle)
    file.seek(place)
    file.write(bytes([needle[0] ^ 1]))
    bank = Bank(bundle, m3vit, file)
    bank.model("depth")
    with pytest.raises(BundleError, match=r"blocks.1.mlp.experts.h4toh.weight\[\d\] was changed or truncated"):
        bank.model("edges")


def test_every_point_has_a_bank_of_its_own(bundle: Bundle) -> None:
    points = [Bundle(bundle.path, bundle.manifest.model_copy(update={"chosen": number})) for number in (0, 1)]
    large, small = (sc.load(each).bank(m3vit) for each in points)
    assert large.needed_bytes("depth") > small.needed_bytes("depth")
    x = torch.rand(2, 3, SIZE, SIZE)
    assert not torch.equal(large.model("depth")(x, "depth"), small.model("depth")(x, "depth"))  # fine-tuned between


def test_inspect_says_what_each_set_needs(bundle: Bundle) -> None:
    found = sc.inspect(bundle, workload=workload()).as_json()["bank"]
    assert [each["tasks"] for each in found["sets"]] == [sorted(tasks) for tasks in SETS]
    bank = Bank(bundle, m3vit)
    assert [each["bytes"] for each in found["sets"]] == [bank.needed_bytes(tasks) for tasks in bank.sets]
    assert found["stored_bytes"] < sum(each["bytes"] for each in found["sets"])


def test_lists_of_experts_are_banked_too(tmp_path: Path) -> None:
    model = language(ListMoE)
    found = extract(words(model), sets=[["repeat"], ["reverse"]], settings=Settings(epochs=0))
    bank = Bank(found.save(tmp_path / "words"), lambda: language(ListMoE))
    for task in model.tasks:
        small = bank.model(task)
        assert len(small.moe.experts) <= 6  # type: ignore[union-attr, arg-type]
        for inputs, _ in words(model).calibration:
            with torch.no_grad():
                torch.testing.assert_close(small(inputs, task), model(inputs, task), atol=1e-5, rtol=1e-4)


def test_wrong_input_is_one_clear_line(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the bank has no set parts") as error:
        Bank(bundle, m3vit).model("parts")
    assert error.value.hint == "its sets are: depth; edges; depth, edges"
    with pytest.raises(BudgetError, match="the set edges, depth is given twice"):
        sc.extract(workload(), [["depth", "edges"], ["edges", "depth"]])
    with pytest.raises(BudgetError, match="channels are pruned for one set of tasks"):
        sc.extract(workload(), [["depth"], ["edges"]], "flops<=20%", prune=True)
    plain: Any = extract(workload(), ["depth"]).save(tmp_path / "plain")
    with pytest.raises(BundleError, match="plain is no bank"):
        sc.load(plain).bank(m3vit)
