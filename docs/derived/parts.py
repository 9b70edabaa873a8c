"""Parts of files that a program writes: what stands between two marks."""

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = "make derived"


@dataclasses.dataclass(frozen=True)
class Part:
    """A derived part of a file.

    Attributes:
      file: where it stands.
      name: in the mark before it.
      text: what it should be.
    """

    file: Path
    name: str
    text: str

    @property
    def marks(self) -> tuple[str, str]:
        """The lines around it."""
        if self.file.suffix == ".py":
            return f"# derived: {self.name} ({COMMAND})", "# end of what is derived"
        return f"<!-- derived: {self.name} ({COMMAND}) -->", "<!-- end of what is derived -->"

    def whole(self) -> str:
        """The file with the part as it should be."""
        start, end = (f"{mark}\n" for mark in self.marks)
        blank = "" if self.file.suffix == ".py" else "\n"
        new, count = re.subn(
            f"{re.escape(start)}.*?{re.escape(end)}",
            lambda _: start + blank + self.text + "\n" + end,
            self.file.read_text(),
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{self.file} has {count} parts between {self.marks}: there should be one.")
        return new

    def is_current(self) -> bool:
        """Whether the file has it already."""
        return self.whole() == self.file.read_text()

    def write(self) -> None:
        """Writes it into the file."""
        self.file.write_text(self.whole())
