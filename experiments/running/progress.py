"""The progress bar, on the standard error stream."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Number(ProgressColumn):
    """A number that the training loop reports, empty until it does."""

    def __init__(self, name: str, form: str):
        """Shows the task's field `name` in the format `form`."""
        super().__init__()
        self.name, self.form = name, form

    def render(self, task: Task) -> Text:
        """The number as text."""
        value = task.fields.get(self.name)
        return Text("" if value is None else self.form.format(value))


def progress_bar(shown: bool = True) -> Progress:
    """A bar with loss, score, steps per second and the time left; none in a log file."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        Number("loss", "loss {:.3f}"),
        Number("score", "score {:.4f}"),
        Number("speed", "{:.1f} steps/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )
