"""The faults of `tests.mutations` still fit the code; and the script tells a hole where there is one."""

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation, copy_checkout, main, source


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_its_text_stands_in_the_file_once_and_its_tests_exist(mutation):
    assert source(mutation) != (ROOT / mutation.file).read_text(encoding="utf-8")
    ast.parse(source(mutation))
    file, _, name = mutation.tests.partition("::")
    assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(encoding="utf-8")


def test_their_names_differ():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.fixture
def checkout(tmp_path):
    """A function of one line, and a test that sees half of it."""
    (tmp_path / "sums.py").write_text("def total(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text(
        "from sums import total\n\n\ndef test_total():\n    assert total(0, 2) == 2\n"
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "said", "code"),
    [
        ("a - b", "1 of 1 caught", 0),
        ("b - a", "survived", 1),
        ("a + (b", "pytest ended with 2", 1),
    ],
)
def test_a_fault_that_no_test_sees_is_told(new, said, code, checkout, capsys):
    assert main([], [Mutation("sum", "sums.py", "a + b", new, "test_sums.py")], checkout) == code
    assert said in capsys.readouterr().out
    assert (checkout / "sums.py").read_text().endswith("a + b\n"), "the checkout stays as it is"


def test_of_folders_called_runs_the_one_on_top_alone_is_left_out(checkout, tmp_path_factory):
    for folder in ("runs", "code/runs", ".git", "code/__pycache__"):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "file.py").touch()
    copy = tmp_path_factory.mktemp("copies") / "copy"
    copy_checkout(checkout, copy)
    files = sorted(str(path.relative_to(copy)) for path in copy.rglob("*.py"))
    assert files == ["code/runs/file.py", "sums.py", "test_sums.py"]


def test_tests_that_fail_without_a_fault_tell_nothing(checkout, capsys):
    (checkout / "test_sums.py").write_text("def test_total():\n    assert False\n")
    assert main([], [Mutation("sum", "sums.py", "a + b", "a - b", "test_sums.py")], checkout) == 1
    assert capsys.readouterr().out.startswith("failed")


def test_a_text_that_is_no_longer_there_ends_the_script(checkout):
    with pytest.raises(LookupError, match=r"sum: sums\.py holds its text 0 times, not once"):
        main([], [Mutation("sum", "sums.py", "a * b", "a + b", "test_sums.py")], checkout)


def test_an_unknown_name_is_told_with_the_known_ones(checkout, capsys):
    mutation = Mutation("sum", "sums.py", "a + b", "a - b", "test_sums.py")
    with pytest.raises(SystemExit):
        main(["product"], [mutation], checkout)
    assert "no mutation is called 'product'; there are sum" in capsys.readouterr().err
