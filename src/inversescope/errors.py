"""The one error that bad input ends in, and text made fit for one line of a terminal."""


class InputError(Exception):
    """Bad input, told in one line: who is at fault and what to do about it.

    Args:
        culprit: what is wrong, with the name of the file, key, site or row.
        remedy: what the reader should do next.
    """

    def __init__(self, culprit: str, remedy: str) -> None:
        # Messages of other libraries may come in several lines.
        self.culprit = " ".join(culprit.split()).rstrip(". ")
        self.remedy = " ".join(remedy.split()).rstrip(". ")
        super().__init__(f"{self.culprit}. {self.remedy}.")


def neutral(text: str) -> str:
    """Text that cannot steer a terminal: control and format characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception) -> str:
    """The first line of a message that says something, or the error's type: other libraries write whole pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])
