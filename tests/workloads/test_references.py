"""How a workload is named: built in, or a function of the user's; whatever goes wrong is one clear line."""

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from secateur.core.errors import SecateurError, WorkloadError
from secateur.workloads import built_in, names, workload

MINE = """
    import torch
    from torch import nn
    from secateur.core.task import Task, Workload
    from secateur.workloads.metrics import Accuracy

    number = 3

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)
        def forward(self, x):
            return {"kind": self.layer(x)}

    def make(**more):
        batches = [(torch.randn(8, 4), {"kind": torch.randint(2, (8,))})]
        tasks = [Task("kind", nn.functional.cross_entropy, Accuracy(), "higher")]
        return Workload("mine", Net(), torch.zeros(1, 4), tasks, batches, batches, batches, **more)

    def named():
        return make(reference="elsewhere:make")

    def nothing():
        pass

    def number_instead():
        return 7

    def fails():
        raise ValueError("the disk is on fire\\nsecond line")

    def needs_more(path):
        return make()

    def twice():
        tasks = make().tasks * 2
        return Workload("mine", Net(), None, tasks, [], [], [])

    class Home:
        make = staticmethod(make)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the user's modules, which is the current one and not on the path."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    (tmp_path / "broken.py").write_text("def workload(:\n")
    (tmp_path / "stops.py").write_text("raise RuntimeError('no licence')\n")
    (tmp_path / "needs.py").write_text("import a_library_nobody_has\n")
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "__init__.py").write_text("")
    (tmp_path / "box" / "inner.py").write_text("from mine import make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("mine", "broken", "stops", "needs", "box", "box.inner"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.invalidate_caches()


@pytest.mark.parametrize("reference", ["mine:make", "box.inner:make", "mine:Home.make"])
def test_a_function_of_the_current_folder(reference: str) -> None:
    made = workload(reference)
    assert made.name == "mine"
    assert made.reference == reference


def test_a_reference_that_the_workload_gives_is_kept() -> None:
    assert workload("mine:named").reference == "elsewhere:make"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("scene", 'did you mean "scenes"'),
        ("Digits", 'did you mean "digits"'),
        ("nothing-like-it", "scenes, digits, multifashion"),
        ("", "scenes, digits, multifashion"),
        ("absent:make", 'no module "absent"'),
        ("absent.deep:make", 'no module "absent"'),
        ("box.absent:make", 'no module "box.absent"'),
        ("mine:mak", 'did you mean "make"'),
        ("mine:Home.absent", "has no"),
        ("mine:", "package.module:function"),
        (":make", "package.module:function"),
        ("../mine:make", "package.module:function"),
        ("mine.py:make", 'no module "mine.py"'),
        ("mine:number", "a value of type int"),
        ("mine:nothing", "returned nothing (None)"),
        ("mine:number_instead", "returned a value of type int"),
        ("mine:fails", "ValueError: the disk is on fire"),
        ("mine:needs_more", "TypeError"),
        ("mine:twice", "names a task twice"),
        ("broken:workload", "SyntaxError"),
        ("stops:workload", "RuntimeError: no licence"),
        ("needs:workload", "a_library_nobody_has"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(reference: str, says: str) -> None:
    with pytest.raises(SecateurError) as caught:
        workload(reference)
    error = caught.value
    assert isinstance(error, WorkloadError)
    assert says in f"{error.message}; {error.hint}"
    assert error.hint
    assert "\n" not in error.message + error.hint


def test_every_name_is_a_module_with_a_workload_and_a_recipe() -> None:
    assert {"scenes", "digits", "multifashion", "nyudv2", "detection"} <= set(names())
    for name in names():
        assert callable(built_in(name).workload)
        assert built_in(name).recipe().name == name
