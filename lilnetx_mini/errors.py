"""Every error that the package raises on purpose. Each message names the value that was wrong and what to do about it."""

from __future__ import annotations


class LilnetxError(Exception):
    """Base of all errors of this package: catch this one to catch them all."""


class InputError(LilnetxError, ValueError):
    """An argument has the wrong shape, type or range."""


class LnxError(LilnetxError):
    """A file or a coded stream is damaged, truncated, hostile or newer than this version.

    section  the part of the file where it was noticed, for example ``"tables"``; "" if there is no file to speak of
    """

    def __init__(self, section: str, message: str) -> None:
        super().__init__(f"section '{section}': {message}" if section else message)
        self.section = section
        self.message = message

    def __reduce__(self) -> tuple:
        return type(self), (self.section, self.message)  # for errors of other processes


class ExportError(LilnetxError):
    """A network could not be written, or what was written does not compute what the module computes."""


class UnsupportedOpError(LilnetxError):
    """The torch-free runtime cannot run a network; its weights can still be loaded with ``nn.load_into``."""


class CheckpointError(LilnetxError):
    """A checkpoint is damaged or belongs to another run."""


class DataError(LilnetxError, FileNotFoundError):
    """A data set is not where it was looked for."""

    __str__ = Exception.__str__


class MissingExtraError(LilnetxError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; get it with: pip install 'lilnetx-mini[{extra}]'")
        self.module, self.extra = module, extra

    def __reduce__(self) -> tuple:
        return type(self), (self.module, self.extra)
