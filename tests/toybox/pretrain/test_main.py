"""The commands that train, through click."""

from click.testing import CliRunner

from dreambooth.toybox.pretrain.__main__ import TRAININGS, main


def test_help_names_every_part():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for part in (*TRAININGS, "base", "pictures", "latents", "export", "subjects"):
        assert f"  {part} " in result.output


def test_pictures_and_a_part_by_command(tmp_path):
    for command in (["pictures", "--count", "6"], ["vae", "--samples", "4"]):
        result = CliRunner().invoke(main, ["--work", str(tmp_path), "--device", "cpu", *command])
        assert result.exit_code == 0, result.output
    assert "vae 1/1 loss" in result.output
    assert (tmp_path / "vae" / "config.json").exists()


def test_an_unknown_part_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["--work", str(tmp_path), "unet"])
    assert result.exit_code == 2
    assert "No such command 'unet'" in result.output
