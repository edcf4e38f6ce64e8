"""The library's own errors: what failed, with which value, and what to change."""


class DreamBoothError(Exception):
    """Base of every error this library raises on purpose; `str(error)` is one plain sentence for the person.

    `hint` says what to do about it; the command line prints message and hint on one line and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(DreamBoothError):
    """A setting, or a combination of settings, that can't work."""

    exit_code = 2


class PhotoError(DreamBoothError):
    """A photo that can't be used; the message starts with its file name."""

    exit_code = 2


class ModelError(DreamBoothError):
    """A base model or trained model that is missing, incomplete, of an unsupported kind, or gave unusable output."""


class RunError(DreamBoothError):
    """A run directory that can't be used as asked, or a training that had to stop."""


class HubError(DreamBoothError):
    """The Hub refused or could not be reached."""


def first_line(error: Exception) -> str:
    """The first line of a foreign error's text, without its full stop, to quote in one of ours."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(". ")
